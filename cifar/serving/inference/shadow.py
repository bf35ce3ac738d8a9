"""Shadow traffic: a second version answers the same image in the background, and only a comparison of the two is stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from cifar.models.predictor import Prediction
from cifar.serving.inference.classify import Classification
from cifar.serving.inference.loaded import LoadedVersions, Served
from cifar.serving.process.metrics import SHADOW_DISTANCE, SHADOWED

log = logging.getLogger(__name__)

MAX_IMAGES = 4
"""Images that shadow versions answer at the same time in one process. Further ones are skipped and counted."""


@dataclass(frozen=True)
class ShadowComparison:
    """The answers of two versions to one image, compared."""

    request_id: str
    model: str
    version: int
    shadow_version: int
    agrees: bool
    """True if both give the same class name the highest probability."""
    distance: float
    """Total variation distance of the probabilities, by class name, in [0, 1]; 0 for equal answers. For a multi-label version, the
    largest difference of one class."""


class Shadows:
    """Asks the shadow versions, a few images at a time. Use it from one event loop."""

    def __init__(
        self,
        versions: LoadedVersions,
        *,
        on_comparison: Callable[[ShadowComparison], object] | None = None,
        max_images: int = MAX_IMAGES,
    ) -> None:
        """Ask the shadow versions among `versions`; call `on_comparison` with each result."""
        self._versions = versions
        self._on_comparison = on_comparison
        self._max_images = max_images
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """The number of images that shadow versions are answering."""
        return len(self._tasks)

    def ask(self, request_id: str, answer: Classification) -> None:
        """Let the shadow versions answer the image of `answer` in the background."""
        for shadow in self._versions.shadows_of(request_id, answer.version):
            if shadow.predictor.image.shape != answer.seen.shape:  # it needs an input of another size
                _count(answer, shadow, "failed")
            elif len(self._tasks) >= self._max_images:
                _count(answer, shadow, "dropped")
            else:
                task = asyncio.create_task(self._ask(request_id, answer, shadow))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ask(self, request_id: str, answer: Classification, shadow: Served) -> None:
        try:
            output = await shadow.batcher.submit(answer.inputs, channel="shadow")
            other = shadow.predictor.rank(shadow.predictor.mean_of_views(output.rows), 1)
            comparison = ShadowComparison(
                request_id,
                answer.model_name,
                answer.version,
                shadow.predictor.version.number,
                agrees=answer.prediction.top_k[0][0] == other.top_k[0][0],
                distance=_distance(answer.prediction, other),
            )
            if self._on_comparison:
                self._on_comparison(comparison)
        except Exception:
            log.exception("shadow version %s failed", shadow.predictor.version.number)
            _count(answer, shadow, "failed")
            return
        _count(answer, shadow, "agrees" if comparison.agrees else "disagrees")
        SHADOW_DISTANCE.labels(comparison.version, comparison.shadow_version).observe(comparison.distance)


def _distance(one: Prediction, other: Prediction) -> float:
    a, b = one.class_scores, other.class_scores
    differences = [abs(a.get(name, 0) - b.get(name, 0)) for name in a.keys() | b.keys()]
    if one.multi_label or other.multi_label:
        return max(differences)
    return min(1.0, sum(differences) / 2)


def _count(answer: Classification, shadow: Served, result: str) -> None:
    SHADOWED.labels(answer.version, shadow.predictor.version.number, result).inc()
