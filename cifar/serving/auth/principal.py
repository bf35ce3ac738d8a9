"""Authenticated callers, their scopes, and the user that an answer is for. `api_keys`, `tokens` and `oidc` authenticate."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from starlette.types import Scope

SCOPES = ("predict", "feedback", "admin")
"""`predict`: classify images. `feedback`: send the right label. `admin`: change which versions are served."""
_WITHOUT_SIGN_IN = frozenset({"predict", "feedback"})


@dataclass(frozen=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: `key:ci`, `jwt:alice` or `oidc:alice`. The prefix distinguishes a key named alice from a person named alice.
        scopes: those of `SCOPES` that the caller has.
    """

    name: str
    scopes: frozenset[str]


def make_principal(method: str, name: str, scopes: Iterable[object]) -> Principal:
    """Return a principal with those of `scopes` that are in `SCOPES`; a token may also list scopes of other services."""
    return Principal(f"{method}:{name}", frozenset(scope for scope in SCOPES if scope in scopes))


def rate_limit_key(scope: Scope) -> str:
    """Return the key under which a caller's requests are counted: the principal's name, else the client's address.

    An IPv6 address counts as its /64 network, because one user has 2**64 addresses.
    """
    if principal := scope["state"].get("principal"):
        return f"caller:{principal.name}"
    client = scope.get("client")
    return _network_of(client[0]) if client else "None"


def caller_of(scope: Scope) -> str:
    """Return who sent a request, for the log: the principal's name, else what a refused key claims to be, else `anonymous`."""
    state = scope["state"]
    return str(state["principal"].name if "principal" in state else state.get("claimed", "anonymous"))


@lru_cache(maxsize=10_000)
def _network_of(client: str) -> str:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return "None"
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


@dataclass(frozen=True)
class Requester:
    """The sender of one request.

    Attributes:
        request_id: the id that is returned in `X-Request-ID`. Callers may choose their own.
        user: the user for whom the rollout chooses a version: the principal, else the visitor if `VisitorCookie` has verified
            the cookie, else the address.
        scopes: those of `SCOPES` that the requester has. Without sign-in: `predict` and `feedback`.
        caller: the key from `rate_limit_key`, by which one caller's share of the queue is limited. Empty outside a request.
    """

    request_id: str
    user: str
    scopes: frozenset[str] = _WITHOUT_SIGN_IN
    caller: str = ""

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """Return the requester of a request that has passed the middleware."""
        principal = scope["state"].get("principal")
        caller = rate_limit_key(scope)
        user = caller if principal else scope["state"].get("visitor") or caller
        return cls(scope["state"]["request_id"], user, principal.scopes if principal else _WITHOUT_SIGN_IN, caller)
