"""`cifar.training.data.download`, against real HTTP servers on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cifar.errors import DataError
from cifar.training.data.download import fetch_cifar10

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class WholeFile(BaseHTTPRequestHandler):
    """Delivers the file, from the byte asked for."""

    content = CONTENT
    ranges: list[str]

    def do_GET(self):
        wanted = self.headers.get("Range", "")
        type(self).ranges.append(wanted)
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", wanted)) else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.deliver(start)

    def deliver(self, start):
        self.wfile.write(self.content[start:])

    def log_message(self, *_):
        pass


class HangsUpHalfway(WholeFile):
    """Closes the connection after half of what is missing."""

    def deliver(self, start):
        self.wfile.write(self.content[start : (start + len(self.content)) // 2])


class Trickles(WholeFile):
    """Delivers a few bytes a second, for as long as anybody listens."""

    def deliver(self, start):
        for at in range(start, start + 1000):
            self.wfile.write(self.content[at : at + 1])
            time.sleep(0.05)


class AnotherFile(WholeFile):
    """Delivers something else of the same length."""

    content = CONTENT[::-1]


class NotFound(WholeFile):
    """Has no such file."""

    def do_GET(self):
        self.send_error(404)


@contextmanager
def host(behaviour):
    """A server that behaves so; yields its address and the ranges it was asked for."""
    handler = type(behaviour.__name__, (behaviour,), {"ranges": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file", handler.ranges
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"download_stall_seconds": 0.5, "download_min_bytes_per_second": 10_000})


def test_a_good_host_fills_the_cache_where_keras_looks_and_is_asked_once(settings):
    """The second call reads the cache."""
    with host(WholeFile) as (url, ranges):
        path = fetch_cifar10(settings, hosts=[url], expected_sha256=SHA256)
        assert path == fetch_cifar10(settings, hosts=[url], expected_sha256=SHA256)
    assert path.name == "cifar-10-batches-py-target_archive"
    assert path.read_bytes() == CONTENT
    assert len(ranges) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bad", [HangsUpHalfway, Trickles, AnotherFile, NotFound])
def test_a_bad_host_is_given_up_for_the_next(settings, bad):
    """Whatever is wrong with the first, the file is whole in the end."""
    with host(bad) as (first, _), host(WholeFile) as (second, _):
        path = fetch_cifar10(settings, hosts=[first, second], expected_sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert not path.with_name(f"{path.name}.part").exists()


def test_an_interrupted_download_goes_on_where_it_stopped(settings):
    """The next command asks for the missing bytes alone."""
    with host(HangsUpHalfway) as (url, _), pytest.raises(DataError, match="goes on where it stopped"):
        fetch_cifar10(settings, hosts=[url], expected_sha256=SHA256)
    with host(WholeFile) as (url, ranges):
        fetch_cifar10(settings, hosts=[url], expected_sha256=SHA256)
    assert ranges == [f"bytes={len(CONTENT) // 2}-"]


def test_a_half_download_is_never_taken_for_a_whole_one(settings):
    """Until the checksum is right, there is no file of that name."""
    with host(HangsUpHalfway) as (url, _), pytest.raises(DataError, match=r"127\.0\.0\.1: .*bytes"):
        fetch_cifar10(settings, hosts=[url], expected_sha256=SHA256)
    assert [path.name for path in settings.data_cache.iterdir()] == ["cifar-10-batches-py-target_archive.part"]


def test_what_a_wrong_host_began_is_not_held_against_a_good_one(settings):
    """Half of another file lies there; the good host delivers all of it once more."""
    settings.data_cache.mkdir(parents=True)
    (settings.data_cache / "cifar-10-batches-py-target_archive.part").write_bytes(b"wrong" * 1000)
    with host(WholeFile) as (url, ranges):
        assert fetch_cifar10(settings, hosts=[url], expected_sha256=SHA256).read_bytes() == CONTENT
    assert ranges == ["bytes=5000-", ""]


def test_offline_says_what_each_host_answered_and_two_ways_out(settings):
    """No network is no stack trace."""
    with pytest.raises(DataError, match="could not be fetched") as caught:
        fetch_cifar10(settings, hosts=["http://127.0.0.1:1/file", "http://127.0.0.1:2/file"], expected_sha256=SHA256)
    assert str(caught.value).count("127.0.0.1: ") == 2
    assert "--data PATH" in str(caught.value)


def test_a_wrong_file_in_the_cache_is_named(settings):
    """A cache that somebody else filled is checked too."""
    settings.data_cache.mkdir(parents=True)
    (settings.data_cache / "cifar-10-batches-py-target_archive").write_bytes(b"something")
    with pytest.raises(DataError, match=r"target_archive is not CIFAR-10: its SHA-256 is wrong. Remove it"):
        fetch_cifar10(settings, hosts=[], expected_sha256=SHA256)


def test_two_wrong_hosts_leave_nothing_behind(settings):
    """A file with another checksum is not kept to be appended to."""
    with host(AnotherFile) as (url, _), pytest.raises(DataError, match="another SHA-256"):
        fetch_cifar10(settings, hosts=[url, url], expected_sha256=SHA256)
    assert list(settings.data_cache.iterdir()) == []
