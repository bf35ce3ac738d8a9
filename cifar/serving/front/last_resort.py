"""The last handler of exceptions: none of them costs more than its own request."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import INTERNAL_ERROR, CifarError
from cifar.serving.asgi import error_response

log = logging.getLogger(__name__)


class LastResort:
    """Answers 500 where an exception left a request without an answer, and drops one that follows a complete answer.

    Starlette raises an exception again after its handler has answered. uvicorn would then close a connection that a proxy is
    about to use for somebody else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = complete = False

        async def send_noted(message: Message) -> None:
            nonlocal started, complete
            started = True
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except Exception:
            if started and not complete:
                raise  # the server must close the connection
            if not started:
                request_id = scope["state"]["request_id"]
                log.exception("request %s failed", request_id)
                await error_response(CifarError(INTERNAL_ERROR), request_id)(scope, receive, send)
