"""uvicorn's HTTP protocol with limits on the size of heads and on slow clients. It also reads the body of a request that offers an upgrade."""

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
from cifar.serving.process.worker_slot import Connections

MAX_HEAD_BYTES = 32 * 1024
"""Largest request line and headers together. Browsers and proxies keep below 16 kB."""
HEAD_SECONDS = 10.0
"""Time in which a new connection, or one that has begun a request, must send the whole head."""
BODY_SECONDS = 20.0
BODY_BYTES = 64 * 1024
"""Bytes of an unfinished body that must arrive in each `BODY_SECONDS`."""
READ_SECONDS = 30.0
"""Time in which a client must read the part of a response that is waiting to be sent."""
MAX_PIPELINED = 64
"""Pipelined requests of one connection that wait for the response to an earlier one. One packet can hold 10,000."""
_FRAMING = 8
"""Allowed bytes of chunk sizes and line ends for each byte of a body."""


class HttpProtocol(HttpToolsProtocol):
    """Refuses a request that is too slow or whose head is too large, and ignores an offer to upgrade to another protocol.

    httptools takes a request with the header `Upgrade` as complete after its head. Java's client offers HTTP/2 in its first request,
    which may have a body. A server may ignore the offer (RFC 9110, 7.8), so a new parser reads that body.
    """

    _head_bytes = 0
    _reading_head = True
    _repeating_head = False
    """A new parser reads a head that stands for the one that was read already."""
    _body_bytes = 0
    _framing_bytes = 0
    """Bytes of the request after its head that are no body: chunk sizes and trailers."""
    _trailer_bytes = 0
    _checked_bytes = 0
    """Bytes of the body at the last check of its progress."""
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
        """Let a new parser read the body and what follows it. The parser gets a head first, whose events are ignored."""
        framing = [pair for pair in self.headers if pair[0] in {b"content-length", b"transfer-encoding"}]
        head = b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in framing) + b"\r\n"
        self.headers[:] = [pair for pair in self.headers if pair[0] not in {b"connection", b"upgrade"}]
        self.cycle.more_body = True  # the first parser has ended the request
        self._reading_head = False
        self.parser = httptools.HttpRequestParser(self)
        self._repeating_head = True
        self._feed(head)
        self._repeating_head = False
        self._feed(rest)

    def on_message_begin(self) -> None:
        if not self._repeating_head:
            self._reading_head = True
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._repeating_head:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._repeating_head:
            return
        if self._reading_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)  # a trailer: it must not be added to the headers
        if self._trailer_bytes > MAX_HEAD_BYTES:
            raise _too_large()

    def on_headers_complete(self) -> None:
        if self._repeating_head:
            return
        self._stop_timer()
        self._reading_head = False
        self._head_bytes = self._body_bytes = self._framing_bytes = self._trailer_bytes = self._checked_bytes = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            raise BadRequest("There are too many requests that wait for their turn on this connection.")
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _too_large()
        super().on_headers_complete()
        if isinstance(self.connections, Connections) and not self.pipeline and self.connections.gives_one_away():
            self.cycle.keep_alive = False

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
        if self.flow.read_paused or self._body_bytes - self._checked_bytes >= BODY_BYTES:
            self._checked_bytes = self._body_bytes
            self._timer = self.loop.call_later(BODY_SECONDS, self._end_slow_body)
            return
        self._refuse(
            RequestTooSlow(
                f"The body of the request brought less than {BODY_BYTES:,} bytes in {BODY_SECONDS:g} seconds."
            )
        )

    def _refuse(self, error: CifarError) -> None:
        """Answer with an error and close the connection. If an earlier request still waits for its response, only close it."""
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
    """While `server` shuts down, close the connections that are still open after this time. The stream of a page never ends by itself.

    Each request ends as if its client had disconnected. uvicorn's own timeout would cancel its task, which logs a traceback.
    """

    def hang_up() -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    timer = asyncio.get_running_loop().call_later(after_seconds, hang_up)
    try:
        yield
    finally:
        timer.cancel()
