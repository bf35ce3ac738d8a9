"""Defaults of a server that strangers can reach, chosen with one word: `CIFAR_PROFILE=public`."""

from __future__ import annotations

from collections.abc import Mapping

PUBLIC = {"rate_limit_predict": "600/minute", "rate_limit_page": "240/minute", "version_loads_per_minute": 6}
"""Settings that differ in the profile `public`, and their values."""
_ON_SPACES = {"trusted_proxies": "*"}
"""On Spaces only Hugging Face's proxy reaches the port. Without its header, all visitors would have one limit together."""


def with_profile(chosen: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that were chosen, completed by those of their profile. On Spaces the profile is `public` by default.

    Args:
        chosen: explicit settings by name or alias; they take precedence over the profile.
    """
    on_spaces = any(chosen.get(name) for name in ("space_id", "CIFAR_SPACE_ID", "SPACE_ID"))
    profile = chosen.get("profile") or ("public" if on_spaces else "local")
    defaults = {**PUBLIC, **(_ON_SPACES if on_spaces else {})} if profile == "public" else {}
    return {"profile": profile, **defaults, **chosen}


def address(host: str, port: int) -> str:
    """Return `HOST:PORT`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def who_can_reach(host: str, port: int, *, public: bool) -> str:
    """Return the first line of a server: its address, who can reach it, and what to set before it faces the internet."""
    if host in {"localhost", "127.0.0.1", "::1"}:
        return f"Serving at http://localhost:{port}, for programs on this machine only"
    everywhere = host in {"0.0.0.0", "::", ""}  # noqa: S104 - it is compared
    place = f"http://{address('localhost' if everywhere else host, port)}"
    warning = "" if public else "; before it faces the internet set CIFAR_PROFILE=public, and read docs/deploy.md"
    return f"Serving at {place}, for everyone whose network reaches port {port} of this machine{warning}"
