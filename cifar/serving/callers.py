"""Who calls, and what they may do. What proves it is in `api_keys.py`, `tokens.py` and `oidc.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SCOPES = ("predict", "feedback", "admin")
"""`predict`: ask the model. `feedback`: say what was right. `admin`: change what is served."""


@dataclass(frozen=True)
class Caller:
    """Somebody who has proved who they are.

    Attributes:
        name: what proved it and whom, `key:ci`, `jwt:alice` or `oidc:alice`: a key cannot pass for a person.
        scopes: those of `SCOPES` that they have.
    """

    name: str
    scopes: frozenset[str]


def caller(kind: str, name: str, scopes: Iterable[object]) -> Caller:
    """A caller with the scopes that we know; others are somebody else's."""
    return Caller(f"{kind}:{name}", frozenset(scope for scope in SCOPES if scope in scopes))
