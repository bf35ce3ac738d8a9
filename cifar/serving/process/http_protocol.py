"""uvicorn's HTTP protocol with limits on the head of a request, and without its trouble with `Upgrade`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import cast

import httptools
from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cifar.errors import BadRequest, CifarError, HeadTooLarge, HeadTooSlow
from cifar.serving.asgi import error_response

MAX_HEAD_BYTES = 32 * 1024
"""Largest request line and headers together. Browsers and proxies keep below 16 kB."""
HEAD_SECONDS = 10.0
"""Time in which a new connection, or one that has begun a request, must send the whole head."""


class HttpProtocol(HttpToolsProtocol):
    """Answers a head that is too large or too slow with an error, and ignores an offer to change the protocol.

    httptools ends a request with `Upgrade` at its head. Java's client offers HTTP/2 with its first request, and the server
    may ignore that (RFC 9110, 7.8); so its body is read by a new parser.
    """

    _head_bytes = 0
    _reading_head = True
    _continuing = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._reading_head:
            self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause if isinstance(cause, HeadTooLarge) else BadRequest(f"This is no valid HTTP request: {error}.")
            )
            return
        if self._reading_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_large())
            elif self._head_bytes and self._head_timer is None:
                self._start_timer()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._continue_without_upgrade(data[cast("int", upgrade.args[0]) :])

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Let a new parser read the body and what follows it. Its own events for the head are ignored."""
        framing = [pair for pair in self.headers if pair[0] in {b"content-length", b"transfer-encoding"}]
        head = b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in framing) + b"\r\n"
        self.headers[:] = [pair for pair in self.headers if pair[0] not in {b"connection", b"upgrade"}]
        self.cycle.more_body = True  # the first parser has ended the request
        self.parser = httptools.HttpRequestParser(self)
        self._continuing = True
        self._feed(head)
        self._continuing = False
        self._feed(rest)

    def on_message_begin(self) -> None:
        if not self._continuing:
            self._reading_head = True
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._continuing:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._continuing:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._continuing:
            return
        self._stop_timer()
        self._reading_head = False
        self._head_bytes = 0
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _too_large()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._reading_head = True

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._end_slow_head)

    def _stop_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        if self._head_bytes:
            self._refuse(HeadTooSlow(f"The head of the request did not come within {HEAD_SECONDS:g} seconds."))
        else:
            self.transport.close()

    def _refuse(self, error: CifarError) -> None:
        """Answer a request that cannot be passed to the app, and close the connection."""
        body = bytes(error_response(error, secrets.token_hex(16)).body)
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The head of the request exceeds {MAX_HEAD_BYTES:,} bytes. Send fewer or shorter headers.")


@contextmanager
def hanging_up(server: Server, *, after_seconds: float) -> Iterator[None]:
    """Close the connections that are still open after this time, while `server` shuts down. A page's stream never ends by itself.

    Each request ends as if its client had left: a task that uvicorn's own timeout cancels would end with a trace.
    """

    def hang_up() -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    timer = asyncio.get_running_loop().call_later(after_seconds, hang_up)
    try:
        yield
    finally:
        timer.cancel()
