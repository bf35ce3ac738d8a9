"""Bodies over a real connection that are too large: they are refused while they arrive."""

from __future__ import annotations

import http.client
import select
from contextlib import suppress

import httpx2
import pytest


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
