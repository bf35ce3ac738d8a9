"""Sign-in: checks each request against the scope that the table of routes asks for, before anything reads the request.

All requests pass it: the page, the REST API, Gradio's API, `/docs` and `/metrics`. It looks up in the table
(`serving.routes`) the path that the routers match. Without a setting for sign-in, this middleware is not installed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.dependency import Dependency
from cifar.environment import web_origin
from cifar.errors import CifarError, InvalidCredentials, MissingScope, NotSignedIn
from cifar.serving.asgi import error_response, header
from cifar.serving.auth.api_keys import PREFIX, ApiKeys, id_in
from cifar.serving.auth.principal import SCOPES, Principal, make_principal
from cifar.serving.routes import BROWSERS, OPEN, rule_of
from cifar.settings import Settings

MAX_TOKEN_CHARACTERS = 8192
"""Longest API key or bearer token that is checked."""
_REALM = 'Bearer realm="CIFAR Space"'
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_OWN_SITES = {"same-origin", "none"}

_DOCUMENTED = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]


def documented(settings: Settings) -> list[Any]:
    """Return FastAPI dependencies that document in OpenAPI how to sign in to a route. `SignIn` does the checking."""
    return _DOCUMENTED if settings.requires_sign_in else []


class SignIn:
    """Passes a request on if its caller has the scope for the route. The caller is then in `scope["state"]["principal"]`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: ApiKeys | None,
        bearer_token: Callable[[str], Awaitable[Principal]] | None,
        people_scopes: list[str] | None,
        page_origin: str = "",
    ) -> None:
        """Guard `app`.

        Args:
            app: the app that answers.
            api_keys: checks API keys. None: they are refused.
            bearer_token: checks JWT bearer tokens. None: they are refused.
            people_scopes: the scopes of people who signed in to the page. None: there is no such sign-in.
            page_origin: the origin of the page, such as `https://cifar.example`. Other pages cannot use a session to change data.
        """
        self.app = app
        self._api_keys = api_keys
        self._bearer_token = bearer_token
        self._people_scopes = people_scopes
        self._page_origin = page_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 or 403."""
        needed = rule_of(scope["path"]).scope
        if needed == OPEN or (needed == BROWSERS and self._people_scopes is not None):
            await self.app(scope, receive, send)
            return
        try:
            principal = await self._authenticate(scope)
            scope.setdefault("state", {})["principal"] = principal  # before a refusal, so that the log names the caller
            if needed in SCOPES and needed not in principal.scopes:
                has = ", ".join(sorted(principal.scopes)) or "none"
                raise MissingScope(f"This needs the scope {needed}; {principal.name} has {has}.")
        except CifarError as error:
            await self._refuse(error, needed, scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _authenticate(self, scope: Scope) -> Principal:
        """Return the sender of a request. An invalid key or token is refused even when a valid session comes with it."""
        keys, authorizations = _all(scope, b"x-api-key"), _all(scope, b"authorization")
        if len(keys) > 1 or len(authorizations) > 1:
            raise InvalidCredentials("The request has more than one key or token. Send one.")
        scheme, _, token = authorizations[0].partition(" ") if authorizations else ("", "", "")
        if keys:
            return await self._verified(keys[0], is_key=True)
        if scheme.lower() == "bearer":
            token = token.strip()
            return await self._verified(token, is_key=token.startswith(PREFIX))
        if person := self._person(scope):
            return person
        raise NotSignedIn("Sign in first: send Authorization: Bearer KEY-OR-TOKEN, or X-API-Key: KEY.")

    async def _verified(self, credential: str, *, is_key: bool) -> Principal:
        if len(credential) > MAX_TOKEN_CHARACTERS:
            raise InvalidCredentials(f"A key or token has at most {MAX_TOKEN_CHARACTERS:,} characters.")
        if is_key:
            if self._api_keys is None:
                raise InvalidCredentials("API keys are not accepted here.")
            return self._api_keys.principal(credential)
        if self._bearer_token is None:
            raise InvalidCredentials("Bearer tokens other than API keys are not accepted here.")
        return await self._bearer_token(credential)

    def _person(self, scope: Scope) -> Principal | None:
        """Return the person of the session cookie, or None if a page of another site sent a request that may change data."""
        if self._people_scopes is None:
            return None
        if scope.get("method", "POST") not in _SAFE_METHODS and self._is_of_another_site(scope):
            return None
        subject = scope["session"].get("subject")
        return make_principal("oidc", subject, self._people_scopes) if subject else None

    def _is_of_another_site(self, scope: Scope) -> bool:
        """Return whether a page of another site sent a request. Over plain HTTP, browsers send only the header `Origin`."""
        if site := header(scope, b"sec-fetch-site"):
            return site not in _OWN_SITES
        return header(scope, b"origin") not in {"", self._page_origin}

    async def _refuse(self, error: CifarError, needed: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        scope["state"]["claimed"] = _claimed(scope)
        response: Response = error_response(error, scope["state"]["request_id"])
        if isinstance(error, NotSignedIn | MissingScope):
            response.headers["WWW-Authenticate"] = _challenge(error, needed)
        if type(error) is NotSignedIn and self._people_scopes is not None and _is_page_visit(scope):
            query = scope["query_string"].decode("latin-1")
            target = scope["path"] + (f"?{query}" if query else "")
            response = RedirectResponse(f"/signin?next={quote(target, safe='/')}", status_code=303)
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)


def add_sign_in(app: ASGIApp, api: FastAPI, settings: Settings) -> tuple[ASGIApp, list[Dependency]]:
    """Return `app` behind the sign-in of the settings, and the outside services that the sign-in needs.

    Without a setting for sign-in, `app` itself is returned. The routes for signing in to the page are added to `api`.

    Raises:
        KeysError: the file of API keys cannot be read.
        SettingsError: the secret of bearer tokens is a public or private key.
    """
    if not settings.requires_sign_in:
        return app, []
    from cifar.serving.auth.tokens import bearer_tokens  # not above: its libraries are not needed without sign-in

    tokens, dependencies = bearer_tokens(settings)
    guarded: ASGIApp = SignIn(
        app,
        api_keys=ApiKeys(settings.api_keys_file) if settings.api_keys_file else None,
        bearer_token=tokens.principal if tokens else None,
        people_scopes=list(settings.oidc_scopes) if settings.oidc_provider_url else None,
        page_origin=web_origin((settings.page_url or "").removesuffix(settings.path) or "null"),
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


def _claimed(scope: Scope) -> str:
    """Return a name for the sender of a refused request, for the log. The id of its key, such as a revoked one, is not verified."""
    sent = (*_all(scope, b"x-api-key"), *_all(scope, b"authorization"))
    return next((f"unknown key {found}" for found in map(id_in, sent) if found), "anonymous")


def _challenge(error: CifarError, needed: str) -> str:
    """Return the `WWW-Authenticate` header of RFC 6750."""
    if isinstance(error, MissingScope):
        return f'{_REALM}, error="insufficient_scope", scope="{needed}"'
    return f'{_REALM}, error="invalid_token"' if isinstance(error, InvalidCredentials) else _REALM


def _is_page_visit(scope: Scope) -> bool:
    return scope["method"] == "GET" and "text/html" in header(scope, b"accept")
