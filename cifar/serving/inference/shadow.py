"""Shadow traffic: a second version answers the same image in the background, and only the comparison is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cifar.serving.inference.cache import CachedAnswer
from cifar.serving.inference.loaded import LoadedVersions, Served
from cifar.serving.process.metrics import SHADOW_DISTANCE, SHADOWED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What two versions said of one image."""

    request_id: str
    model: str
    version: int
    shadow_version: int
    agrees: bool
    """Whether both give the same class, by its name."""
    distance: float
    """Total variation of the probabilities, by class name, in [0, 1]: 0 for the same answer."""


class Shadows:
    """Asks the shadow versions, a few images at a time. Use it from one event loop."""

    def __init__(
        self, versions: LoadedVersions, *, most: int, compared: Callable[[Comparison], object] | None = None
    ) -> None:
        """Ask shadows of `versions`.

        Args:
            versions: says which there are, and for which requests.
            most: images under way at once; who comes when they are is left out, and counted.
            compared: told of each comparison.
        """
        self._versions = versions
        self._most = most
        self._compared = compared
        self._under_way: set[asyncio.Task[None]] = set()

    def answer(self, request_id: str, served: Served, kept: CachedAnswer) -> None:
        """Have the shadows answer what `served` has answered. Returns at once."""
        for shadow in self._versions.shadows_of(request_id, served.predictor.version.number):
            if shadow.predictor.image != served.predictor.image:  # its input would be other pixels
                _count(served, shadow, "failed")
            elif len(self._under_way) >= self._most:
                _count(served, shadow, "dropped")
            else:
                task = asyncio.create_task(self._ask(request_id, served, shadow, kept))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    async def _ask(self, request_id: str, served: Served, shadow: Served, kept: CachedAnswer) -> None:
        try:
            answer = await shadow.batcher.submit(kept.pixels, channel="shadow")
            comparison = _compare(request_id, served, shadow, kept.answer, answer.row)
            if self._compared:
                self._compared(comparison)
        except Exception:
            log.exception("shadow version %s failed", shadow.predictor.version.number)
            _count(served, shadow, "failed")
            return
        _count(served, shadow, "agrees" if comparison.agrees else "disagrees")
        SHADOW_DISTANCE.labels(*_numbers(served, shadow)).observe(comparison.distance)


def _compare(request_id: str, served: Served, shadow: Served, row: np.ndarray, other: np.ndarray) -> Comparison:
    ours, theirs = (each.predictor.rank(answer, 1) for each, answer in ((served, row), (shadow, other)))
    names = ours.class_scores.keys() | theirs.class_scores.keys()
    distance = sum(abs(ours.class_scores.get(name, 0) - theirs.class_scores.get(name, 0)) for name in names) / 2
    return Comparison(
        request_id,
        served.predictor.version.name,
        *_numbers(served, shadow),
        agrees=ours.top_k[0][0] == theirs.top_k[0][0],
        distance=min(1.0, distance),
    )


def _numbers(served: Served, shadow: Served) -> tuple[int, int]:
    return served.predictor.version.number, shadow.predictor.version.number


def _count(served: Served, shadow: Served, result: str) -> None:
    SHADOWED.labels(*_numbers(served, shadow), result).inc()
