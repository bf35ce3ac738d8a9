"""A cookie for the page's visitors, so that the same version answers them each time, whatever address they come from."""

from __future__ import annotations

import secrets

from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.serving.asgi import with_headers
from cifar.serving.auth.principal import VISITOR_COOKIE, visitor_id

_LIFETIME_SECONDS = 90 * 24 * 3600


class VisitorCookie:
    """Gives who opens the page without the cookie a random one. It says nothing of them, and nothing is kept of it here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        opens_page = scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET"
        if opens_page and not visitor_id(scope):
            send = with_headers(send, [(b"set-cookie", _cookie(https=scope["scheme"] == "https").encode())])
        await self.app(scope, receive, send)


def _cookie(*, https: bool) -> str:
    value = f"{VISITOR_COOKIE}={secrets.token_hex(16)}; Path=/; Max-Age={_LIFETIME_SECONDS}; HttpOnly; SameSite=Lax"
    return value + ("; Secure" if https else "")
