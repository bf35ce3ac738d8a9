"""HEAD requests, as load balancers and uptime monitors send them."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.serving.routes import rule_of


class Head:
    """Answers HEAD like GET, without the body. Streams are left out, since they would go on unseen."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or rule_of(scope["path"]).session:
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_head)
