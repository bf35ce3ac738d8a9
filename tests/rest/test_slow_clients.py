"""Clients that send or read slowly, or more than a request: each holds little, and not for long. Without nginx, nothing else stops them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from support.servers import free_port
from support.waiting import until

from cifar.serving.asgi import read_body
from cifar.serving.process import http_protocol
from cifar.serving.process.http_protocol import HttpProtocol

LARGE = b"x" * 20_000_000
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
ONE = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and answer with the names of the headers, or with 20 MB."""
    body = await read_body(receive)
    answer = LARGE if scope["path"] == "/large" else b"%d bytes, %d headers" % (len(body), len(scope["headers"]))
    length = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture
def server(monkeypatch) -> Iterator[uvicorn.Server]:
    """A server whose limits of time are a hundredth of the real ones."""
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(http_protocol, "READ_SECONDS", 0.3)
    config = uvicorn.Config(app, http=HttpProtocol, log_config=None, port=free_port(), lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join()


def connected(server: uvicorn.Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.config.port), timeout=20)


def received(connection: socket.socket) -> bytes:
    """Return all that the server sends until it closes the connection."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


@pytest.mark.parametrize(("head", "answers"), [(b"", 0), (HEAD, 1)], ids=["nothing", "half a head"])
def test_a_head_that_does_not_come_is_refused(server, head, answers):
    """A thousand such connections were still there after 20 seconds."""
    with connected(server) as connection:
        connection.sendall(head)
        assert received(connection).count(b"HTTP/1.1 408 ") == answers


@pytest.mark.parametrize(
    "request_", [HEAD + b"Content-Length: 60000\r\n\r\nabc", CHUNKED], ids=["content_length", "chunked"]
)
def test_a_body_that_does_not_come_is_refused(server, request_):
    """It would hold its connection, and its part of the memory for bodies, for ever."""
    with connected(server) as connection:
        connection.sendall(request_)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_too_slow"' in answer


def test_a_slow_body_that_makes_progress_is_read(server, monkeypatch):
    """Phones on a bad line send for minutes."""
    monkeypatch.setattr(http_protocol, "BODY_BYTES", 1000)
    with connected(server) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: 40000\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"y" * 2000)
            time.sleep(0.05)
        assert b"40000 bytes" in received(connection)


@pytest.mark.parametrize("requests", [ONE, ONE * 2], ids=["one", "two"])
def test_an_answer_that_nobody_reads_is_given_up(server, requests):
    """Each one holds its bytes and a file descriptor."""
    with connected(server) as connection:
        connection.sendall(requests)
        until(lambda: server.server_state.connections)
        until(lambda: not server.server_state.connections)
        assert len(received(connection)) < len(LARGE)


@pytest.mark.parametrize("trailer", [b"a: b\r\n", b"a: " + b"b" * 60_000 + b"\r\n", b"b" * 60_000], ids=len)
def test_trailers_are_not_kept(server, trailer):
    """A megabyte of them held the event loop for 0.2 seconds, and all of them stayed in memory."""
    with connected(server) as connection:
        connection.sendall(CHUNKED + b"0\r\n")
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(trailer * (1 + 60_000 // len(trailer)))
                sent += 60_000
        except OSError:
            pass
    assert sent < 20_000_000


def test_a_trailer_does_not_become_a_header(server):
    """It comes after the checks of the headers, such as the sign-in."""
    with connected(server) as connection:
        connection.sendall(
            HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Api-Key: k\r\n\r\n"
        )
        assert b"3 bytes, 3 headers" in received(connection)


def test_a_packet_of_thousands_of_requests_is_refused(server):
    """It held the event loop for seconds, and 200 MB for its 15,000 requests."""
    with connected(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 3000)
        assert received(connection).count(b"HTTP/1.1 200") <= http_protocol.MAX_PIPELINED
