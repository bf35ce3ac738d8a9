"""Promotions, rollbacks and a traffic split while four workers answer 32 clients."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from scipy.stats import chisquare
from support.identities import visitor_cookie
from support.samples import copy_version, write_two_versions
from support.servers import CAT, running

from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.settings import Settings


def unchecked(_: object) -> None:
    """Accept every version as loadable."""


PROMOTES, ROLLBACKS, PAUSE_SECONDS = 3, 2, 2.5
WINDOW_SECONDS = 2.0
"""Time within which every worker follows a change, on a busy machine."""


@pytest.mark.slow
@pytest.mark.alone
def test_under_load_no_request_fails_and_none_is_answered_by_a_version_that_is_not_live(tmp_path):
    """Four workers and 32 clients: promotions and rollbacks between three versions, then a traffic split."""
    registry = Registry(write_two_versions(tmp_path / "registry"), "cifar_classifier")
    copy_version(registry.base / "1", registry.base / "3", version=3)
    log = RolloutLog(registry)
    log.promote(2, by="test", check_loadable=unchecked)
    secret = Settings(traffic_secret="s" * 32)
    settings = {"CIFAR_REGISTRY": str(registry.base.parent), "CIFAR_REGISTRY_POLL_SECONDS": "0.2"}
    settings["CIFAR_TRAFFIC_SECRET"] = "s" * 32
    stable = [(0.0, 2)]
    answers: list[tuple[float, float, str, int, int]] = []
    ended = threading.Event()
    with running(tmp_path, workers=4, CIFAR_ACCESS_LOG="false", **settings) as server:

        def ask(user: str) -> None:
            cookie = visitor_cookie(int(user, 16), secret)
            with httpx2.Client(base_url=server.address, timeout=60, headers={"Cookie": cookie}) as client:
                while not ended.is_set():
                    began = time.monotonic()
                    answer = client.post("/predict", files={"image": CAT})
                    version = answer.json()["model"]["version"] if answer.status_code == 200 else 0
                    answers.append((began, time.monotonic(), user, answer.status_code, version))

        with ThreadPoolExecutor(32) as pool:
            for i in range(32):
                pool.submit(ask, f"{i:032x}")
            try:
                for number in [1 + i % 3 for i in range(PROMOTES)]:
                    stable.append((time.monotonic(), log.promote(number, by="test", check_loadable=unchecked).stable))
                    time.sleep(PAUSE_SECONDS)
                for _ in range(ROLLBACKS):
                    stable.append((time.monotonic(), log.rollback(by="test", check_loadable=unchecked).stable))
                    time.sleep(PAUSE_SECONDS)
            finally:
                ended.set()
        assert Counter(status for *_, status, _ in answers) == {200: len(answers)}
        wrong = [answer for answer in answers if answer[4] not in live_between(stable, answer[0], answer[1])]
        assert wrong == []
        shares = {"stable": 70, "canary": 30}
        log.label("canary", {1, 2, 3}.difference({stable[-1][1]}).pop(), by="test")
        routing = log.split(shares, by="test")
        time.sleep(WINDOW_SECONDS)
        users = [f"{i:032x}" for i in range(1000, 1600)]

        with httpx2.Client(base_url=server.address, timeout=60) as client, ThreadPoolExecutor(16) as pool:

            def versions_of(user: str) -> set[int]:
                cookie = {"Cookie": visitor_cookie(int(user, 16), secret)}
                answers = [client.post("/predict", files={"image": CAT}, headers=cookie) for _ in range(3)]
                return {answer.json()["model"]["version"] for answer in answers}

            met = list(pool.map(versions_of, users))
    assert all(len(versions) == 1 for versions in met), "stickiness"
    counts = Counter(versions.pop() for versions in met)
    observed = [counts[routing.labels[label]] for label in shares]
    p_value = chisquare(observed, [len(users) * percent / 100 for percent in shares.values()]).pvalue
    assert p_value > 0.001
    print(f"\n{len(answers)} requests, {len(stable) - 1} changes; split {observed} of {shares}, p = {p_value:.2f}")


def live_between(stable: list[tuple[float, int]], began: float, ended: float) -> set[int]:
    """Return the versions that were stable at some time between the request and its answer."""
    live = set()
    for at, (since, number) in enumerate(stable):
        until = stable[at + 1][0] if at + 1 < len(stable) else float("inf")
        if since <= ended and until + WINDOW_SECONDS >= began:
            live.add(number)
    return live
