"""The third middleware: security headers."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.serving.asgi import with_headers
from cifar.settings import Settings

_POLICY = {
    "default-src": "'self'",
    # Gradio's page has inline scripts and styles, and compiles templates.
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
_SPACES = ["https://huggingface.co", "https://*.hf.space"]
"""The sites where Hugging Face shows a Space, in a frame."""


class SecurityHeaders:
    """Adds security headers to every answer, except those that it has already."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        ancestors = settings.frame_ancestors or (_SPACES if settings.space_id else [])
        frames = " ".join(ancestors) or "'self'"
        policy = "; ".join(f"{name} {value}" for name, value in {**_POLICY, "frame-ancestors": frames}.items())
        headers = {
            "x-content-type-options": "nosniff",
            "referrer-policy": "strict-origin-when-cross-origin",
            "permissions-policy": "camera=(self), microphone=(), geolocation=()",
            "content-security-policy": policy,
        }
        if not ancestors:
            headers["x-frame-options"] = "SAMEORIGIN"
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, with_headers(send, self._headers))
