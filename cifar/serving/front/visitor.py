"""A signed random cookie for visitors of the page, so that the same version of the model answers each of their requests."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from contextlib import suppress
from functools import cached_property

from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.records.key import records_key
from cifar.serving.asgi import header, with_headers
from cifar.settings import Settings

COOKIE = "cifar_user"
_LIFETIME_SECONDS = 90 * 24 * 3600
_SIGNED_ID = re.compile(rf"(?:^|; ?){COOKIE}=(([0-9a-f]{{32}})\.[0-9a-f]{{32}})(?:;|$)")
_KEY_OF_THIS_SERVER = secrets.token_bytes(32)
"""The key if there is no lasting one. gunicorn imports this module before it forks, so its workers share it."""


class VisitorCookie:
    """Sets a random visitor cookie on the first visit of the page, and puts the visitor of later requests into `scope["state"]`.

    The value is anonymous and is not stored here. Its signature shows that it was issued here: an invented one is ignored, so that
    a program cannot pose as many users, and then the address decides.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            visitor = self._visitor_of(scope)
            if visitor:
                scope["state"]["visitor"] = visitor
            elif scope["path"] == "/" and scope["method"] == "GET":
                cookie = self._new_cookie(https=scope["scheme"] == "https")
                send = with_headers(send, [(b"set-cookie", cookie.encode())])
        await self.app(scope, receive, send)

    def _visitor_of(self, scope: Scope) -> str:
        found = _SIGNED_ID.search(header(scope, b"cookie"))
        return found[2] if found and hmac.compare_digest(found[1], self.signed(found[2])) else ""

    def _new_cookie(self, *, https: bool) -> str:
        value = self.signed(secrets.token_hex(16))
        path = self._settings.path or "/"
        value = f"{COOKIE}={value}; Path={path}; Max-Age={_LIFETIME_SECONDS}; HttpOnly; SameSite=Lax"
        return value + ("; Secure" if https else "")

    def signed(self, visitor: str) -> str:
        """Return the value of the cookie of a visitor, whose id has 32 hexadecimal digits."""
        return f"{visitor}.{hmac.digest(self._key, visitor.encode(), 'sha256').hex()[:32]}"

    @cached_property
    def _key(self) -> bytes:
        """The key, from the first that there is: `traffic_secret`, the key of the records, one of this server."""
        key = _KEY_OF_THIS_SERVER
        if self._settings.traffic_secret:
            key = self._settings.traffic_secret.get_secret_value().encode()
        elif self._settings.records:
            with suppress(OSError):  # the recorder reports it
                key = records_key(self._settings)
        return hashlib.blake2b(b"visitor cookie " + key, digest_size=32).digest()
