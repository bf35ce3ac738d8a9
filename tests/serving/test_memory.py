"""Hostile images, waiting bodies and one greedy caller: memory stays bounded, and nobody takes all places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from support.hostile_files import zipped
from support.memory import Memory, limited_memory
from support.pictures import encoded
from support.servers import CAT, Server, running

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


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_hostile_images_eight_at_a_time_end_no_worker_in_one_gibibyte(limited, tmp_path):
    """A few kilobytes that decode to 500 MB used to end both workers. Predictions, heat maps and batches share one budget."""
    server, memory = limited
    workers = server.workers()
    images = hostile_images()
    found = {"all": statuses(server, "/predict", [*images.values()] * 2, 8)}
    found["webp"] = statuses(server, "/predict", [images["webp_lossless"]] * 8, 8)
    found["heat maps"] = statuses(server, "/explain", [images["webp_lossless"], images["avif"]] * 2, 4)
    for kind, answers in found.items():
        print(kind, dict(answers))
        assert set(answers) <= {200, 413, 503}, (kind, answers)
    (tmp_path / "a.zip").write_bytes(zipped([(str(place), images["webp_lossless"]) for place in range(8)]))
    client = Client(server.address, verbose=False)
    rows = client.predict([handle_file(tmp_path / "a.zip")], api_name="/predict_batch")["rows"]
    assert {row["code"] for row in rows} <= {None, "image_too_large", "overloaded", "waited_too_long"}
    print(f"peak {memory.peak_bytes / MEBIBYTE:.0f} MiB, limited: {memory.limited}")
    assert server.workers() == workers
    assert memory.peak_bytes < LIMIT_BYTES
    assert statuses(server, "/predict", [CAT] * 20, 4) == {200: 20}
