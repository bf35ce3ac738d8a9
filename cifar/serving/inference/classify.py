"""Bytes in, classification out: the one function behind the page, its API and REST."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cifar.cpus import available_cpus
from cifar.errors import BadParameter, CallerLeft, MissingImage, Overloaded, WaitedTooLong
from cifar.images.decode import open_image, preprocess, to_input
from cifar.models.predictor import Prediction, Predictor
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.batcher import Answer
from cifar.serving.inference.cache import AnswerCache, CachedAnswer, digest_from_key, file_digest
from cifar.serving.inference.loaded import LoadedVersions, Served
from cifar.serving.inference.recording import Records
from cifar.serving.inference.shadow import Shadows
from cifar.serving.process.metrics import REFUSED
from cifar.settings import Settings

_AT_ONCE_PIXELS = 256 * 256
_AT_ONCE_BYTES = 16 * 1024
_AT_ONCE_JPEG_BYTES = 128 * 1024
"""Other formats may unpack a thousandfold."""
Disconnected = Callable[[], Awaitable[object]] | None
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Classification:
    """One answer, and what a person may want to know about it."""

    model_name: str
    version: int
    prediction: Prediction
    seen: np.ndarray
    """The model's input, `(height, width, channels)` `uint8`."""
    inference_ms: float | None
    """Milliseconds in the model, of the batch that the image was in; None for an answer that was kept."""

    def as_json(self) -> dict[str, Any]:
        """The answer as every API gives it."""
        label, score = self.prediction.top_k[0]
        ood_score = self.prediction.ood_score
        return {
            "predicted_class": label,
            "confidence": round(score, 4),
            "class_scores": {name: round(value, 6) for name, value in self.prediction.class_scores.items()},
            "top_k": [{"label": name, "score": round(value, 6)} for name, value in self.prediction.top_k],
            "ood_score": None if ood_score is None else round(ood_score, 4),
            "in_distribution": self.prediction.in_distribution,
            "model": {"name": self.model_name, "version": self.version},
        }


class _Result(NamedTuple):
    served: Served
    kept: CachedAnswer
    seconds: float | None
    key: bytes


class Classifier:
    """Classifies uploaded files with the loaded versions. Use it from one event loop."""

    def __init__(
        self,
        versions: LoadedVersions,
        settings: Settings,
        cache: AnswerCache,
        records: Records | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        self.versions = versions
        self.records = records
        self._shadows = shadows
        self._settings = settings
        self._cache = cache
        self._decoders = ThreadPoolExecutor(max(2, available_cpus() // settings.workers), "decode")
        self._waiting = 0

    async def classify(
        self,
        payload: bytes | None,
        *,
        channel: str,
        requester: Requester | None = None,
        top_k: object = None,
        version: object = None,
        disconnected: Disconnected = None,
        record: bool = False,
    ) -> Classification:
        """Classify one image file.

        Args:
            payload: the encoded file, as uploaded.
            channel: the way it came, for fairness and the metrics: `rest`, `page`, `gradio`, `mcp` or `batch`.
            requester: who asks; None where nobody did, as in a test.
            top_k: how many classes to rank, an integer or its digits; None or "" for the setting.
            version: the version to ask, an integer or its digits; None or "" for the default one.
            disconnected: returns when the caller has left; asked only when there is something to wait for.
            record: whether this is an answer that somebody may say something of; kept where records are.

        Raises:
            MissingImage: there is no payload.
            BadParameter: `top_k` or `version` is no whole number or out of range.
            Overloaded: too many images wait already, or this one waited too long.
            CallerLeft: they did.
            CifarError: see `preprocess` and `LoadedVersions.get`.
        """
        if payload is None:
            raise MissingImage(
                "No image came. Send one as the file field `image`, or as the body with Content-Type image/*."
            )
        started = time.perf_counter()
        wanted, number = whole_number("top_k", top_k), whole_number("version", version)
        served = self.versions.if_loaded(number, requester.user if requester else "")
        result = self._at_once(payload, served) if served else None
        served, kept, seconds, key = result or await self._in_turn(payload, served or number, channel, disconnected)
        predictor = served.predictor
        count = predictor.at_most(self._settings.default_top_k) if wanted is None else wanted
        prediction = predictor.rank(kept.answer, count)
        version = predictor.version
        served.count(channel, prediction)
        if self._shadows and record and requester and number is None and seconds is not None:
            self._shadows.answer(requester.request_id, served, kept)
        if record and requester and self.records:
            digest = digest_from_key(key) or await asyncio.to_thread(file_digest, payload)
            if self.records.keeps_images:
                await self.records.keep(digest, payload)
            self.records.add(
                prediction,
                kept.pixels,
                requester=requester,
                channel=channel,
                model=version.name,
                version=version.number,
                digest=digest,
                seconds=time.perf_counter() - started,
            )
        return Classification(
            version.name, version.number, prediction, kept.pixels, None if seconds is None else seconds * 1000
        )

    def _at_once(self, payload: bytes, served: Served) -> _Result | None:
        """The answer for a small file of a quick model; None for anything else."""
        predictor = served.predictor
        if not predictor.quick or len(payload) > _at_once_bytes(payload):
            return None
        key = self._cache.key(payload, predictor)
        if kept := self._cache.here(key):
            return _Result(served, kept, None, key)
        pixels = self._decode_at_once(payload, predictor)
        if pixels is None:
            return None
        answer = _ask(predictor, pixels)
        kept = CachedAnswer(pixels, answer.row)
        self._cache.keep(key, kept)
        return _Result(served, kept, answer.seconds, key)

    async def _in_turn(
        self, payload: bytes, asked: Served | int | None, channel: str, disconnected: Disconnected
    ) -> _Result:
        """Wait for what is not at hand: the version, a thread to decode in, the model."""
        run = asyncio.get_running_loop().run_in_executor
        async with self.queue_slot(channel, disconnected):
            served = asked if isinstance(asked, Served) else await asyncio.to_thread(self.versions.get, asked)
            predictor = served.predictor
            small = len(payload) <= _at_once_bytes(payload)
            digest = partial(self._cache.key, payload, predictor)
            key = digest() if small else await run(self._decoders, digest)
            if kept := self._cache.here(key) or await self._cache.elsewhere(key, predictor):
                return _Result(served, kept, None, key)
            pixels = self._decode_at_once(payload, predictor) if small else None
            if pixels is None:
                decode = partial(preprocess, spec=predictor.image, max_pixels=self._settings.max_image_pixels)
                pixels = await run(self._decoders, decode, payload)
            answer = (
                _ask(predictor, pixels) if predictor.quick else await served.batcher.submit(pixels, channel=channel)
            )
            kept = CachedAnswer(pixels, answer.row)
            self._cache.keep(key, kept)
            self._cache.share(key, kept)
            return _Result(served, kept, answer.seconds, key)

    def _decode_at_once(self, payload: bytes, predictor: Predictor) -> np.ndarray | None:
        """The model's input, when decoding takes about a millisecond: handing that to a thread would cost more.

        Returns:
            None for more pixels, or a slower way: a progressive JPEG is decoded scan by scan.
        """
        image = open_image(payload, predictor.image, max_pixels=self._settings.max_image_pixels)
        if image.width * image.height > _AT_ONCE_PIXELS or "progressive" in image.info:
            return None
        return to_input(image, predictor.image)

    @asynccontextmanager
    async def queue_slot(self, channel: str, disconnected: Disconnected) -> AsyncIterator[None]:
        """A place among those who wait, for a limited time, given up when the caller leaves."""
        most, seconds = self._settings.max_waiting_images, self._settings.max_wait_seconds
        if self._waiting >= most:
            REFUSED.labels(channel, Overloaded.code).inc()
            raise Overloaded(f"{most} images are waiting already. Try again in a moment.")
        self._waiting += 1
        watch = None
        try:
            async with asyncio.timeout(seconds) as limit:
                watch = asyncio.create_task(_expire_when(disconnected, limit)) if disconnected else None
                yield
        except TimeoutError as error:
            if watch and watch.done():
                raise CallerLeft("The caller left before the answer.") from error
            REFUSED.labels(channel, WaitedTooLong.code).inc()
            raise WaitedTooLong(f"The image was not answered within {seconds:g} seconds. Try again later.") from error
        finally:
            self._waiting -= 1
            if watch:
                watch.cancel()


async def _expire_when(disconnected: Callable[[], Awaitable[object]], limit: asyncio.Timeout) -> None:
    await disconnected()
    limit.reschedule(asyncio.get_running_loop().time())


def _at_once_bytes(payload: bytes) -> int:
    """Up to how many bytes such a file counts as small."""
    return _AT_ONCE_JPEG_BYTES if payload.startswith(b"\xff\xd8") else _AT_ONCE_BYTES


def _ask(predictor: Predictor, pixels: np.ndarray) -> Answer:
    """Ask the model here and now."""
    started = time.perf_counter()
    (row,) = predictor.answers(pixels[None])
    return Answer(row, time.perf_counter() - started)


def whole_number(name: str, value: object) -> int | None:
    """What a form, a JSON body or a slider sent as a whole number; None for nothing.

    Raises:
        BadParameter: it is none.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not _WHOLE_NUMBER.fullmatch(str(value)):
        raise BadParameter(f"{name} must be a whole number; got {str(value)[:40]!r}.")
    return int(str(value))
