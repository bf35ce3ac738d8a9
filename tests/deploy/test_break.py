"""Everything that a hostile world sends at once: nothing is answered wrong, and nothing is our fault."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile_files import hostile_files, whole_files
from support.servers import Server, ask_all, free_port, metric, mixed_payloads, need, real_redis, running, scores

from cifar.dependency import RECOVERY_SECONDS
from cifar.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec

pytestmark = pytest.mark.slow


def read(payload: bytes) -> None:
    """Anything but pixels, or one of our errors, fails the test."""
    with suppress(ImageTooLarge, UnsupportedImage, UnreadableImage):
        pixels = preprocess(payload, ImageSpec(height=32, width=32, channels=3), max_pixels=50_000_000)
        assert pixels.shape == (32, 32, 3)


def test_a_thousand_hostile_files_are_answered_and_none_by_an_error_of_ours(tmp_path):
    """Over HTTP, 32 callers at once, two workers: 200 or 4xx, and good pictures are answered as before."""
    files = list(hostile_files())
    assert len(files) > 1_000
    assert len({name for name, _ in files}) == len(files)
    good = mixed_payloads()
    with running(tmp_path, workers=2) as server:
        alone = ask_all(server.address, good, len(good))
        workers = server.workers()

        def ask(some: list[tuple[str, bytes]]) -> list[tuple[str, int]]:
            answers = []
            with httpx.Client(base_url=server.address, timeout=60) as client:
                for name, content in some:
                    response = client.post("/predict", files={"image": ("a", content)})
                    assert response.status_code == 200 or set(response.json()) == {"error", "code", "request_id"}
                    answers.append((name, response.status_code))
            return answers

        with ThreadPoolExecutor(32) as pool:
            answers = [one for some in pool.map(ask, [files[i::32] for i in range(32)]) for one in some]
        assert ask_all(server.address, good, len(good)) == alone
        assert server.workers() == workers, "no worker died"
        assert "Traceback" not in server.log.read_text()
    print(Counter(status for _, status in answers))
    assert [(name, status) for name, status in answers if status not in {200, 413, 415, 422}] == []


@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(whole_files())), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), max_size=6))
def test_no_change_of_a_file_raises_anything_but_our_errors(name, changes):
    """Bytes put in, taken out or overwritten at any place of any format."""
    content = whole_files()[name]
    for place, data in changes:
        at = int(place * len(content))
        content = content[:at] + data + content[at + max(1, len(data)) :]
    read(content)


@pytest.mark.timeout(3600)
def test_damaged_files_raise_nothing_but_our_errors():
    """The generator with one seed after the other, for some seconds, or for as long as FUZZ_SECONDS says."""
    until = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "3"))
    start, count = random.randrange(2**32), 0
    for seed in itertools.count(start):
        for name, content in hostile_files(seed):
            if "_damaged_" in name:
                read(content)
                count += 1
        if time.monotonic() > until:
            break
    print(f"{count} files from seed {start}")


def test_redis_killed_and_back_under_load_costs_no_answer(tmp_path):
    """32 callers; Redis is killed, stays away, comes back: every answer is the right one."""
    port = free_port()
    payloads = mixed_payloads()
    stop = threading.Event()
    wrong: list[object] = []
    count = itertools.count()
    (tmp_path / "redis").mkdir()
    with running(
        tmp_path,
        workers=2,
        CIFAR_REDIS_URL=f"redis://127.0.0.1:{port}/0",
        CIFAR_RATE_LIMIT_PREDICT="1000000/minute",
        CIFAR_CACHE_IMAGES="4",
    ) as server:
        with real_redis(tmp_path / "redis", port):
            alone = [scores(httpx.post(f"{server.address}/predict", files={"image": one})) for one in payloads]

        def load() -> None:
            with httpx.Client(base_url=server.address, timeout=30) as client:
                while not stop.is_set():
                    i = next(count) % len(payloads)
                    response = client.post("/predict", files={"image": payloads[i]})
                    if response.status_code != 200 or scores(response) != alone[i]:
                        wrong.append((response.status_code, response.text[:200]))

        with ThreadPoolExecutor(32) as pool:
            runs = [pool.submit(load) for _ in range(32)]
            for _ in range(2):
                with real_redis(tmp_path / "redis", port):
                    time.sleep(RECOVERY_SECONDS + 2.5)  # an open circuit may have just begun to wait
                time.sleep(1.5)
            stop.set()
            for run in runs:
                run.result()
        told = re.findall(r"redis (is down|is back)", server.log.read_text())
        print(f"{next(count)} requests, told: {Counter(told)}")
        assert metric(server, 'cifar_remote_failures_total{dependency="redis"}') > 0
    assert wrong == []
    assert Counter(told)["is back"] >= 2
    assert len(told) < 40, "once a change, not once a request"


def test_ten_thousand_requests_of_one_address_get_what_one_address_may(tmp_path):
    """A hundred a minute are answered, the others are told when to come back; another address is answered."""
    with running(tmp_path, workers=1, CIFAR_RATE_LIMIT_PREDICT="100/hour") as server:
        photo = mixed_payloads()[0]

        def ask(client: httpx.Client, address: str) -> int:
            headers = {"X-Forwarded-For": address}  # the test is the trusted proxy
            return client.post("/predict", files={"image": photo}, headers=headers).status_code

        def many(_: int) -> Counter[int]:
            with httpx.Client(base_url=server.address, timeout=30) as client:
                return Counter(ask(client, "203.0.113.7") for _ in range(625))

        with ThreadPoolExecutor(16) as pool:
            answers = sum(pool.map(many, range(16)), Counter())
        with httpx.Client(base_url=server.address) as client:
            assert ask(client, "203.0.113.8") == 200
    assert answers == {200: 100, 429: 9_900}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_costs_uploads_and_nothing_else(tmp_path):
    """The page's uploads fail with a sentence; `POST /predict` needs no disk; with room again all is well."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", uploads], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with running(tmp_path, workers=2, CIFAR_UPLOADS=str(uploads)) as server:
            full = uploads / "full"
            with pytest.raises(OSError, match="No space left"):
                full.write_bytes(b"x" * 4_000_000)
            assert upload(server) == 500
            assert ask_all(server.address, mixed_payloads(), 32)
            full.unlink()
            assert upload(server) == 200
    finally:
        subprocess.run(["umount", uploads], check=True)


def test_a_clock_that_jumps_a_day_costs_no_answer(tmp_path):
    """Forward, back and forward again while callers ask: answers stay right, limits and the cache go on."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        need("faketime")  # skips here, fails in CI
    clock = tmp_path / "clock"
    clock.write_text("+0")
    payloads = mixed_payloads()
    settings = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as with a real jump: that clock only ever runs on
        "CIFAR_RATE_LIMIT_PREDICT": "1000000/minute",
    }
    with running(tmp_path, workers=1, **settings) as server:
        alone = ask_all(server.address, payloads, len(payloads))
        for jump in ("+1d", "-1d", "+2d", "+0"):
            before = date_of(server)
            clock.write_text(jump)
            deadline = time.monotonic() + 20
            while date_of(server) == before:  # the server looks at its clock once a second
                assert time.monotonic() < deadline, "the server's clock did not jump"
                assert ask_all(server.address, payloads, len(payloads)) == alone
            assert ask_all(server.address, payloads, 4 * len(payloads)) == alone * 4


def date_of(server: Server) -> str:
    """The day that the server believes in."""
    return httpx.get(f"{server.address}/readyz").headers["date"][:16]


def upload(server: Server) -> int:
    files = {"files": ("a.jpg", mixed_payloads()[0])}
    response = httpx.post(f"{server.address}/gradio_api/upload", files=files, timeout=30)
    if response.status_code != 200:
        assert response.json()["code"] == "internal_error"
    return response.status_code


def test_the_api_keeps_what_its_description_promises(tmp_path):
    """Schemathesis reads /openapi.json and tries to prove it wrong, with all its checks but one.

    That one wants whatever fits the description accepted; that a parameter must not stand in the address and in the
    form with two values cannot be said in OpenAPI.
    """
    program = Path(sys.executable).parent / "schemathesis"
    with running(tmp_path, workers=1) as server:
        result = subprocess.run(
            [
                *(program, "run", f"{server.address}/openapi.json", "--checks", "all"),
                *("--exclude-checks", "positive_data_acceptance", "--max-examples", "60", "--seed", "1"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert result.returncode == 0, result.stdout[-3000:]
