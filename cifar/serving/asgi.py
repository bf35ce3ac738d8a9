"""Helpers that all ASGI code shares: the error response, reading a header, replaying a body, adding headers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from cifar.errors import CallerLeft, CifarError

CALLER_LEFT = "The client disconnected before the request was complete."

Endpoint = Callable[[Request], Awaitable[Response]]
"""A function that answers the requests of one route."""


def error_response(error: CifarError, request_id: str) -> JSONResponse:
    """Return the response to an error: a sentence, a stable code, and the request id to quote to the operator."""
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    body = {"error": str(error), "code": error.code, "request_id": request_id}
    return JSONResponse(body, status_code=error.status, headers=headers)


def header(scope: Scope | Message, name: bytes) -> str:
    """Return the value of a header of a request or of the head of an answer, `name` in lower case, or an empty string without that header."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


async def body_pieces(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises:
        CallerLeft: the client disconnected before the body was complete.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft(CALLER_LEFT)
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def read_body(receive: Receive) -> bytes:
    """Return the complete body.

    Raises:
        CallerLeft: see `body_pieces`.
    """
    pieces = [piece async for piece in body_pieces(receive)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` for a body that has been read: `body` is its first message, and the next ones come from `receive`."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def with_headers(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    """Return a `send` that adds headers, names in lower case, to an answer. It replaces none that the answer has."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in headers if pair[0] not in own)]
        await send(message)

    return send_with
