"""CORS, for the pages of other sites."""

from __future__ import annotations

from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.serving.asgi import header
from cifar.settings import Settings

_EXPOSED = [
    "X-Request-ID",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "X-Model-Version",
    "X-Model-Engine",
    "Inference-Header-Content-Length",
    "WWW-Authenticate",
    "Accept-Encoding",
    "Allow",
]
"""Headers of answers that scripts of other sites may read: those that the documents name."""


class CrossOrigin(CORSMiddleware):
    """Starlette's CORS. Where no other site is allowed, requests without an `Origin` bypass it, because their answers do not vary."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # libraries add headers of their own, such as x-gradio-user and traceparent
            expose_headers=_EXPOSED,
            max_age=3600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        varies = bool(self.allow_origins) or bool(header(scope, b"origin"))
        await (super().__call__(scope, receive, send) if varies else self.app(scope, receive, send))
