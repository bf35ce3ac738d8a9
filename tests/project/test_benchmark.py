"""`benchmarks/`: distinct pictures, and ratios within a round. Wrong ones would make every published figure wrong."""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from support.servers import need

from benchmarks import load
from benchmarks.load import FORM, LOADS, Load, encoded, picture
from benchmarks.request_profile import part
from benchmarks.serving import Tables
from cifar.images.screening import excess


class BodyRecorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        assert self.headers["Content-Type"] == FORM
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def bodies(monkeypatch):
    """The bodies that a server has received. The load is sent to it."""
    need("wrk")
    with ThreadingHTTPServer(("127.0.0.1", 0), BodyRecorder) as server:
        server.bodies = []
        server.handle_error = lambda *_: None  # wrk closes its connections at the end, with an answer under way
        monkeypatch.setattr(load, "URL", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever).start()
        yield server.bodies
        server.shutdown()


@pytest.mark.slow
def test_no_jpeg_is_sent_twice_and_each_can_be_decoded(bodies, tmp_path):
    """A cache would answer a repeated file, and a damaged one would be refused: neither measures the model."""
    jpeg = Load("JPEG", 48, 40, "JPEG", 3)
    jpeg.write(tmp_path)
    figures = [jpeg.drive(4, 1), jpeg.drive(1, 1)]
    assert len(bodies) >= sum(row["requests"] for row in figures) > 20
    assert len(set(bodies)) == len(bodies)
    assert [row["errors"] for row in figures] == [0, 0]
    for body in bodies[:5]:
        image = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        with Image.open(io.BytesIO(image)) as photo:
            assert photo.resize((8, 8)).size == (8, 8)  # decodes it
        assert not excess(image)


@pytest.mark.slow
def test_a_png_is_sent_again_only_after_all_others(bodies, tmp_path):
    """A PNG has no serial number: the pictures in between, across runs of wrk too, push its answer out of a cache for 1,000 images."""
    png = Load("PNG", 8, 8, "PNG", 300)
    png.write(tmp_path)
    for _ in range(2):
        png.drive(1, 1)
    assert len(bodies) > 300
    turns: dict[bytes, list[int]] = defaultdict(list)
    for number, body in enumerate(bodies):
        turns[body].append(number)
    assert min(later - earlier for numbers in turns.values() for earlier, later in pairwise(numbers)) > 290


@pytest.mark.parametrize(("name", "least", "most"), [("32x32 PNG", 1_800, 3_200), ("512x512 JPEG", 40_000, 90_000)])
def test_pictures_are_the_same_in_every_run_and_as_large_as_photographs(name, least, most):
    """The time to receive and decode a file depends on its size."""
    width, height, file_format, _ = LOADS[name]
    one, same = (encoded(picture(np.random.default_rng(5), width, height), file_format) for _ in range(2))
    assert one == same
    assert least < len(one) < most
    assert encoded(picture(np.random.default_rng(6), width, height), file_format) != one


def test_a_ratio_is_taken_within_each_round():
    """A slow minute of the machine then changes both sides of a ratio."""
    speeds = {"mine": (10, 100, 1000), "theirs": (5, 25, 500)}
    rows = [{"system": name, "speed": value} for name, values in speeds.items() for value in values]
    tables = Tables(rows)
    assert tables.ratio("speed", "theirs", system="mine") == "2.00 (2.00..4.00)"
    assert tables.cell("speed", system="mine") == "100 (10..1000)"


def test_a_sample_of_the_profile_counts_for_the_part_that_called_the_library():
    """The table then names our code. Work of other threads is told apart, because the event loop waits for it."""
    frames = (
        "run (uvicorn/server.py:1);classify (cifar/serving/inference/classify.py:2);to_input (cifar/images/decode.py:3)"
    )
    assert part(f'thread (0x1): "MainThread";{frames};load (PIL/ImageFile.py:4)') == "decoding and resizing"
    assert part(f'thread (0x2): "decode_0";{frames};load (PIL/ImageFile.py:4)') == "decoding and resizing, in a thread"
