"""Public keys of a token issuer, fetched from its JWKS address and cached."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any

import httpx2
import jwt

from cifar.dependency import Dependency
from cifar.errors import SignInUnavailable

ALGORITHMS = ("RS256", "ES256")
"""The accepted algorithms. Each public key fits only one of them, whatever a token's header says."""
TIMEOUT_SECONDS = 5.0
"""Longest wait for the host of the keys, or for a sign-in provider."""
MAX_AGE_SECONDS = 300
"""Age at which keys are fetched again, in the background."""
MAX_STALE_SECONDS = 3600
"""Age up to which keys are used while their host does not answer."""
REFETCH_SECONDS = 30
"""Shortest time between two fetches for key ids that are not in the cache."""
_MAX_ANSWER_BYTES = 256 * 1024
"""Longest list of keys, or description of a provider. Large providers send 20 kB."""
IMPACT = "Tokens are checked with the keys fetched before it went down, for at most an hour."
"""The log says this while the host of the keys is down."""
_UNAVAILABLE = "Tokens cannot be checked now: the public keys of their issuer could not be fetched. Try again later."


class PublicKeys:
    """The keys at one JWKS address, cached stale-while-revalidate. Use it from one event loop.

    Concurrent callers share one fetch. Keys older than `MAX_AGE_SECONDS` are fetched again in the background while the
    old ones are still used, up to `MAX_STALE_SECONDS` when the host does not answer. A token that names an unknown key
    causes a fetch too, but at most one in `REFETCH_SECONDS`, because anybody can invent key ids.
    """

    def __init__(self, url: str, dependency: Dependency, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare to fetch from `url`, guarded by `dependency`. The first `get` fetches."""
        self._url = url
        self._dependency = dependency
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._tls = httpx2.create_ssl_context()  # made once: it reads every certificate authority of the machine

    async def get(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key with this id, or None if the issuer has no such key.

        Raises:
            SignInUnavailable: there are no keys young enough, because their host does not answer.
        """
        key = self._keys.get(key_id)
        age = self._clock() - self._fetched_at
        if key and age < MAX_STALE_SECONDS:
            if age >= MAX_AGE_SECONDS:
                self._start_fetch()
            return key
        may_refetch = self._clock() - self._tried_at >= REFETCH_SECONDS
        is_fetching = self._running is not None and not self._running.done()
        if age >= MAX_STALE_SECONDS or is_fetching or may_refetch:
            await asyncio.shield(self._start_fetch())
        if self._clock() - self._fetched_at >= MAX_STALE_SECONDS:
            raise SignInUnavailable(_UNAVAILABLE)
        return self._keys.get(key_id)

    def _start_fetch(self) -> asyncio.Task[None]:
        """Return the running fetch, or start one. A fetch that fails raises nothing: the keys only get older."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._fetch())
        return self._running

    async def _fetch(self) -> None:
        try:
            with self._dependency.guard():
                self._tried_at = self._clock()
                document = await fetch(self._url, self._tls)
                keys = dict(filter(None, map(_usable, document["keys"])))
                if not keys:
                    raise ValueError(f"{self._url} has no key for {' or '.join(ALGORITHMS)} with a kid")
                self._keys, self._fetched_at = keys, self._clock()
        except Exception:  # the guard has logged it; the keys fetched before stay in use
            return


async def fetch(url: str, tls: ssl.SSLContext) -> Any:
    """Return the JSON at an address. One redirect is followed, to https or within the same host and scheme.

    Raises:
        httpx2.HTTPError, ValueError: the host does not answer, answers with another status than 200, redirects elsewhere, or sends no JSON
            or more than `_MAX_ANSWER_BYTES`.
        TimeoutError: it takes longer than `TIMEOUT_SECONDS`.
    """
    async with asyncio.timeout(TIMEOUT_SECONDS), httpx2.AsyncClient(verify=tls, timeout=TIMEOUT_SECONDS) as client:
        answer = await client.send(client.build_request("GET", url), stream=True)
        if target := answer.next_request:
            own, to = answer.url, target.url
            if to.scheme == "https" or (to.scheme, to.host) == (own.scheme, own.host):
                answer = await client.send(target, stream=True)
        if answer.has_redirect_location:
            raise ValueError(
                f"{url} redirects to {answer.headers['Location']}, which is not followed ({answer.status_code})"
            )
        answer.raise_for_status()
        content = b""
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > _MAX_ANSWER_BYTES:
                raise ValueError(f"{url} sends more than {_MAX_ANSWER_BYTES:,} bytes")
    return json.loads(content)


def _usable(data: dict[str, Any]) -> tuple[str, jwt.PyJWK] | None:
    """Return a key and its id, or None if it must not check tokens: a shared secret in a public list is no secret."""
    try:
        key = jwt.PyJWK(data)
        fits = key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
    except Exception:  # of another kind, or malformed in any way: the other keys are as good as before
        return None
    return (key.key_id, key) if fits and isinstance(key.key_id, str) and key.key_id else None
