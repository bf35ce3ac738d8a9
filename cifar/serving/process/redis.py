"""Redis, when the settings name one: what all workers and hosts share."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from cifar.serving.process.dependency import Remote
from cifar.settings import Settings


@dataclass(frozen=True)
class SharedRedis:
    """A client, and the guard that every call goes through. It connects with the first call."""

    client: Redis
    remote: Remote


def shared_redis(settings: Settings) -> SharedRedis | None:
    """The Redis of the settings, or None."""
    if settings.redis_url is None:
        return None
    seconds = settings.redis_timeout_seconds
    client = Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=seconds, socket_connect_timeout=seconds
    )
    remote = Remote("redis", failures=settings.breaker_failures, recovery_seconds=settings.breaker_recovery_seconds)
    return SharedRedis(client, remote)
