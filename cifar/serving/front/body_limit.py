"""The last middleware before the routes: limits on the size of a request body, and of all bodies that arrive at the same time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import BodyTooLarge, CifarError, Overloaded
from cifar.serving.asgi import announced_bytes, error_response, header
from cifar.serving.auth.principal import rate_limit_key
from cifar.serving.process.shares import Shares
from cifar.serving.routes import rule_of

_DRAIN_BYTES = 100 * 1024**2
_DRAIN_SECONDS = 5.0
"""The rest of a refused body is read and dropped up to these limits. Clients that send before they read would see a reset
connection instead of the answer."""
_UNCOUNTED_BYTES = 64 * 1024
"""The server itself reads this much of a body before the app asks for it."""


class BodyLimit:
    """Answers 413 to a body that is too large: at once if `Content-Length` says so, else when it exceeds the limit.

    The limit is that of the route in `serving.routes`, or else the one of the settings. The answer is 503 when the bodies that are arriving
    take all the memory that they may. Bytes count from their arrival until the body is complete; from then on, `QueueSlots` counts its image.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, waiting_bytes: Shares) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self._waiting_bytes = waiting_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        rule = rule_of(scope["path"])
        limit = rule.max_body_bytes or self.max_body_bytes
        size = announced_bytes(scope)
        if size is not None and size > limit:
            await refuse(_too_large(limit), scope, receive, send)
        elif (
            size is not None
            and not header(scope, b"transfer-encoding")
            and (size <= _UNCOUNTED_BYTES or rule.to_disk)  # the server counts these bytes
        ):
            await self.app(scope, receive, send)
        else:
            waiting_bytes = None if rule.to_disk else self._waiting_bytes
            await self._count(scope, _Body(receive, limit, waiting_bytes, rate_limit_key(scope)), send)

    async def _count(self, scope: Scope, body: _Body, send: Send) -> None:
        started = False

        async def send_unless_refused(message: Message) -> None:
            # The app may turn the exception into an answer of its own; ours replaces it.
            nonlocal started
            if not body.refused:
                started = started or message["type"] == "http.response.start"
                await send(message)

        try:
            await self.app(scope, body.receive, send_unless_refused)
        except CifarError as error:
            if error is not body.refused:
                raise
        finally:
            body.release()
        if body.refused and not started:
            await refuse(body.refused, scope, body.receive_rest, send)


class _Body:
    """One body that is counted as it arrives."""

    def __init__(self, receive: Receive, limit: int, waiting_bytes: Shares | None, caller: str) -> None:
        self.refused: CifarError | None = None
        self.receive_rest = receive
        self._limit = limit
        self._waiting_bytes = waiting_bytes
        self._caller = caller
        self._received = self._counted = 0

    async def receive(self) -> Message:
        """Return the next part of the body. If it is one too many, raise an error, which is `refused` from then on."""
        message = await self.receive_rest()
        size = len(message.get("body", b""))
        self._received += size
        if self._received > self._limit:
            self.refused = _too_large(self._limit)
        elif not message.get("more_body"):
            self.release()
        elif self._waiting_bytes:
            if self._waiting_bytes.take(self._caller, size):
                self._counted += size
            else:
                self.refused = Overloaded("Request bodies take all the memory that they may. Try again in a moment.")
        if self.refused:
            raise self.refused
        return message

    def release(self) -> None:
        """Stop counting this body."""
        if self._waiting_bytes:
            self._waiting_bytes.give(self._caller, self._counted)
        self._counted = 0


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request's body exceeds {limit:,} bytes, the limit of this route. Send less.")


async def refuse(error: CifarError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error, and read the rest of the body, so that the client sees the answer."""
    response = error_response(error, scope["state"]["request_id"])
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
