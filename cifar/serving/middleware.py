"""What every request passes first, whoever answers it: a request id, and the limit on its body."""

from __future__ import annotations

import logging
import re
import secrets
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import OUR_FAULT, BodyTooLarge, CifarError

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_response(error: CifarError, request_id: str) -> JSONResponse:
    """The one shape of an error: a sentence, a stable code, and the id to ask about."""
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    body = {"error": str(error), "code": error.code, "request_id": request_id}
    return JSONResponse(body, status_code=error.status, headers=headers)


def any_error_response(error: Exception, request_id: str) -> JSONResponse:
    """The same for an error that nobody foresaw: the log has its trace, the caller its id."""
    if not isinstance(error, CifarError):
        log.error("request %s failed", request_id, exc_info=error)
        error = CifarError(OUR_FAULT)
    return error_response(error, request_id)


def header(scope: Scope, name: bytes) -> str:
    """A request's header, `name` in lower case; empty where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then what the server says (that the client left)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    """A `send` that adds headers, names in lower case, to an answer that does not have its own."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in headers if pair[0] not in own)]
        await send(message)

    return send_with


def closing(send: Send) -> Send:
    """Sends the answer as the last one of its connection."""
    return with_headers(send, [(b"connection", b"close")])


class RequestId:
    """Gives each request an id, the caller's when it is a harmless one, and sends it back as `X-Request-ID`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on under its id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                # another worker may have answered under the same id
                others = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message["headers"] = [*others, (b"x-request-id", request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """Answers 413 as soon as a body is known to be too large: by its Content-Length, else while it arrives."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = header(scope, b"content-length")
        if announced.isdecimal() and int(announced) > self.max_body_bytes:
            await self._refuse(scope, receive, send)
            return
        received = 0
        exceeded = started = False

        async def receive_limited() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                exceeded = True
                raise self._error()
            return message

        async def send_unless_exceeded(message: Message) -> None:
            # a reader may turn the exception into an answer of its own: ours takes its place
            nonlocal started
            if not exceeded:
                started = started or message["type"] == "http.response.start"
                await send(message)

        with suppress(BodyTooLarge):
            await self.app(scope, receive_limited, send_unless_exceeded)
        if exceeded and not started:
            await self._refuse(scope, receive, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body exceeds {self.max_body_bytes:,} bytes. Send a smaller image.")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(self._error(), scope["state"]["request_id"])
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)
