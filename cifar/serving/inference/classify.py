"""Classification of one image file: find the version, look into the cache, decode, and wait for the model."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar.errors import BadParameter, MissingImage
from cifar.images.decode import open_image, pixels_in_file, to_views
from cifar.images.screening import decodes_row_by_row
from cifar.images.spec import ImageSpec, Views
from cifar.images.views import checked_views
from cifar.models.predictor import Prediction
from cifar.serving.inference.cache import AnswerCache, CachedAnswer, file_digest
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.queue_slots import Disconnected, QueueSlots
from cifar.serving.process.decoding import Decoder
from cifar.serving.process.shares import Shares
from cifar.settings import Settings

_SMALL_PIXELS = 256 * 256
_SMALL_JPEG_PIXELS = 2_000_000
"""Width x height of a JPEG file. It is decoded at a reduced scale, to fewer pixels."""
_SMALL_BYTES = 16 * 1024
_SMALL_JPEG_BYTES = 128 * 1024
"""A JPEG has a certain number of bytes for each pixel; files in other formats can unpack a thousandfold."""
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Classification:
    """The answer to one image."""

    model_name: str
    version: int
    prediction: Prediction
    inputs: np.ndarray
    """The views that the prediction is the mean of, `(n, height, width, channels)` `uint8`: see `to_views`."""
    inference_ms: float | None
    """Milliseconds that the model took for the batch with this image; None for a cached answer."""
    digest: str
    """The digest of the file: see `file_digest`."""

    @property
    def seen(self) -> np.ndarray:
        """The whole image as the model received it, `(height, width, channels)` `uint8`."""
        first: np.ndarray = self.inputs[0]
        return first

    def as_json(self) -> dict[str, Any]:
        """Return the answer in the form that all APIs share. Every `score` has 6 digits, `confidence` has the tutorial's 4."""
        label, score = self.prediction.top_k[0]
        scores = self.prediction.class_scores
        ood_score = self.prediction.ood_score
        return {
            "predicted_class": label,
            "confidence": round(score, 4),
            "class_scores": [round(value, 6) for value in scores.values()],
            "labels": list(scores),
            "top_k": [{"label": name, "score": round(value, 6)} for name, value in self.prediction.top_k],
            "ood_score": None if ood_score is None else round(ood_score, 4),
            "in_distribution": self.prediction.in_distribution,
            "grade": self.prediction.grade,
            "model": {"name": self.model_name, "version": self.version},
        }


class Classifier:
    """Classifies image files with the loaded versions. Use it from one event loop."""

    def __init__(
        self, versions: LoadedVersions, settings: Settings, cache: AnswerCache, *, host_lock: Path | None = None
    ) -> None:
        """Share the limits of the settings between all channels. For `host_lock` see `Decoder`."""
        self.versions = versions
        self.waiting_bytes = Shares(max(settings.max_waiting_bytes, 2 * settings.max_body_bytes))
        self.queue = QueueSlots(
            max_images=settings.max_waiting_images,
            max_seconds=settings.max_wait_seconds,
            waiting_bytes=self.waiting_bytes,
        )
        self.decoder = Decoder(settings, host_lock=host_lock)
        self._settings = settings
        self._cache = cache

    async def classify(
        self,
        payload: bytes | None,
        *,
        channel: str,
        user: str = "",
        caller: str = "",
        top_k: int | None = None,
        version: int | None = None,
        views: object = None,
        disconnected: Disconnected = None,
    ) -> Classification:
        """Classify one image file.

        Args:
            payload: the encoded file, as uploaded.
            channel: the way in which the request came: `rest`, `page`, `gradio`, `mcp` or `batch`. The channels take turns.
            user: chooses the version where traffic is split. A user always gets the same version.
            caller: see `Shares.take`.
            top_k: number of classes to rank; None for the setting `default_top_k`.
            version: number of the version to ask; None for the user's version.
            views: number of views to average, not yet checked: see `checked_views`.
            disconnected: see `Disconnected`.

        Raises:
            MissingImage: there is no payload.
            BadParameter: `top_k` is out of range, or `views` is none of `ALLOWED_VIEWS`.
            Overloaded, WaitedTooLong, CallerLeft: see `QueueSlots.slot`.
            CifarError: see `preprocess` and `LoadedVersions.get`.
        """
        if payload is None:
            raise MissingImage(
                "No image came. Send one as the file field `image`, or as the body with Content-Type image/*."
            )
        checked_views(views)  # before the version is known, and before anything is decoded
        async with self.queue.slot(channel, disconnected, caller=caller, size_bytes=len(payload)):
            served = self.versions.if_loaded(version, user)
            if served is None:
                served = await asyncio.to_thread(self.versions.get, version)
            predictor = served.predictor
            digest = file_digest(payload) if _is_small(payload) else await asyncio.to_thread(file_digest, payload)
            wanted = predictor.views_for(views)
            key = self._cache.key(digest, predictor, wanted)
            answer = self._cache.get_local(key) or await self._cache.get_shared(key, predictor)
            inference_ms = None
            if answer is None:
                inputs = await self._decode(payload, predictor.image, wanted)
                quick = served.batcher.at_once(inputs, channel=channel)
                rows, seconds = quick or await served.batcher.submit(inputs, channel=channel)
                answer, inference_ms = CachedAnswer(inputs, predictor.mean_of_views(rows)), seconds * 1000
                self._cache.put_local(key, answer)
                self._cache.put_shared(key, answer)
        limit = predictor.clamp_top_k(self._settings.default_top_k) if top_k is None else top_k
        prediction = predictor.rank(answer.answer, limit)
        name, number = predictor.version.name, predictor.version.number
        return Classification(name, number, prediction, answer.views, inference_ms, digest)

    async def _decode(self, payload: bytes, spec: ImageSpec, views: Views) -> np.ndarray:
        inputs = decode_small(payload, spec, views, max_pixels=self._settings.max_image_pixels)
        return await self.decoder.preprocess(payload, spec, views) if inputs is None else inputs


def decode_small(payload: bytes, spec: ImageSpec, views: Views = 1, *, max_pixels: int) -> np.ndarray | None:
    """Decode an image for which that takes at most about a millisecond. For the event loop.

    A 947-byte JPEG takes 54 microseconds; a thread would add 33 of processor time (measured on 2026-11-26, two cores).
    For the arguments and errors see `preprocess_views`.

    Returns:
        The views; None for a large image, and for a JPEG that is not decoded in one scan, such as a progressive one.
    """
    if not _is_small(payload):
        return None
    image = open_image(payload, spec, max_pixels=max_pixels)
    if image.width * image.height > _SMALL_PIXELS or "progressive" in image.info:
        return None
    in_file = pixels_in_file(image)
    if in_file > _SMALL_JPEG_PIXELS or (in_file > _SMALL_PIXELS and not decodes_row_by_row(payload)):
        return None
    return to_views(image, spec, views)


def _is_small(payload: bytes) -> bool:
    return len(payload) <= (_SMALL_JPEG_BYTES if payload.startswith(b"\xff\xd8") else _SMALL_BYTES)


def whole_number(name: str, value: object) -> int | None:
    """Parse a whole number from a form, a JSON body or a slider; None and "" mean that there is none.

    Raises:
        BadParameter: the value is no whole number, or it has more than nine digits.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not _WHOLE_NUMBER.fullmatch(str(value)):
        raise BadParameter(f"{name} must be a whole number; got {str(value)[:40]!r}.")
    return int(str(value))
