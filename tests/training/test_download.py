"""`cifar.training.data.download` with real HTTP servers on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifar.errors import DataError
from cifar.training.data.download import fetch_cifar10

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class WholeFile(BaseHTTPRequestHandler):
    """Delivers the file from the requested byte on."""

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
    """Closes the connection after half of the requested bytes."""

    def deliver(self, start):
        self.wfile.write(self.content[start : (start + len(self.content)) // 2])


class Trickles(WholeFile):
    """Delivers a few bytes a second."""

    def deliver(self, start):
        for at in range(start, start + 1000):
            self.wfile.write(self.content[at : at + 1])
            time.sleep(0.05)


class AnotherFile(WholeFile):
    """Delivers another file of the same length."""

    content = CONTENT[::-1]


class NotFound(WholeFile):
    """Answers 404."""

    def do_GET(self):
        self.send_error(404)


@contextmanager
def host(behaviour):
    """Run a server with this behaviour; yields its address and the requested ranges."""
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
def cache(tmp_path):
    return tmp_path / "cache"


def fetch(cache: Path, *hosts: str) -> Path:
    return fetch_cifar10(cache, hosts=hosts, expected_sha256=SHA256, stall_seconds=0.5)


def test_the_file_is_downloaded_once_to_the_name_that_keras_uses(cache):
    """The second call uses the cached file."""
    with host(WholeFile) as (url, ranges):
        path = fetch(cache, url)
        assert path == fetch(cache, url)
    assert path.name == "cifar-10-batches-py-target_archive"
    assert path.read_bytes() == CONTENT
    assert len(ranges) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bad", [HangsUpHalfway, Trickles, AnotherFile, NotFound])
def test_a_bad_host_is_abandoned_for_the_next(cache, bad):
    """Whatever the first host does wrong, the result is the complete file."""
    with host(bad) as (first, _), host(WholeFile) as (second, _):
        path = fetch(cache, first, second)
    assert path.read_bytes() == CONTENT
    assert not path.with_name(f"{path.name}.part").exists()


def test_an_interrupted_download_continues_where_it_stopped(cache):
    """The next command requests only the missing bytes. An incomplete file does not get the final name."""
    message = r"127\.0\.0\.1: .*bytes.*continues where it stopped"
    with host(HangsUpHalfway) as (url, _), pytest.raises(DataError, match=message):
        fetch(cache, url)
    assert [path.name for path in cache.iterdir()] == ["cifar-10-batches-py-target_archive.part"]
    with host(WholeFile) as (url, ranges):
        fetch(cache, url)
    assert ranges == [f"bytes={len(CONTENT) // 2}-"]


def test_a_wrong_partial_file_is_replaced_by_a_good_host(cache):
    """If the partial file came from a bad host, a good host delivers everything again."""
    cache.mkdir(parents=True)
    (cache / "cifar-10-batches-py-target_archive.part").write_bytes(b"wrong" * 1000)
    with host(WholeFile) as (url, ranges):
        assert fetch(cache, url).read_bytes() == CONTENT
    assert ranges == ["bytes=5000-", ""]


def test_without_network_the_error_lists_the_hosts_and_two_alternatives(cache):
    """A missing network must not end in a traceback."""
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        fetch(cache, "http://127.0.0.1:1/file", "http://127.0.0.1:2/file")
    assert str(caught.value).count("127.0.0.1: ") == 2
    assert "--data PATH" in str(caught.value)


def test_a_wrong_file_in_the_cache_is_reported(cache):
    """The checksum is also checked for files that are in the cache already."""
    cache.mkdir(parents=True)
    (cache / "cifar-10-batches-py-target_archive").write_bytes(b"something")
    with pytest.raises(DataError, match=r"target_archive is not CIFAR-10: its SHA-256 is wrong. Remove it"):
        fetch(cache)


def test_two_wrong_hosts_leave_no_file(cache):
    """A file with a wrong checksum is not kept as the start of the next download."""
    with host(AnotherFile) as (url, _), pytest.raises(DataError, match="another SHA-256"):
        fetch(cache, url, url)
    assert list(cache.iterdir()) == []
