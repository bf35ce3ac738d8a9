"""Answers kept by the image's digest: the same file, asked again of the same version, is not classified again."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache
from redis.asyncio import Redis

from cifar import __version__
from cifar.models.predictor import Predictor
from cifar.serving.process.metrics import CACHE
from cifar.serving.process.redis import SharedRedis

_DIGEST_BYTES = 16


class CachedAnswer(NamedTuple):
    """What the model was given, and what it said."""

    pixels: np.ndarray
    """`(height, width, channels)` `uint8`."""
    answer: np.ndarray
    """`float32`, a row of `Predictor.answers`."""


class AnswerCache:
    """The answers last given by this process; behind it, those of all workers and hosts in Redis."""

    def __init__(self, *, images: int, lifetime_seconds: int, redis: SharedRedis | None) -> None:
        """Keep answers.

        Args:
            images: how many this process keeps; 0 for no cache at all, here or in Redis.
            lifetime_seconds: for how long Redis keeps one.
            redis: None to keep them here only.
        """
        self._kept: LRUCache[bytes, CachedAnswer] = LRUCache(images)
        self._lifetime_seconds = lifetime_seconds
        self._redis = redis if images else None
        self._sharing: set[asyncio.Task[object]] = set()

    def key(self, payload: bytes, predictor: Predictor) -> bytes:
        """Names an image file and a version, both by content: a number that was exported anew is another version.

        Empty where nothing is kept. Takes about a millisecond for each megabyte.
        """
        if not self._kept.maxsize:
            return b""
        version = predictor.version.manifest
        name = f"{__version__}:{version.name}:{version.version}:{version.created}"
        return f"cifar:answer:{name}:{file_digest(payload)}".encode()

    def here(self, key: bytes) -> CachedAnswer | None:
        """An answer that this process keeps."""
        if not key:
            return None
        if kept := self._kept.get(key):
            CACHE.labels("local", "hit").inc()
        return kept

    async def elsewhere(self, key: bytes, predictor: Predictor) -> CachedAnswer | None:
        """An answer that Redis keeps; from now on this process does too."""
        if self._redis is None:
            return None
        content = await self._redis.ask(partial(_get, self._redis.client, key))
        kept = content and _unpack(content, predictor)
        CACHE.labels("redis", "hit" if kept else "miss").inc()
        if not kept:
            return None
        self.keep(key, kept)
        return kept

    def keep(self, key: bytes, kept: CachedAnswer) -> None:
        """Keep an answer that was not here: that it was missed is counted now, however often it was looked for."""
        if key:
            CACHE.labels("local", "miss").inc()
            self._kept[key] = kept

    def share(self, key: bytes, kept: CachedAnswer) -> None:
        """Keep an answer for the others, when Redis gets to it: nobody waits."""
        if self._redis is None:
            return
        content = kept.answer.tobytes() + kept.pixels.tobytes()
        task = asyncio.create_task(
            self._redis.ask(partial(self._redis.client.set, key, content, ex=self._lifetime_seconds))
        )
        self._sharing.add(task)
        task.add_done_callback(self._sharing.discard)


def file_digest(payload: bytes) -> str:
    """Names a file by its content: 32 hexadecimal digits. Takes about a millisecond for each megabyte."""
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).hexdigest()


def digest_from_key(key: bytes) -> str:
    """The file's digest in a key of `AnswerCache.key`; empty for an empty one."""
    return key[-2 * _DIGEST_BYTES :].decode()


async def _get(redis: Redis, key: bytes) -> bytes:
    """Empty where there is none: None would mean that Redis did not answer."""
    content = await redis.get(key)
    return content if isinstance(content, bytes) else b""


def _unpack(content: bytes, predictor: Predictor) -> CachedAnswer | None:
    """The answer, or None for something else under its name."""
    numbers, shape = len(predictor.class_names) + (predictor.threshold is not None), predictor.image.shape
    if len(content) != 4 * numbers + int(np.prod(shape)):
        return None
    answer = np.frombuffer(content, np.float32, numbers)
    return CachedAnswer(np.frombuffer(content, np.uint8, offset=4 * numbers).reshape(shape), answer)
