"""The public keys of whoever issues tokens, fetched from their address and kept for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx2
import jwt
from circuitbreaker import CircuitBreaker, CircuitBreakerError

from cifar.errors import SignInUnavailable
from cifar.settings import Settings

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "ES256")
"""What a public key may be used with. A key fits one of them, whatever a token's header says."""
_UNAVAILABLE = "Tokens cannot be checked now: the host of the keys does not answer. Try again later."


class PublicKeys:
    """The keys at one address. Fetching never blocks the event loop, and many who wait share one fetch.

    Keys are fetched again when they are old, and when a token names one that is not among them, but not for every
    such token: anybody can make up names. Nobody waits for keys that are merely old, and while their host does not
    answer, they are used for a while.
    """

    def __init__(
        self, url: str, settings: Settings, *, name: str = "jwks", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Fetch from `url` when a key is first asked for; the breaker around that is called `name`."""
        self._url = url
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._tls = httpx2.create_ssl_context()  # made once: it reads every certificate authority of the machine
        self.breaker = CircuitBreaker(
            failure_threshold=settings.provider_max_failures,
            recovery_timeout=settings.provider_retry_seconds,
            name=name,
        )
        self._guarded_fetch: Callable[[], Any] = self.breaker(self._fetch)

    async def get(self, key_id: str) -> jwt.PyJWK | None:
        """The key of this name, or none.

        Raises:
            SignInUnavailable: there are no keys to look in, since their host does not answer.
        """
        key = self._keys.get(key_id)
        age = self._clock() - self._fetched_at
        if key and age < self._settings.jwks_stale_seconds:
            if age >= self._settings.jwks_cache_seconds:
                self._start_fetch()
            return key
        if age >= self._settings.jwks_stale_seconds or self._is_fetching() or self._may_look_for_new_ones():
            await asyncio.shield(self._start_fetch())
        if self._clock() - self._fetched_at >= self._settings.jwks_stale_seconds:
            raise SignInUnavailable(_UNAVAILABLE)
        return self._keys.get(key_id)

    def _may_look_for_new_ones(self) -> bool:
        return self._clock() - self._tried_at >= self._settings.jwks_refetch_seconds

    def _is_fetching(self) -> bool:
        return self._running is not None and not self._running.done()

    def _start_fetch(self) -> asyncio.Task[None]:
        """The fetch under way, else a new one. That it failed shows in the keys' age."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._try_to_fetch())
        return self._running

    async def _try_to_fetch(self) -> None:
        try:
            await self._guarded_fetch()
        except CircuitBreakerError:
            pass  # said when it opened
        except Exception as error:  # whatever the host sent, the keys of before are what there is
            log.warning("no keys from %s: %r", self._url, error)

    async def _fetch(self) -> None:
        self._tried_at = self._clock()
        async with httpx2.AsyncClient(verify=self._tls, timeout=self._settings.provider_timeout_seconds) as client:
            answer = await asyncio.wait_for(client.get(self._url), self._settings.provider_timeout_seconds)
        answer.raise_for_status()
        keys = dict(filter(None, map(_usable, answer.json()["keys"])))
        if not keys:
            raise ValueError(f"no key for {' or '.join(ALGORITHMS)} with a kid")
        self._keys, self._fetched_at = keys, self._clock()


def _usable(data: dict[str, Any]) -> tuple[str, jwt.PyJWK] | None:
    """A key by its name, where it is one to check our tokens with: a shared secret among them is nobody's proof."""
    try:
        key = jwt.PyJWK(data)
    except jwt.PyJWTError:
        return None
    fits = key.algorithm_name in ALGORITHMS and key.public_key_use in {None, "sig"}
    return (key.key_id, key) if fits and key.key_id else None
