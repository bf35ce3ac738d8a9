"""Helpers shared by all ASGI code here: the error response, reading a header, replaying a body, adding headers."""

from __future__ import annotations

import logging

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from cifar.errors import INTERNAL_ERROR, CifarError

log = logging.getLogger(__name__)


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
        error = CifarError(INTERNAL_ERROR)
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
