"""Heat maps for all channels: computed one at a time, while predictions go on."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar.errors import BadParameter, Overloaded
from cifar.format import data_url
from cifar.models import heatmap as maps
from cifar.models.grades import Grade
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.batcher import Batcher
from cifar.serving.inference.classify import Classification
from cifar.serving.inference.queue_slots import Disconnected
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.process.metrics import REFUSED
from cifar.serving.process.shares import Shares
from cifar.settings import Settings

_CONCURRENT_IMAGES = 8
"""Occluded images that wait for the model at the same time. A prediction that comes meanwhile waits for these at most."""
_OVERLAY_SIDE = 480


@dataclass(frozen=True)
class Explanation:
    """A heat map: the regions of one image that the score of one label depends on."""

    model_name: str
    version: int
    label: str
    score: float
    heat: np.ndarray
    """`(height, width)` `float32` in [0, 1], of the model's input: see `cifar.models.heatmap`."""
    overlay: bytes
    """A PNG of the map over the photo in grey. Its longer side has at most 480 pixels."""
    seconds: float
    """Time to compute it, without the time in the queue."""
    grade: Grade
    """The grade of the answer to the image, whichever label is explained."""

    def as_json(self) -> dict[str, Any]:
        """Return the explanation in the form that all APIs share."""
        return {
            "label": self.label,
            "score": round(self.score, 6),
            "grade": self.grade,
            "heat": [[round(value, 3) for value in row] for row in self.heat.tolist()],
            "overlay": data_url(self.overlay),
            "model": {"name": self.model_name, "version": self.version},
        }


class Explainer:
    """Computes heat maps of image files with the loaded versions. Use it from one event loop."""

    def __init__(self, classifier: RecordedClassifier, settings: Settings) -> None:
        self._classifier = classifier
        self._places = Shares(settings.max_explained_images)
        self._one_at_a_time = asyncio.Lock()

    @property
    def waiting(self) -> int:
        return self._places.taken

    async def explain(
        self,
        payload: bytes | None,
        *,
        channel: str,
        requester: Requester | None = None,
        label: str | None = None,
        version: int | None = None,
        disconnected: Disconnected = None,
    ) -> Explanation:
        """Classify an image and compute the heat map of one label. This costs as much as about 80 predictions.

        Cancelling the call, or disconnecting, cancels what has not been computed yet. `label` is one of the version's classes; None or ""
        for the most probable one. For the other arguments see `RecordedClassifier.classify`.

        Raises:
            BadParameter: there is no such label.
            Overloaded: too many explanations are waiting already (`max_explained_images`, half of them for one caller).
            CifarError: see `Classifier.classify`.
        """
        caller = requester.caller if requester else ""
        if not self._places.take(caller):
            REFUSED.labels(channel, Overloaded.code).inc()
            raise Overloaded(
                f"{self._places.in_use(caller)} images are being explained already. Try again in a moment."
            )
        try:
            answer = await self._classifier.classify(
                payload, channel=channel, requester=requester, top_k=1, version=version, disconnected=disconnected
            )
            size_bytes = len(payload or b"")
            slot = self._classifier.queue.slot(channel, disconnected, caller=caller, size_bytes=size_bytes)
            return await self._explain(payload or b"", answer, label, slot)
        finally:
            self._places.give(caller)

    async def _explain(
        self, payload: bytes, answer: Classification, label: str | None, slot: AbstractAsyncContextManager[None]
    ) -> Explanation:
        scores = answer.prediction.class_scores
        label = label or answer.prediction.top_k[0][0]
        if label not in scores:
            raise BadParameter(f"There is no label {str(label)[:40]!r}; there are: {', '.join(scores)}.")
        async with slot, self._one_at_a_time:
            started = time.perf_counter()
            served = await asyncio.to_thread(self._classifier.versions.get, answer.version)
            heat = await heat_map(
                served.batcher,
                answer.seen,
                list(scores).index(label),
                classes=len(scores),
                multi_label=answer.prediction.multi_label,
            )
            photo = await self._classifier.decoder.picture(payload, longest_side=_OVERLAY_SIDE)
            overlay = await asyncio.to_thread(maps.overlay, photo, heat)
            seconds = time.perf_counter() - started
        grade = answer.prediction.grade
        return Explanation(answer.model_name, answer.version, label, scores[label], heat, overlay, seconds, grade)


async def heat_map(
    batcher: Batcher, pixels: np.ndarray, label_index: int, *, classes: int, multi_label: bool = False
) -> np.ndarray:
    """Compute the heat map of one image by occlusion sensitivity: see `cifar.models.heatmap`.

    The images wait in the batcher a few at a time, so that predictions that arrive meanwhile do not wait for all of them.

    Args:
        batcher: asks the version.
        pixels: the model's input, `(height, width, channels)` `uint8`.
        label_index: position of the label among the classes.
        classes: number of classes of the version. An OOD score behind their probabilities is ignored.
        multi_label: whether each class has a probability of its own.

    Returns:
        `(height, width)` `float32` in [0, 1].
    """
    images = await asyncio.to_thread(maps.occlusions, pixels)
    rows: list[np.ndarray] = []
    for start in range(0, len(images), _CONCURRENT_IMAGES):
        waiting = [
            batcher.submit(image[None], channel="explain") for image in images[start : start + _CONCURRENT_IMAGES]
        ]
        rows += [answer.row[:classes] for answer in await asyncio.gather(*waiting)]
    return maps.heat(np.stack(rows), label_index, *pixels.shape[:2], multi_label=multi_label)
