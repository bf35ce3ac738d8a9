"""The last middleware before the routes: a limit on the size of the request body."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import BodyTooLarge
from cifar.serving.asgi import error_response, header
from cifar.serving.routes import rule_of

_DRAIN_BYTES = 100 * 1024**2
_DRAIN_SECONDS = 5.0
"""The rest of a refused body is read and dropped up to these limits. Clients that send before they read would see a reset
connection instead of the answer."""


class BodyLimit:
    """Answers 413 to a body that is too large: at once if `Content-Length` says so, else when it exceeds the limit.

    The limit is that of the route in `serving.routes`, or else the one of the settings.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = rule_of(scope["path"]).max_body_bytes or self.max_body_bytes
        announced = header(scope, b"content-length")
        if announced.isdecimal() and int(announced) > limit:
            await _refuse(limit, scope, receive, send)
            return
        if announced.isdecimal() and not header(scope, b"transfer-encoding"):  # the server counts these bytes
            await self.app(scope, receive, send)
            return
        received = 0
        exceeded = started = False

        async def receive_limited() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                raise _error(limit)
            return message

        async def send_unless_exceeded(message: Message) -> None:
            # The app may turn the exception into an answer of its own; ours replaces it.
            nonlocal started
            if not exceeded:
                started = started or message["type"] == "http.response.start"
                await send(message)

        with suppress(BodyTooLarge):
            await self.app(scope, receive_limited, send_unless_exceeded)
        if exceeded and not started:
            await _refuse(limit, scope, receive, send)


def _error(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request's body exceeds {limit:,} bytes, the limit of this route. Send less.")


async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(_error(limit), scope["state"]["request_id"])
    response.headers["Connection"] = "close"

    async def send_then_drain(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await _drain(receive)
        await send({"type": "http.response.body", "body": b""})

    await response(scope, receive, send_then_drain)


async def _drain(receive: Receive) -> None:
    dropped = 0
    while dropped < _DRAIN_BYTES:
        message = await receive()
        if not message.get("more_body"):
            return
        dropped += len(message["body"])
