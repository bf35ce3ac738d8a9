"""The first middleware: a request id for every request."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.records.values import REQUEST_ID
from cifar.serving.asgi import header


class RequestId:
    """Gives each request an id, taken from its `X-Request-ID` if that is a valid one, and returns it in that header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        chosen = header(scope, b"x-request-id")
        request_id = chosen if REQUEST_ID.fullmatch(chosen) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Another worker that answered the request has added the header already.
                others = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message["headers"] = [*others, (b"x-request-id", request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)
