"""Hostile images, waiting bodies and one greedy caller: memory stays bounded, and nobody takes all places."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from support.hostile_files import zipped
from support.memory import Memory, limited_memory
from support.pictures import encoded, noise
from support.servers import CAT, Server, running

from cifar.serving.process.shares import Shares

MEBIBYTE = 1024**2
LIMIT_BYTES = 1024 * MEBIBYTE


def hostile_images() -> dict[str, bytes]:
    """Return files of a few kilobytes with nearly 25 million pixels, or twice as many for a progressive JPEG."""
    side = 4_990
    plain, see_through = Image.new("RGB", (side, side), (9, 99, 199)), Image.new("RGBA", (side, side), (9, 99, 199, 9))
    palette = Image.new("P", (side, side))
    return {
        "webp_lossless": encoded(plain, "WEBP", lossless=True, method=0),
        "webp_lossy": encoded(plain, "WEBP", method=0),
        "webp_transparent": encoded(see_through, "WEBP", lossless=True, method=0),
        "png_palette_transparent": encoded(palette, "PNG", transparency=bytes(256)),
        "png_grey_transparent": encoded(Image.new("LA", (side, side)), "PNG"),
        "gif": encoded(palette, "GIF"),
        "tiff": encoded(plain, "TIFF", compression="tiff_adobe_deflate"),
        "avif": encoded(plain, "AVIF", speed=10),
        "jpeg_progressive": encoded(Image.new("RGB", (7_000, 7_000)), "JPEG", progressive=True, subsampling=0),
        "jpeg_of_two_hundred_megapixels": encoded(Image.new("L", (14_100, 14_100)), "JPEG"),
    }


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> Iterator[tuple[Server, Memory]]:
    """A server with two workers and their master in one gibibyte."""
    with limited_memory(LIMIT_BYTES) as memory:
        memory.enter()
        try:
            context = running(tmp_path_factory.mktemp("limited"), workers=2, CIFAR_CACHE_IMAGES="0", CIFAR_MCP="true")
            server = context.__enter__()
        finally:
            memory.leave()
        try:
            yield server, memory
        finally:
            context.__exit__(None, None, None)


def statuses(server: Server, route: str, files: list[bytes], clients: int) -> Counter[int]:
    """Send files over several connections at the same time, and count the statuses."""

    def ask(content: bytes) -> int:
        return httpx2.post(server.address + route, files={"image": ("a", content)}, timeout=90).status_code

    with ThreadPoolExecutor(clients) as pool:
        return Counter(pool.map(ask, files))


def packed_beside(server: Server, image: bytes) -> Counter[int]:
    """Send bodies that gzip has made a thousandth of, and images beside them, over many connections at the same time."""
    packed = gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(20 * MEBIBYTE - 8))

    def ask(place: int) -> int:
        content, encoding = (image, "identity") if place % 12 == 0 else (packed, "gzip")
        head = {"Content-Type": "image/png", "Content-Encoding": encoding, "X-Forwarded-For": f"203.0.113.{place}"}
        return httpx2.post(f"{server.address}/predict", content=content, headers=head, timeout=90).status_code

    with ThreadPoolExecutor(64) as pool:
        return Counter(pool.map(ask, range(128)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hostile_images_eight_at_a_time_end_no_worker_in_one_gibibyte(limited, tmp_path):
    """A few kilobytes that decode to 500 MB used to end both workers. Predictions, heat maps and batches share one budget."""
    server, memory = limited
    workers = server.workers()
    images = hostile_images()
    found = {"all": statuses(server, "/predict", [*images.values()], 8)}
    found["webp"] = statuses(server, "/predict", [images["webp_lossless"]] * 8, 8)
    found["heat maps"] = statuses(server, "/explain", [images["webp_lossless"], images["avif"]] * 2, 4)
    found["packed"] = packed_beside(server, images["webp_lossless"])
    for kind, answers in found.items():
        print(kind, dict(answers))
        assert set(answers) <= {200, 413, 422, 503}, (kind, answers)
    (tmp_path / "a.zip").write_bytes(zipped([(str(place), images["webp_lossless"]) for place in range(3)]))
    client = Client(server.address, verbose=False)
    rows = client.predict([handle_file(tmp_path / "a.zip")], api_name="/predict_batch")["rows"]
    assert {row["code"] for row in rows} <= {None, "image_too_large", "overloaded", "waited_too_long"}
    print(f"peak {memory.peak_bytes / MEBIBYTE:.0f} MiB, limited by the system: {memory.limited}")
    assert server.workers() == workers
    assert memory.peak_bytes < LIMIT_BYTES
    assert statuses(server, "/predict", [CAT] * 20, 4) == {200: 20}


def rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_bodies_that_never_end_take_a_limited_number_of_bytes(tmp_path):
    """Thirty unfinished bodies of 19 MB used to take 570 MB. Small requests, and those of others, are answered meanwhile."""
    size = 19_000_000
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n".encode()
    with running(tmp_path, CIFAR_MAX_WAITING_BYTES=str(64 * MEBIBYTE)) as server, ExitStack() as stack:
        port, pid = int(server.address.rpartition(":")[2]), server.process.pid
        before = rss_bytes(pid)
        refused = 0
        for _ in range(30):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            with suppress(OSError):  # refused, and so not read to its end
                connection.sendall(head + b"x" * (size - 1))
            connection.settimeout(0.5)
            with suppress(TimeoutError):
                answer = connection.recv(4096)
                assert answer.startswith(b"HTTP/1.1 503"), answer
                assert b"retry-after: 1" in answer.lower()
                refused += 1
        assert refused >= 27
        assert rss_bytes(pid) - before < 150 * MEBIBYTE
        assert httpx2.post(f"{server.address}/predict", files={"image": CAT}).status_code == 200
        other = {"X-Forwarded-For": "203.0.113.9"}
        large = encoded(noise(1000, 1000))
        assert httpx2.post(f"{server.address}/predict", files={"image": large}, headers=other).status_code == 200


@pytest.mark.slow
def test_one_caller_cannot_take_all_places_for_heat_maps(tmp_path):
    """Twelve connections of one address used to hold all of them: whoever else asked was refused."""
    with running(tmp_path, CIFAR_MAX_EXPLAINED_IMAGES="4") as server:
        stop = threading.Event()

        def greedy(_: int) -> Counter[int]:
            found: Counter[int] = Counter()
            while not stop.is_set():
                found[httpx2.post(f"{server.address}/explain", files={"image": CAT}, timeout=60).status_code] += 1
            return found

        with ThreadPoolExecutor(12) as pool:
            greedy_ones = [pool.submit(greedy, place) for place in range(12)]
            time.sleep(0.5)
            other = {"X-Forwarded-For": "203.0.113.9"}
            answers = [
                httpx2.post(f"{server.address}/explain", files={"image": CAT}, headers=other, timeout=60).status_code
                for _ in range(3)
            ]
            stop.set()
        assert answers == [200] * 3
        assert set(sum((run.result() for run in greedy_ones), Counter())) == {200, 503}


def test_a_caller_has_half_of_what_is_limited():
    """Another caller may take what one gives back; calls without a caller share the whole."""
    shares = Shares(5)
    assert [shares.take("ada") for _ in range(3)] == [True, True, False]
    assert shares.in_use("ada") == 2, "its own share is the limit"
    assert [shares.take("bob") for _ in range(2)] == [True, True]
    assert shares.take("")
    assert not shares.take("eve"), "all are taken"
    assert shares.in_use("eve") == 5
    shares.give("ada")
    assert shares.take("eve")
    assert shares.taken == 5
    assert Shares(1).take("ada"), "half of one place is one"
