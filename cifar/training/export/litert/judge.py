"""Compares an int8 LiteRT file with the float32 file, on images that the network was not trained on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cifar.cpus import available_cpus
from cifar.models.engines import litert_from
from cifar.models.manifest import Figure
from cifar.training.data.outliers import make_outliers
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.measures import auroc, calibration_error

MIN_IMAGES = 300
"""If none of 300 labels changes, fewer than 1 % of all labels change, with 95 % confidence (the rule of three)."""

BOUNDS = {
    "accuracy": 0.001,
    "labels_changed": 0.01,
    "mean_probability_difference": 0.002,
    "calibration_error": 0.002,
    "auroc": 0.005,
}
"""The largest accepted change of each figure. An improvement counts too: the two files should give the same answers."""

_RANKED = 10
"""Number of classes whose probabilities are compared, the most probable ones: a mean over a thousand classes is near zero."""
_THREAD_CHUNK = 16


@dataclass(frozen=True)
class Judge:
    """Held-out images with the float32 file's answers."""

    float_file: bytes
    held_out: HeldOut
    classes: int
    multi_label: bool
    has_score: bool

    @cached_property
    def outliers(self) -> np.ndarray:
        """Synthetic outliers made from the held-out images, about one for each; none for a network without OOD score."""
        images = self.held_out.images
        return make_outliers(images, len(images), np.random.default_rng(0)) if self.has_score else images[:0]

    @cached_property
    def _expected(self) -> np.ndarray:
        return self.answers(self.float_file, self._images)

    def figures(self, content: bytes) -> dict[str, Figure]:
        """Compare a file with the float32 file by the figures in `BOUNDS`. Figures that need missing labels or scores are left out."""
        both = (self._expected, self.answers(content, self._images))
        scores, new_scores = map(self._scores, both)
        figures = {name: Figure.between(scores[name], new_scores[name], BOUNDS[name]) for name in scores}
        before, after = (rows[: len(self.held_out.images), : self.classes] for rows in both)
        return figures | {
            "labels_changed": Figure.of(float(self._changed(before, after).mean()), BOUNDS["labels_changed"]),
            "mean_probability_difference": Figure.of(
                _mean_difference(before, after), BOUNDS["mean_probability_difference"]
            ),
        }

    @cached_property
    def _images(self) -> np.ndarray:
        return np.concatenate([self.held_out.images, self.outliers])

    @staticmethod
    def answers(content: bytes, images: np.ndarray) -> np.ndarray:
        """Return the output rows of a LiteRT file for images, computed with all processors."""
        infer = litert_from(content)
        chunks = [images[start : start + _THREAD_CHUNK] for start in range(0, len(images), _THREAD_CHUNK)]
        with ThreadPoolExecutor(available_cpus()) as pool:
            return np.concatenate(list(pool.map(infer, chunks)))

    def _changed(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        if self.multi_label:
            changed: np.ndarray = np.any((before > 0.5) != (after > 0.5), axis=1)
        else:
            changed = before.argmax(axis=1) != after.argmax(axis=1)
        return changed

    def _scores(self, rows: np.ndarray) -> dict[str, float]:
        scores, count = {}, len(self.held_out.images)
        if self.held_out.labels is not None and not self.multi_label:
            probabilities, labels = rows[:count, : self.classes], self.held_out.labels
            scores["accuracy"] = float((probabilities.argmax(axis=1) == labels).mean())
            scores["calibration_error"] = calibration_error(probabilities, labels)
        if self.has_score:
            scores["auroc"] = auroc(rows[:count, -1], rows[count:, -1])
        return scores


def _mean_difference(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean absolute difference of a probability, over the ten most probable classes of each image."""
    top = np.argsort(-before, axis=1)[:, :_RANKED]
    return float(np.abs(np.take_along_axis(after - before, top, axis=1)).mean())
