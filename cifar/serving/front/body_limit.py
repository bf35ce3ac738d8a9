"""The last middleware before the routes: a limit on the size of the request body."""

from __future__ import annotations

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import BodyTooLarge
from cifar.serving.asgi import error_response, header


class BodyLimit:
    """Answers 413 to a body that is too large: at once if `Content-Length` says so, else when it exceeds the limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = header(scope, b"content-length")
        if announced.isdecimal() and int(announced) > self.max_body_bytes:
            await self._refuse(scope, receive, send)
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
            if received > self.max_body_bytes:
                exceeded = True
                raise self._error()
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
            await self._refuse(scope, receive, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body exceeds {self.max_body_bytes:,} bytes. Send a smaller image.")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(self._error(), scope["state"]["request_id"])
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)
