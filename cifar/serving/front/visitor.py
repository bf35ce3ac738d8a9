"""A random cookie for visitors of the page, so that the same version of the model answers each of their requests."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.serving.asgi import with_headers
from cifar.serving.auth.principal import VISITOR_COOKIE, visitor_id

_LIFETIME_SECONDS = 90 * 24 * 3600


class VisitorCookie:
    """Sets a random visitor cookie on the first visit of the page. The value is anonymous and is not stored here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opens_page = scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET"
        if opens_page and not visitor_id(scope):
            send = with_headers(send, [(b"set-cookie", _new_cookie(https=scope["scheme"] == "https").encode())])
        await self.app(scope, receive, send)


def _new_cookie(*, https: bool) -> str:
    value = f"{VISITOR_COOKIE}={secrets.token_hex(16)}; Path=/; Max-Age={_LIFETIME_SECONDS}; HttpOnly; SameSite=Lax"
    return value + ("; Secure" if https else "")
