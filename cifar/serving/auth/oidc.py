"""Sign-in to the page at an OpenID Connect provider: authorization code with PKCE, then a signed session cookie.

`/signin` redirects the browser to the provider, `/signin/callback` receives the answer, `/signout` ends the session. State,
nonce, PKCE verifier and the page to return to are kept in the cookie until then, so any worker can finish a sign-in.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cifar.dependency import CircuitOpen, Dependency
from cifar.errors import CifarError, SignInFailed, SignInUnavailable
from cifar.serving.auth.jwks import IMPACT, TIMEOUT_SECONDS, PublicKeys, fetch
from cifar.serving.auth.tokens import Tokens
from cifar.settings import Settings

log = logging.getLogger(__name__)

_OWN_PATH = re.compile(r"/(?!/)[!-\[\]-~]*")
"""Printable ASCII without a backslash or a second slash: browsers take `//host` and `/\\host` for another site."""
_MAX_PENDING_CHARACTERS = 1600
"""Limit for the unfinished sign-ins of one browser, as JSON in its cookie. Browsers drop a cookie larger than 4 kB."""
_MAX_NEXT_CHARACTERS = 512
_AGAIN = "Please sign in again."
_UNAVAILABLE = "Sign-in is not possible now, because the provider does not answer. Try again later."

_PROVIDER_FAILURES = (httpx2.HTTPError, TimeoutError, ValueError, KeyError, TypeError, OverflowError)
"""The provider cannot be reached, is too slow, or sends an answer that cannot be read."""

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class _Metadata(BaseModel):
    """The fields that a provider's discovery document must have."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]


class PageSignIn:
    """The routes for signing in and out, and the sessions."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the sign-in. The provider is first called when somebody signs in."""
        if settings.oidc_client_secret is None or settings.page_url is None:
            raise ValueError("The settings name no provider.")
        self._settings = settings
        self._url = settings.oidc_provider_url
        self._secret = settings.oidc_client_secret.get_secret_value()
        self._page_url = settings.page_url
        self._discovered: tuple[_Metadata, Tokens] | None = None
        self._tls = httpx2.create_ssl_context()
        # An error that a caller can cause, such as a wrong code, is not a failure of the provider.
        self._provider = Dependency(
            "oidc", impact="Nobody can sign in to the page until it is back.", failures=_PROVIDER_FAILURES
        )
        self._keys_host = Dependency("oidc-jwks", impact=IMPACT)
        self.dependencies = [self._provider, self._keys_host]

    def with_sessions(self, app: ASGIApp) -> ASGIApp:
        """Return `app` with `scope["session"]`, read from the browser's cookie if its signature and age are valid."""
        secure = self._page_url.startswith("https://")
        # A subdomain cannot set a cookie named __Host-..., but browsers accept such a cookie for the path / only.
        prefix = "__Secure-" if self._settings.path else "__Host-"
        return SessionMiddleware(
            app,
            secret_key=hmac.digest(self._secret.encode(), b"cifar session cookie", hashlib.sha256).hex(),
            session_cookie=f"{prefix}cifar_session" if secure else "cifar_session",
            path=self._settings.path or "/",
            max_age=self._settings.session_seconds,
            same_site="lax",
            https_only=secure,
        )

    def routes(self) -> list[Route]:
        return [
            Route("/signin", _for_browsers(self.start), methods=["GET"]),
            Route("/signin/callback", _for_browsers(self.finish), methods=["GET"]),
            Route("/signout", _for_browsers(self.sign_out), methods=["GET", "POST"]),
        ]

    async def start(self, request: Request) -> Response:
        """Redirect the browser to the provider. In a frame, as on Spaces, offer a new window: providers refuse to be framed."""
        if request.headers.get("sec-fetch-dest") in {"iframe", "frame"}:
            link = html.escape(f"{self._page_url}/signin")
            return _page("Sign in", f'<a href="{link}" target="_blank" rel="noopener">Sign in in a new window</a>')
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        metadata, _ = await self._provider_data()
        async with self._client(metadata) as client:
            address, _ = client.create_authorization_url(
                metadata.authorization_endpoint, state=state, nonce=nonce, code_verifier=verifier
            )
        started = {"nonce": nonce, "verifier": verifier, "next": own_path(request.query_params.get("next", "/"))}
        pending = {**request.session.get("pending", {}), state: started}
        while len(json.dumps(pending)) > _MAX_PENDING_CHARACTERS:
            del pending[next(iter(pending))]
        request.session["pending"] = pending
        return RedirectResponse(address, status_code=303)

    async def finish(self, request: Request) -> Response:
        """Receive the provider's answer, check it, and start a session."""
        pending = request.session.get("pending", {})
        started = pending.get(request.query_params.get("state", ""))
        if started is None:
            raise SignInFailed(f"This sign-in was not started in this browser, or too long ago. {_AGAIN}")
        request.session["pending"] = {state: other for state, other in pending.items() if other is not started}
        code = request.query_params.get("code")
        if "error" in request.query_params or not code:
            raise SignInFailed(f"The provider did not sign you in. {_AGAIN}")
        claims = await self._claims(code, started)
        request.session.clear()
        request.session["subject"] = claims["sub"]
        label = str(claims.get("preferred_username") or claims.get("name") or claims["sub"])[:64]
        request.session["label"] = label.encode(errors="replace").decode()  # JSON may hold half of a character
        return RedirectResponse(started["next"], status_code=303)

    async def sign_out(self, request: Request) -> Response:
        """Ask for confirmation, then end the session here. The session at the provider continues."""
        label = html.escape(request.session.get("label", ""))
        if request.method == "POST" or not label:
            request.session.clear()
            return _page("You are signed out", '<a href="signin">Sign in</a>')
        return _page(f"Signed in as {label}", '<form method="post" action="signout"><button>Sign out</button></form>')

    async def _claims(self, code: str, started: dict[str, str]) -> dict[str, Any]:
        """Exchange a code for the claims about the person, and check that they belong to the sign-in that this browser started."""
        metadata, tokens = await self._provider_data()

        async def exchange() -> str:
            async with self._client(metadata) as client:
                url, verifier = metadata.token_endpoint, started["verifier"]
                return str((await client.fetch_token(url, code=code, code_verifier=verifier))["id_token"])

        try:
            id_token = await self._ask(exchange)
        except OAuthError as error:
            log.info("the provider refused a code: %s", error.error)
            raise SignInFailed(f"The provider did not confirm the sign-in. {_AGAIN}") from error
        try:
            claims = await tokens.claims(id_token)
        except SignInUnavailable:
            raise
        except CifarError as error:
            raise SignInFailed(f"The provider's answer cannot be trusted. {_AGAIN}") from error
        client_id = self._settings.oidc_client_id
        if claims.get("nonce") != started["nonce"] or claims.get("azp", client_id) != client_id:
            raise SignInFailed(f"The provider's answer is for another sign-in. {_AGAIN}")
        return claims

    async def _provider_data(self) -> tuple[_Metadata, Tokens]:
        """Return the provider's discovery document, fetched on first use, and the check of its ID tokens."""
        if self._discovered is None:
            self._discovered = await self._ask(self._discover)
        return self._discovered

    def _client(self, metadata: _Metadata) -> AsyncOAuth2Client:
        basic = "client_secret_basic" in metadata.token_endpoint_auth_methods_supported
        return AsyncOAuth2Client(
            self._settings.oidc_client_id,
            self._secret,
            token_endpoint_auth_method="client_secret_basic" if basic else "client_secret_post",
            scope="openid profile",
            redirect_uri=f"{self._page_url}/signin/callback",
            code_challenge_method="S256",
            verify=self._tls,
            timeout=TIMEOUT_SECONDS,
        )

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the provider's answer to a call.

        Raises:
            SignInUnavailable: it does not answer within `TIMEOUT_SECONDS`, or failed too often before.
        """
        try:
            with self._provider.guard():
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    return await call()
        except (CircuitOpen, *_PROVIDER_FAILURES) as error:
            raise SignInUnavailable(_UNAVAILABLE) from error

    async def _discover(self) -> tuple[_Metadata, Tokens]:
        document = await fetch(f"{self._url}/.well-known/openid-configuration", self._tls)
        metadata = _Metadata.model_validate(document)
        if metadata.issuer.rstrip("/") != self._url:
            raise ValueError(f"the document of {self._url} names another issuer, {metadata.issuer}")
        tokens = Tokens(
            PublicKeys(metadata.jwks_uri, self._keys_host),
            issuer=metadata.issuer,
            audience=self._settings.oidc_client_id or "",
        )
        return metadata, tokens


def _for_browsers(handler: Handler) -> Handler:
    """Wrap a handler so that browsers get a page for an error, and no answer is cached."""

    async def answer(request: Request) -> Response:
        try:
            response = await handler(request)
        except CifarError as error:
            if "text/html" not in request.headers.get("accept", ""):
                raise
            signin = "../signin" if request.url.path.endswith("/callback") else "signin"
            again = f'<a href="{signin}">Try again</a></p><p>Request {html.escape(request.state.request_id)}'
            response = _page(str(error), again)
            response.status_code = error.status
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"  # the URL holds the provider's code
        return response

    return answer


def own_path(target: str) -> str:
    """Return the page to open after the sign-in: `target` if it is a short path on this server, else `/`."""
    return target if len(json.dumps(target)) <= _MAX_NEXT_CHARACTERS and _OWN_PATH.fullmatch(target) else "/"


def _page(text: str, html_content: str) -> HTMLResponse:
    """Return a page with one sentence and one link or form. It needs no script and no style sheet."""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>CIFAR Space</title></head>'
        f"<body><h1>CIFAR Space</h1><p>{text}</p><p>{html_content}</p></body></html>"
    )
