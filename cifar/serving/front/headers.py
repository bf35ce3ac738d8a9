"""Security headers, which `Observe` adds to every answer."""

from __future__ import annotations

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


def security_headers(settings: Settings) -> list[tuple[bytes, bytes]]:
    """Return the security headers for all answers: names in lower case, and values."""
    ancestors = settings.frame_ancestors or (_SPACES if settings.space_id else [])
    frames = " ".join(ancestors) or "'self'"
    headers = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "strict-origin-when-cross-origin",
        "permissions-policy": "camera=(self), microphone=(), geolocation=()",
        "content-security-policy": "; ".join(
            f"{name} {value}" for name, value in {**_POLICY, "frame-ancestors": frames}.items()
        ),
    }
    if not ancestors:
        headers["x-frame-options"] = "SAMEORIGIN"
    return [(name.encode(), value.encode()) for name, value in headers.items()]
