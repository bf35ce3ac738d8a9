"""Who calls, and what they may do. What proves it is in `api_keys.py`, `tokens.py` and `oidc.py`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from starlette.types import Scope

USER_COOKIE = "cifar_user"
_USER_COOKIE = re.compile(rb"(?:^|; ?)cifar_user=([0-9a-f]{32})(?:;|$)")

SCOPES = ("predict", "feedback", "admin")
"""`predict`: ask the model. `feedback`: say what was right. `admin`: change what is served."""
_EVERYBODY = frozenset({"predict", "feedback"})


@dataclass(frozen=True)
class Principal:
    """Somebody who has proved who they are.

    Attributes:
        name: what proved it and whom, `key:ci`, `jwt:alice` or `oidc:alice`: a key cannot pass for a person.
        scopes: those of `SCOPES` that they have.
    """

    name: str
    scopes: frozenset[str]


def caller(kind: str, name: str, scopes: Iterable[object]) -> Principal:
    """A caller with the scopes that we know; others are somebody else's."""
    return Principal(f"{kind}:{name}", frozenset(scope for scope in SCOPES if scope in scopes))


def rate_limit_key(scope: Scope) -> str:
    """Whom to count for: who signed in, else the client's address. An IPv6 user has 2**64 addresses: their network counts."""
    if caller := scope["state"].get("caller"):
        return f"caller:{caller.name}"
    client = scope.get("client")
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        address = None
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


@dataclass(frozen=True)
class Requester:
    """One request, as far as its answer may depend on who asks.

    Attributes:
        request_id: as it is sent back in `X-Request-ID`; callers may choose their own.
        user: whom the same version answers each time: who signed in, else who has the page's cookie, else the address.
        scopes: what they may do: those of `SCOPES` that they have; without sign-in all may ask and say what was right.
    """

    request_id: str
    user: str
    scopes: frozenset[str] = _EVERYBODY

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """The asker of a request that has passed the front."""
        who = scope["state"].get("caller")
        user = rate_limit_key(scope) if who else visitor_id(scope) or rate_limit_key(scope)
        return cls(scope["state"]["request_id"], user, who.scopes if who else _EVERYBODY)


def visitor_id(scope: Scope) -> str:
    """Whom the page's cookie names; empty without one that we could have made."""
    cookies = next((value for name, value in scope["headers"] if name == b"cookie"), b"")
    found = _USER_COOKIE.search(cookies)
    return found[1].decode() if found else ""
