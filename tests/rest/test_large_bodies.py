"""Bodies over a real connection: one that is too large is refused while it arrives, and none is taken for another."""

from __future__ import annotations

import http.client
import select
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest

from cifar import CLASS_NAMES
from cifar.settings import ROOT


def slow_upload(server: str, path: str, *, announce: int | None, send: int) -> tuple[int, int]:
    """Send up to `send` bytes in pieces. Returns the status, and the number of bytes sent before the answer came."""
    connection = http.client.HTTPConnection(httpx2.URL(server).host, httpx2.URL(server).port, timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader(*(("Content-Length", str(announce)) if announce else ("Transfer-Encoding", "chunked")))
    connection.endheaders()
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    piece = b"x" * 2**18
    sent = 0
    with suppress(OSError):  # the server has answered and closed the connection
        for chunk in [head, *([piece] * (send // len(piece)))]:
            if select.select([connection.sock], [], [], 0.002)[0]:
                break
            connection.sock.sendall(chunk if announce else b"%x\r\n%s\r\n" % (len(chunk), chunk))
            sent += len(chunk)
    status = connection.getresponse().status
    connection.close()
    return status, sent


@pytest.mark.parametrize("path", ["/predict", "/gradio_api/upload"])
@pytest.mark.parametrize("announced", [True, False], ids=["content_length", "chunked"])
def test_a_body_of_50_mb_is_refused_before_it_is_read_completely(server, path, announced):
    """The 413 comes at once with a Content-Length, and otherwise when the limit is passed."""
    size = 50 * 2**20
    status, sent = slow_upload(server, path, announce=size if announced else None, send=size)
    assert status == 413
    assert sent < (5 if announced else 25) * 2**20


@pytest.mark.slow
def test_concurrent_requests_get_the_answers_to_their_own_images(server):
    """96 requests over 8 connections."""
    payloads = [(ROOT / "examples" / f"{name}.jpg").read_bytes() for name in CLASS_NAMES]

    def ask(i: int) -> tuple[int, str]:
        response = httpx2.post(f"{server}/predict", files={"image": payloads[i % 10]}, timeout=60)
        return i % 10, response.json()["predicted_class"]

    with ThreadPoolExecutor(8) as pool:
        for i, label in pool.map(ask, range(96)):
            assert label == CLASS_NAMES[i]
