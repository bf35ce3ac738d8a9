"""Tests of three replicas on three hosts, behind nginx, with one Redis: shared state, and the cost of failures."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest
from gradio_client import Client, handle_file
from support.hosts import APPS, Hosts, cut_off, three_replicas
from support.identities import SECRET, visitor_cookie
from support.pictures import encoded, noise
from support.samples import write_two_versions
from support.waiting import until

from cifar.models.registry import Registry
from cifar.models.rollout import RolloutLog
from cifar.settings import ROOT, Settings

CAT = ROOT / "examples/cat.jpg"
LIMIT = 150
LOAD_CLIENTS = 6
TIMEOUT_SECONDS = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.nightly]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three replicas that read the same registry folder."""
    folder = tmp_path_factory.mktemp("hosts")
    write_two_versions(folder / "registry")
    limits = {"CIFAR_RATE_LIMIT_PREDICT": f"{LIMIT}/day", "CIFAR_REGISTRY_POLL_SECONDS": "0.5"}
    shared = {"CIFAR_REGISTRY": str(folder / "registry"), "CIFAR_TRAFFIC_SECRET": SECRET}
    with three_replicas(folder, **shared, **limits) as hosts:
        yield hosts


def ask(address: str, caller: str, content: bytes = b"", **options: float) -> httpx2.Response:
    """Request a prediction from the address `caller`."""
    files = {"image": content or CAT.read_bytes()}
    return httpx2.post(f"{address}/predict", files=files, headers={"X-Forwarded-For": caller}, timeout=30, **options)


def upstreams(hosts: Hosts, caller: str) -> set[str]:
    """Return the replicas to which nginx sent the requests of this address."""
    lines = [json.loads(line) for line in hosts.log("nginx").splitlines() if line.startswith("{")]
    return {line["upstream"] for line in lines if line["client"] == caller}


@dataclass
class Load:
    """The answers to many requests, in order, with the times at which the requests began."""

    seen: list[tuple[float, object]] = field(default_factory=list)

    def failures(self, since: float = 0) -> list[tuple[float, object]]:
        return [(at, answer) for at, answer in self.seen if answer != 200 and at >= since]


@contextmanager
def under_load(hosts: Hosts) -> Iterator[Load]:
    """Keep six clients asking, each request from another address and with a timeout of five seconds."""
    load, over = Load(), threading.Event()

    def ask_on(client: int) -> None:
        with httpx2.Client(timeout=TIMEOUT_SECONDS) as connection:
            turn = 0
            while not over.is_set():
                turn += 1
                caller = {"X-Forwarded-For": f"198.51.{client}.{turn % 250 + 1}"}
                began = time.monotonic()
                try:
                    response = connection.post(
                        f"{hosts.front}/predict", files={"image": CAT.read_bytes()}, headers=caller
                    )
                    answer: object = response.status_code
                except httpx2.TransportError as error:
                    answer = type(error).__name__
                load.seen.append((began, answer))
                over.wait(0.02)

    threads = [threading.Thread(target=ask_on, args=[client]) for client in range(LOAD_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def test_a_page_session_stays_on_its_host_and_all_hosts_are_used(hosts):
    """Hosts share no files, so upload, queue and stream of a client must reach the same host."""
    used = Counter()
    for number in range(1, 13):
        caller = f"203.0.113.{number}"
        client = Client(hosts.front, headers={"X-Forwarded-For": caller}, verbose=False)
        assert client.predict(handle_file(CAT), api_name="/predict")["predicted_class"] == "cat"
        (host,) = upstreams(hosts, caller)
        used[host] += 1
    assert len(used) == len(APPS), used


def test_a_rate_limit_counts_over_all_hosts_and_without_redis_per_host(hosts):
    """All replicas together allow the limit; without Redis each counts alone, and `/readyz` reports it."""
    caller = "192.0.2.7"
    in_turn = [hosts.app(APPS[i % 3]) for i in range(LIMIT)]
    assert {ask(address, caller).status_code for address in in_turn} == {200}
    assert [ask(hosts.app(app), caller).status_code for app in APPS] == [429] * 3
    with cut_off("redis"):
        alone = [ask(hosts.app(app), caller) for app in APPS]
        assert [answer.status_code for answer in alone] == [200] * 3
        assert all(f'"predict";r={LIMIT - 1};' in answer.headers["ratelimit"] for answer in alone), (
            "the count starts again"
        )
        ready = f"{hosts.app('app1')}/readyz"
        until(lambda: httpx2.get(ready, timeout=30).json()["without"] == ["redis"], "/readyz lists Redis")
    until(lambda: ask(hosts.app("app1"), caller).status_code == 429, "the shared count is back")


def test_hosts_share_cached_answers(hosts):
    """A large image is decoded and classified once, by whichever host comes first."""

    def redis_hits() -> list[float]:
        pages = [httpx2.get(f"{hosts.app(app)}/metrics").text for app in APPS]
        found = [
            re.search(r'^cifar_cache_total\{result="hit",store="redis"\} (\S+)$', page, re.MULTILINE) for page in pages
        ]
        return [float(match[1]) if match else 0 for match in found]

    large = encoded(noise(1500, 1500, seed=9), "PNG")
    before = redis_hits()
    answers = [ask(hosts.app(app), "192.0.2.8", large).json()["class_scores"] for app in APPS]
    assert answers[0] == answers[1] == answers[2]
    assert [after - earlier for after, earlier in zip(redis_hits(), before, strict=True)] == [0, 1, 1]


def test_labels_and_traffic_are_the_same_on_all_hosts(hosts):
    """Each user gets the same version on all hosts, and a promotion in the registry folder reaches every worker."""
    log = RolloutLog(Registry(hosts.folder / "registry", "cifar_classifier"))

    def versions(user: int) -> list[int]:
        cookie = {
            "Cookie": visitor_cookie(user, Settings(traffic_secret=SECRET)),
            "X-Forwarded-For": f"198.18.0.{user}",
        }
        files = {"image": CAT.read_bytes()}
        answers = [httpx2.post(f"{hosts.app(app)}/predict", files=files, headers=cookie, timeout=30) for app in APPS]
        return [answer.json()["model"]["version"] for answer in answers]

    def all_users() -> set[tuple[int, ...]]:
        return {tuple(versions(user)) for user in range(24)}

    log.label("canary", 1, by="test")
    log.split({"stable": 50, "canary": 50}, by="test")
    until(lambda: all_users() == {(1, 1, 1), (2, 2, 2)}, "all hosts split the users alike")
    log.promote(1, by="test", check_loadable=lambda _: None)
    until(lambda: all_users() == {(1, 1, 1)}, "all hosts follow")


def test_a_rolling_restart_under_load_fails_no_request(hosts):
    """Each replica in turn is ended by SIGTERM and started again, while six clients keep asking."""
    with under_load(hosts) as load:
        for app in APPS:
            assert hosts.stop(app) == 0
            hosts.start_app(app)
            hosts.wait_for_app(app)
    print(f"rolling restart: {len(load.seen)} requests, {len(load.failures())} failed")
    assert len(load.seen) > 100
    assert load.failures() == []


def test_a_disconnected_host_costs_only_the_requests_in_progress(hosts):
    """Each client may lose the request it has sent and one on a kept connection; all others are answered."""
    with under_load(hosts) as load:
        until(lambda: len(load.seen) > 50, "the clients are asking")
        with cut_off("app2"):
            cut = time.monotonic()
            time.sleep(2 * TIMEOUT_SECONDS)
            lost = len(load.failures())
            during = [answer for at, answer in load.seen if at >= cut]
        until(lambda: ask(hosts.app("app2"), "192.0.2.9").status_code == 200, "the host is back")
        back = time.monotonic()
        time.sleep(2)
    print(f"host disconnected: {len(during)} requests meanwhile, {lost} failed; after it: {len(load.failures(back))}")
    assert during.count(200) > 50, "the other requests are answered"
    assert lost <= 2 * LOAD_CLIENTS, load.failures()
    assert load.failures(back) == []
