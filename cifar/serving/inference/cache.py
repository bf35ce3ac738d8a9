"""Cached answers, found by the content of the image file: in this process, and in Redis for all workers and hosts."""

from __future__ import annotations

import asyncio
import hashlib
import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from cachetools import LRUCache

from cifar import __version__
from cifar.images.spec import Views
from cifar.images.views import MAX_VIEWS
from cifar.models.predictor import Predictor
from cifar.serving.process.metrics import CACHE
from cifar.serving.process.redis import SharedRedis

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LIFETIME_SECONDS = 3600
"""Time for which Redis keeps an answer."""


class CachedAnswer(NamedTuple):
    """The model's inputs and output for one picture."""

    views: np.ndarray
    """`(n, height, width, channels)` `uint8`."""
    answer: np.ndarray
    """`float32`, a row of `Predictor.answers`."""


class AnswerCache:
    """An LRU cache of answers in this process, with Redis as a second level. Use it from one event loop."""

    def __init__(self, *, images: int, redis: SharedRedis | None = None) -> None:
        """Make an empty cache.

        Args:
            images: answers that this process holds, of which each counts as often as it has views; 0 turns off both levels.
            redis: the second level; None for a cache in this process only.
        """
        self._local: LRUCache[bytes, CachedAnswer] = LRUCache(images, lambda cached: len(cached.views))
        self._redis = redis if images else None
        self._writes: set[asyncio.Task[object]] = set()

    def key(self, digest: str, predictor: Predictor, views: Views = 1) -> bytes:
        """Return the key of a file's digest, a version and a number of views (`Predictor.views_for`); empty when the cache is off.

        The version's creation time is part of it, as numbers can be exported anew.
        """
        if not self._local.maxsize:
            return b""
        version = predictor.version.manifest
        return (
            f"cifar:answer:{__version__}:{version.name}:{version.version}:{version.created}:{digest}:{views}".encode()
        )

    def get_local(self, key: bytes) -> CachedAnswer | None:
        """Return the answer that this process holds, if any."""
        if not key:
            return None
        cached = self._local.get(key)
        CACHE.labels("local", "hit" if cached else "miss").inc()
        return cached

    async def get_shared(self, key: bytes, predictor: Predictor) -> CachedAnswer | None:
        """Return the answer in Redis, if any, and hold it in this process too."""
        if self._redis is None:
            return None
        content = await self._redis.ask(partial(_get, self._redis.client, key))
        cached = _unpack(content, predictor) if content else None
        CACHE.labels("redis", "hit" if cached else "miss").inc()
        if cached:
            self.put_local(key, cached)
        return cached

    def put_local(self, key: bytes, answer: CachedAnswer) -> None:
        if key and len(answer.views) <= self._local.maxsize:
            self._local[key] = answer

    def put_shared(self, key: bytes, answer: CachedAnswer) -> None:
        """Write an answer to Redis in the background."""
        if self._redis is None:
            return
        content = answer.answer.tobytes() + answer.views.tobytes()
        task = asyncio.create_task(self._redis.ask(partial(self._redis.client.set, key, content, ex=_LIFETIME_SECONDS)))
        self._writes.add(task)  # the event loop itself holds only a weak reference
        task.add_done_callback(self._writes.discard)


def file_digest(payload: bytes) -> str:
    """Return the BLAKE2b-128 of a file as 32 hexadecimal digits. Takes about a millisecond for each megabyte."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


async def _get(redis: Redis, key: bytes) -> bytes:
    """Return the value, or b"" if there is none: None would mean that Redis is down."""
    content = await redis.get(key)
    return content if isinstance(content, bytes) else b""


def _unpack(content: bytes, predictor: Predictor) -> CachedAnswer | None:
    """Decode an answer; None if the content is no answer of this version."""
    numbers, shape = len(predictor.class_names) + predictor.has_ood_score, predictor.image.shape
    views, rest = divmod(len(content) - 4 * numbers, math.prod(shape))
    if rest or not 0 < views <= MAX_VIEWS:
        return None
    answer = np.frombuffer(content, np.float32, numbers)
    if not np.isfinite(answer).all():
        return None
    return CachedAnswer(np.frombuffer(content, np.uint8, offset=4 * numbers).reshape(-1, *shape), answer)
