"""uvicorn's HTTP protocol with limits on what a client sends and on how slowly it sends and reads, and without its trouble with `Upgrade`."""

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

from cifar.errors import BadRequest, CifarError, HeadTooLarge, RequestTooSlow
from cifar.serving.asgi import error_response

MAX_HEAD_BYTES = 32 * 1024
"""Largest request line and headers together. Browsers and proxies keep below 16 kB."""
HEAD_SECONDS = 10.0
"""Time in which a new connection, or one that has begun a request, must send the whole head."""
BODY_SECONDS = 20.0
BODY_BYTES = 64 * 1024
"""In each `BODY_SECONDS`, an unfinished body must bring this much."""
READ_SECONDS = 30.0
"""Time in which a client must read the part of an answer that waits for it."""
MAX_PIPELINED = 64
"""Requests of a connection that wait for the answer to the one before. One packet can hold 10,000."""
_FRAMING = 8
"""Bytes of chunk sizes and line ends for each byte of a body."""


class HttpProtocol(HttpToolsProtocol):
    """Answers a request that is too slow, or whose head is too large, with an error, and ignores an offer to change the protocol.

    httptools ends a request with `Upgrade` at its head. Java's client offers HTTP/2 with its first request, and the server
    may ignore that (RFC 9110, 7.8); so its body is read by a new parser.
    """

    _head_bytes = 0
    _reading_head = True
    _continuing = False
    _body_bytes = 0
    _framing_bytes = 0
    """Bytes of the request after its head that are no body: chunk sizes and trailers."""
    _trailer_bytes = 0
    _earlier_bytes = 0
    """Of the body, at the last look at its progress."""
    _timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._end_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._reading_head:
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause if isinstance(cause, HeadTooLarge) else BadRequest(f"This is no valid HTTP request: {error}.")
            )
            return
        if self._head_bytes > MAX_HEAD_BYTES or self._framing_bytes > MAX_HEAD_BYTES + _FRAMING * self._body_bytes:
            self._refuse(_too_large())
        elif self._timer is None and self._reading_head and self._head_bytes:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._end_slow_head)
        elif self._timer is None and not self._reading_head:
            self._timer = self.loop.call_later(BODY_SECONDS, self._end_slow_body)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                self._reading_head, self._head_bytes = True, 0  # the other protocol has its own limits
            else:
                self._continue_without_upgrade(data[cast("int", upgrade.args[0]) :])

    def _continue_without_upgrade(self, rest: bytes) -> None:
        """Let a new parser read the body and what follows it. Its own events for the head are ignored."""
        framing = [pair for pair in self.headers if pair[0] in {b"content-length", b"transfer-encoding"}]
        head = b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in framing) + b"\r\n"
        self.headers[:] = [pair for pair in self.headers if pair[0] not in {b"connection", b"upgrade"}]
        self.cycle.more_body = True  # the first parser has ended the request
        self._reading_head = False
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
        if self._continuing:
            return
        if self._reading_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)  # a trailer, which nobody here reads, must not join the headers
        if self._trailer_bytes > MAX_HEAD_BYTES:
            raise _too_large()

    def on_headers_complete(self) -> None:
        if self._continuing:
            return
        self._stop_timer()
        self._reading_head = False
        self._head_bytes = self._body_bytes = self._framing_bytes = self._trailer_bytes = self._earlier_bytes = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise BadRequest("There are too many requests that wait for their turn on this connection.")
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _too_large()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._framing_bytes = max(0, self._framing_bytes - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_timer()
        self._reading_head = True
        self._framing_bytes = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        self._stop_read_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() and self._read_timer is None:  # it closes when the client has read the answer
            self._start_read_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_read_timer()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _start_read_timer(self) -> None:
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None

    def _end_slow_head(self) -> None:
        if self._head_bytes:
            self._refuse(RequestTooSlow(f"The head of the request did not come within {HEAD_SECONDS:g} seconds."))
        else:
            self.transport.close()

    def _end_slow_body(self) -> None:
        """End a request whose body makes no progress, unless the server itself has paused reading it."""
        if self.flow.read_paused or self._body_bytes - self._earlier_bytes >= BODY_BYTES:
            self._earlier_bytes = self._body_bytes
            self._timer = self.loop.call_later(BODY_SECONDS, self._end_slow_body)
            return
        self._refuse(
            RequestTooSlow(
                f"The body of the request brought less than {BODY_BYTES:,} bytes in {BODY_SECONDS:g} seconds."
            )
        )

    def _refuse(self, error: CifarError) -> None:
        """Answer a request that cannot be passed on, and close the connection: only that where an earlier answer is due first."""
        self._stop_timer()
        unanswered = self.cycle is not None and not self.cycle.response_complete
        is_of_body = not self._reading_head and unanswered and not self.pipeline and not self.cycle.response_started
        if not unanswered or is_of_body:
            self._write(error)
        self.transport.close()
        self._start_read_timer()

    def _write(self, error: CifarError) -> None:
        body = bytes(error_response(error, secrets.token_hex(16)).body)
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)


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
