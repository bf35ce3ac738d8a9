"""Rate limits for each caller, counted in this process or, for all workers and hosts together, in Redis."""

from __future__ import annotations

import math
import time
from functools import partial

from limits import RateLimitItem, WindowStats, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.errors import RateLimited
from cifar.serving.asgi import error_response, with_headers
from cifar.serving.auth.principal import rate_limit_key
from cifar.serving.process.metrics import RATE_LIMITED
from cifar.serving.process.redis import SharedRedis
from cifar.serving.routes import rule_of
from cifar.settings import Settings


class RateLimit:
    """Answers 429 to callers over their limit. Headers of all answers to limited requests say how many are left."""

    def __init__(self, app: ASGIApp, settings: Settings, *, redis: SharedRedis | None) -> None:
        """Limit `app`. `redis` holds one count for all workers and hosts. Without it, or while it is down, each process has its own."""
        self.app = app
        limits = {"predict": settings.rate_limit_predict, "page": settings.rate_limit_page}
        self._limits = {group: parse(text) for group, text in limits.items() if text}
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._redis = redis
        self._shared = redis and SlidingWindowCounterRateLimiter(
            RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix="cifar:limit",
                connection_pool=redis.client.connection_pool,  # type: ignore[arg-type]  # its hint knows plain options
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        group = rule_of(scope["path"]).rate_group if scope["type"] == "http" and scope["method"] == "POST" else ""
        limit = self._limits.get(group)
        if limit is None or scope["state"].get("from_worker"):  # the other worker has counted it
            await self.app(scope, receive, send)
            return
        allowed, stats = await self._hit(limit, group, rate_limit_key(scope))
        wait_seconds = max(1, math.ceil(stats.reset_time - time.time()))
        send = with_headers(send, _headers(group, limit, stats, wait_seconds))
        if allowed:
            await self.app(scope, receive, send)
            return
        RATE_LIMITED.labels(group).inc()
        error = RateLimited(
            f"More than {limit.amount} requests in {limit.get_expiry()} seconds. Try again in {wait_seconds} seconds."
        )
        error.retry_after_seconds = wait_seconds
        await error_response(error, scope["state"]["request_id"])(scope, receive, send)

    async def _hit(self, limit: RateLimitItem, group: str, caller: str) -> tuple[bool, WindowStats]:
        """Count one request. Return whether it is allowed, and the caller's window afterwards."""
        if self._redis and self._shared:
            answer = await self._redis.ask(partial(_count, self._shared, limit, group, caller))
            if answer is not None:
                return answer
        return await _count(self._local, limit, group, caller)


async def _count(
    counter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, group: str, caller: str
) -> tuple[bool, WindowStats]:
    allowed = await counter.hit(limit, group, caller)
    return allowed, await counter.get_window_stats(limit, group, caller)


def _headers(group: str, limit: RateLimitItem, stats: WindowStats, wait_seconds: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of draft-ietf-httpapi-ratelimit-headers-10."""
    return [
        (b"ratelimit-policy", f'"{group}";q={limit.amount};w={limit.get_expiry()}'.encode()),
        (b"ratelimit", f'"{group}";r={stats.remaining};t={wait_seconds}'.encode()),
    ]
