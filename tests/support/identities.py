"""Signing keys, tokens and a small OpenID Connect provider."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from cifar.serving.front.visitor import COOKIE, VisitorCookie
from cifar.settings import Settings

ISSUER = "https://issuer.example"
AUDIENCE = "cifar-space"
SECRET = "a secret of sixty-four characters, so that no library warns of HS512"  # noqa: S105 - of these tests alone
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def claims(**changes: object) -> dict[str, object]:
    """Return the claims of a valid token with changes; None removes a claim."""
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": int(time.time()) + 24 * 3600,
        "scope": "predict openid",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def public(key, key_id: str, **changes: object) -> dict[str, object]:
    """Return the public key of a private key in the form of a JWKS."""
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig", **changes}


def visitor_cookie(number: int, settings: Settings) -> str:
    """Return a visitor cookie, as a browser sends it, that a server with these settings has signed."""

    async def app(*_: object) -> None: ...

    return f"{COOKIE}={VisitorCookie(app, settings).signed(f'{number:032x}')}"


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app in a thread, on a free port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


class OneUserProvider(FastAPI):
    """An OpenID Connect provider with one client and one user, which signs every visitor in as her and checks all parameters.

    Attributes:
        asked: how often each path was asked for.
        lies: claims that take the place of the true ones in the next ID token.
        status: the status of every answer, when it is not 200.
        described: entries that take the place of the true ones in its discovery document.
        keys: what `/jwks` lists.
    """

    CLIENT = ("cifar-space", "the client's secret, long enough for a key")

    def __init__(self) -> None:
        super().__init__(openapi_url=None)
        self.asked: dict[str, int] = {}
        self.lies: dict[str, object] = {}
        self.status = 200
        self.described: dict[str, object] = {}
        self.keys = [public(RSA_KEY, "first")]
        self._codes: dict[str, dict[str, str]] = {}
        self.middleware("http")(self._count)
        self.get("/.well-known/openid-configuration")(self._describe)
        self.get("/authorize")(self._authorize)
        self.post("/token")(self._exchange)
        self.get("/jwks")(lambda: {"keys": self.keys})

    async def _count(self, request: Request, call_next):
        self.asked[request.url.path] = self.asked.get(request.url.path, 0) + 1
        if self.status != 200:
            return JSONResponse({"error": "server_error"}, self.status)
        return await call_next(request)

    async def _describe(self, request: Request) -> dict[str, object]:
        here = str(request.base_url).rstrip("/")
        return {
            "issuer": here,
            "authorization_endpoint": f"{here}/authorize",
            "token_endpoint": f"{here}/token",
            "jwks_uri": f"{here}/jwks",
            **self.described,
        }

    async def _authorize(self, request: Request) -> RedirectResponse:
        asked = dict(request.query_params)
        if asked["client_id"] != self.CLIENT[0] or asked["response_type"] != "code" or "openid" not in asked["scope"]:
            raise HTTPException(400)
        if asked["code_challenge_method"] != "S256":
            raise HTTPException(400)
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?code={code}&state={asked['state']}", 302)

    async def _exchange(
        self,
        request: Request,
        code: Annotated[str, Form()],
        code_verifier: Annotated[str, Form()],
        redirect_uri: Annotated[str, Form()],
    ) -> JSONResponse:
        given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        if given != ":".join(self.CLIENT):
            return JSONResponse({"error": "invalid_client"}, 401)
        asked = self._codes.pop(code, None)
        challenge = base64url(hashlib.sha256(code_verifier.encode()).digest())
        if not asked or asked["code_challenge"] != challenge or asked["redirect_uri"] != redirect_uri:
            return JSONResponse({"error": "invalid_grant"}, 400)
        here = str(request.base_url).rstrip("/")
        said = {"nonce": asked["nonce"], "preferred_username": "Alice <a>", **self.lies}
        id_token = jwt.encode(
            claims(iss=said.pop("iss", here), scope=None, **said), RSA_KEY, "RS256", headers={"kid": "first"}
        )
        return JSONResponse({"access_token": "opaque", "token_type": "Bearer", "id_token": id_token})


def bearer(credential: str) -> dict[str, str]:
    """Return the header with an API key or a token."""
    return {"Authorization": f"Bearer {credential}"}
