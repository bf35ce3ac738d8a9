"""Redis, which is optional: rate limits and cached answers that all workers and hosts share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cifar.dependency import Dependency

T = TypeVar("T")

TIMEOUT_SECONDS = 0.2
"""Longest wait for a connection and for each answer. Redis saves work, so it must not hold up a request."""


class SharedRedis:
    """A Redis client that gives no answer, instead of an error, while Redis is down. Use it from one event loop."""

    def __init__(self, url: str) -> None:
        """Make the client. It connects with the first call."""
        from redis.asyncio import Redis  # 7 MB, for the services that have a Redis

        self.client = Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)
        self.dependency = Dependency(
            "redis", impact="Each process keeps its own rate limits and cache until it is back.", may_fail_in_part=True
        )

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result of `call`, or None if Redis does not answer. Callers go on without it."""
        try:
            with self.dependency.guard():
                return await call()
        except Exception:  # the guard has logged and counted it
            return None
