"""Sign-in: who may call what. Every request passes here before anything reads it; without a setting for it, none does.

Page, REST, Gradio's API, `/docs` and `/metrics` follow the one table below, by the path that the routers see. What is not
in it needs a caller, so a route that somebody adds is closed until it is written here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.dependency import Dependency
from cifar.errors import CifarError, InvalidCredentials, MissingScope, NotSignedIn
from cifar.serving.asgi import error_response, header
from cifar.serving.auth.api_keys import PREFIX, ApiKeys
from cifar.serving.auth.principal import SCOPES, Principal, make_principal
from cifar.settings import Settings

OPEN = "open to all"
BROWSERS = "open to all where people can sign in to the page"
ANY_CALLER = "any caller"

POLICY: tuple[tuple[str, str], ...] = (
    (r"/health|/healthz|/readyz", OPEN),
    (r"/signin|/signin/callback|/signout", BROWSERS),
    (r"/predict/?|/explain/?|/v1/.*", "predict"),
    (r"/gradio_api/.*", "predict"),  # calls, uploads, streams, MCP
    (r"/feedback(/.*)?", "feedback"),
    (r"/admin(/.*)?", "admin"),
    (r".*", ANY_CALLER),  # the page, its files, /docs, /openapi.json, /metrics
)
"""Path pattern, and what a caller needs; the first that fits the whole path counts. Methods make no difference."""

_COMPILED = tuple((re.compile(pattern, re.DOTALL), needs) for pattern, needs in POLICY)
MAX_TOKEN_CHARACTERS = 8192
"""Longest API key or bearer token that is checked."""
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_OWN_SITES = {"", "same-origin", "none"}

Verify = Callable[[str], Awaitable[Principal]]

_DOCUMENTED = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
"""Dependencies of a route that say in OpenAPI how to sign in to it. They refuse nobody: `SignIn` has done that."""


def documented(settings: Settings) -> list[Any]:
    """See `_DOCUMENTED`; none where nobody signs in."""
    return _DOCUMENTED if settings.signs_in else []


def needed(path: str) -> str:
    """What a caller needs to reach `path`."""
    return next(needs for pattern, needs in _COMPILED if pattern.fullmatch(path))


class SignIn:
    """Lets a request pass whose caller may do what it asks for, and notes the caller in `scope["state"]["principal"]`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: ApiKeys | None,
        bearer_token: Verify | None,
        people_scopes: list[str] | None,
    ) -> None:
        """Guard `app`.

        Args:
            app: what answers.
            api_keys: who keys belong to, or none are taken.
            bearer_token: tells who a JWT speaks for, or none are taken.
            people_scopes: what people with a session of the page may do, or there are no sessions.
        """
        self.app = app
        self._api_keys = api_keys
        self._bearer_token = bearer_token
        self._people_scopes = people_scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 or 403."""
        needs = needed(scope["path"])
        if needs == OPEN or (needs == BROWSERS and self._people_scopes is not None):
            await self.app(scope, receive, send)
            return
        try:
            who = await self._caller(scope)
            if needs in SCOPES and needs not in who.scopes:
                raise MissingScope(f"This needs the scope {needs}; {who.name} has {_listed(who.scopes)}.")
        except CifarError as error:
            await self._refuse(error, needs, scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = who
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Principal:
        """Who the request proves to be from. A key or token that does not hold is refused, whatever else comes with it."""
        keys, authorizations = _all(scope, b"x-api-key"), _all(scope, b"authorization")
        if len(keys) > 1 or len(authorizations) > 1:
            raise InvalidCredentials("Send one key or one token.")
        scheme, _, token = authorizations[0].partition(" ") if authorizations else ("", "", "")
        if keys:
            return await self._verified(keys[0], self._by_key)
        if scheme.lower() == "bearer":
            token = token.strip()
            return await self._verified(token, self._by_key if token.startswith(PREFIX) else self._bearer_token)
        if person := self._person(scope):
            return person
        raise NotSignedIn("Say who you are: Authorization: Bearer KEY-OR-TOKEN, or X-API-Key: KEY.")

    async def _verified(self, token: str, verify: Verify | None) -> Principal:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise InvalidCredentials(f"A key or token has at most {MAX_TOKEN_CHARACTERS:,} bytes.")
        if verify is None:
            raise InvalidCredentials("Bearer tokens other than API keys are not taken here.")
        return await verify(token)

    async def _by_key(self, key: str) -> Principal:
        if self._api_keys is None:
            raise InvalidCredentials("API keys are not taken here.")
        return self._api_keys.principal(key)

    def _person(self, scope: Scope) -> Principal | None:
        """The person whose session it is. Another site's page may not act in it, even where its cookie came along."""
        if self._people_scopes is None:
            return None
        if scope.get("method", "POST") not in _SAFE_METHODS and header(scope, b"sec-fetch-site") not in _OWN_SITES:
            return None
        subject = scope["session"].get("subject")
        return make_principal("oidc", subject, self._people_scopes) if subject else None

    async def _refuse(self, error: CifarError, needs: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        response: Response = error_response(error, scope["state"]["request_id"])
        if isinstance(error, NotSignedIn | MissingScope):
            response.headers["WWW-Authenticate"] = _challenge(error, needs)
        if type(error) is NotSignedIn and self._people_scopes is not None and _is_a_person_opening_a_page(scope):
            query = scope["query_string"].decode("latin-1")
            wanted = scope["path"] + (f"?{query}" if query else "")
            response = RedirectResponse(f"/signin?next={quote(wanted, safe='/')}", status_code=303)
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)


def add_sign_in(app: ASGIApp, api: FastAPI, settings: Settings) -> tuple[ASGIApp, list[Dependency]]:
    """Return `app` behind the sign-in that the settings ask for, and the outside services that this needs.

    Without such a setting it is `app` itself. The routes of the sign-in are added to `api`.

    Raises:
        KeysError: the file of API keys cannot be read.
        SettingsError: the secret of bearer tokens is none.
    """
    if not settings.signs_in:
        return app, []
    # imported here: who needs no sign-in does not load its libraries
    from cifar.serving.auth.tokens import bearer_tokens

    tokens, dependencies = bearer_tokens(settings)
    file = settings.api_keys_file
    guarded: ASGIApp = SignIn(
        app,
        api_keys=ApiKeys(file) if file else None,
        bearer_token=tokens.principal if tokens else None,
        people_scopes=list(settings.oidc_scopes) if settings.oidc_provider_url else None,
    )
    if settings.oidc_provider_url:
        from cifar.serving.auth.oidc import PageSignIn

        page = PageSignIn(settings)
        api.router.routes.extend(page.routes())
        dependencies = [*dependencies, *page.dependencies]
        guarded = page.with_sessions(guarded)
    return guarded, dependencies


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _listed(scopes: frozenset[str]) -> str:
    return ", ".join(sorted(scopes)) or "none"


def _challenge(error: CifarError, needs: str) -> str:
    """What RFC 6750 says to a caller that was refused."""
    if isinstance(error, MissingScope):
        return f'Bearer realm="CIFAR Space", error="insufficient_scope", scope="{needs}"'
    return 'Bearer realm="CIFAR Space"' + (', error="invalid_token"' if isinstance(error, InvalidCredentials) else "")


def _is_a_person_opening_a_page(scope: Scope) -> bool:
    return scope["method"] == "GET" and "text/html" in header(scope, b"accept")
