"""One loaded version: takes images, returns ranked classes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cifar.cpus import available_cpus
from cifar.errors import BadParameter, CifarError, VersionUnusable
from cifar.images.spec import ImageSpec, Views
from cifar.images.views import checked_views, mean_of_views, views_of
from cifar.models.engines import Engine, Infer, cannot_run, load_engine
from cifar.models.grades import Grade, grade_of
from cifar.models.manifest import OOD_THRESHOLD
from cifar.models.registry import Version

_WARM_UP_CALLS = 5


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    class_scores: dict[str, float]
    """Probability of every class, in class order."""
    top_k: list[tuple[str, float]]
    """The k most probable classes, best first; equal scores in class order."""
    ood_score: float | None = None
    """Out-of-distribution score; higher for an image less like the training images. None for a version without this score."""
    in_distribution: bool | None = None
    """True if the score is at most `OOD_THRESHOLD`. False: the image probably belongs to none of the classes."""
    multi_label: bool = False
    """True if each class has a probability of its own. Otherwise the probabilities of an image add up to 1."""

    @property
    def grade(self) -> Grade:
        """`class`, `unsure`, or `none` of the classes."""
        return grade_of(self.top_k[0][1], self.ood_score)


class Predictor:
    """One loaded version. Safe to share between threads."""

    def __init__(self, version: Version, infer: Infer, *, engine: str) -> None:
        """Wrap `infer`, the network of `version` that an engine has loaded. Use `load` to load one."""
        self.version = version
        self.engine = engine
        self.class_names = version.manifest.class_names
        self.has_ood_score = version.manifest.has_ood_score
        self.is_multi_label = version.manifest.is_multi_label
        self.seconds_per_image = math.inf
        """Shortest time of a call with one image; infinite before `warm_up`."""
        self._infer = infer

    @classmethod
    def load(cls, version: Version, engine: Engine = "auto", *, threads: int | None = None) -> Predictor:
        """Verify, load and warm up a version. It takes a tenth of a second with LiteRT, seconds with TensorFlow.

        For the engine and its threads, by default one for each processor, see `load_engine`.

        Raises:
            VersionUnusable: a file differs from the exported one, or the engine cannot run the version.
            ModelServerUnavailable: the engine is TensorFlow Serving, and it does not answer.
        """
        version.verify()
        name, infer = load_engine(version, engine, threads=threads or available_cpus())
        predictor = cls(version, infer, engine=name)
        predictor.warm_up()
        return predictor

    @property
    def image(self) -> ImageSpec:
        return self.version.manifest.image

    @property
    def precision(self) -> Literal["float32", "int8"]:
        """`int8` if some layers of the network compute in int8. Only a LiteRT file can have such layers."""
        quantization = self.version.manifest.quantization
        return quantization.precision if quantization and self.engine == "litert" else "float32"

    def probe(self) -> None:
        """Classify a black image, to check that the engine answers. The engine's exceptions are raised unchanged."""
        self.answers(np.zeros((1, *self.image.shape), np.uint8))

    def warm_up(self) -> None:
        """Classify a few black images, so that the slow first calls of an engine do not delay a user.

        Raises:
            VersionUnusable: the network cannot be run, or its answers do not fit the manifest.
        """
        black = np.zeros((1, *self.image.shape), np.uint8)
        try:
            for _ in range(_WARM_UP_CALLS):
                started = time.perf_counter()
                self.predict(black, top_k=1)
                self.seconds_per_image = min(self.seconds_per_image, time.perf_counter() - started)
        except CifarError:
            raise
        except Exception as error:
            raise VersionUnusable(cannot_run(self.version, self.engine, error)) from error

    def answers(self, images: np.ndarray, views: int = 1) -> np.ndarray:
        """Return the model's raw answers, one row for each image. `rank` interprets a row.

        Args:
            images: `(n, height, width, channels)` `uint8` in [0, 255], `n` at least 1, of the size in `image`.
            views: number of views of each image to average, 1, 2 or 6: see `views_of`.

        Returns:
            `float32`. `(n, classes)` probabilities, each row with sum 1 unless the version is multi-label; or, for a version
            with OOD score, `(n, classes + 1)` with `ood_score` in the last column.

        Raises:
            BadParameter: another dtype or shape; without this check, floats in [0, 1] would be rounded down to black.
        """
        self._check(images)
        return self._infer(images) if views == 1 else self.answers_of([views_of(image, views) for image in images])

    def answers_of(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return one row of `answers` for each of at least one picture: the mean of those to its views (`to_views`), which are one batch."""
        images = np.concatenate(pictures)
        self._check(images)
        ends = np.cumsum([len(views) for views in pictures])[:-1]
        return np.stack([self.mean_of_views(rows) for rows in np.split(self._infer(images), ends)])

    def _check(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != self.image.shape or len(images) == 0:
            raise BadParameter(
                f"Expected uint8 images of shape (n, {', '.join(map(str, self.image.shape))}) in [0, 255]; "
                f"got {images.dtype} of shape {images.shape}."
            )

    def views_for(self, views: object) -> Views:
        """Parse a number of views (`checked_views`). `auto` is 1 for a version that does not gain from several."""
        checked = checked_views(views)
        return 1 if checked == "auto" and not self.version.manifest.gains_from_views else checked

    def mean_of_views(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean of the raw answers to the views of an image: see `cifar.images.views.mean_of_views`."""
        return mean_of_views(rows, len(self.class_names), multi_label=self.is_multi_label)

    def clamp_top_k(self, top_k: int) -> int:
        """Limit a default `top_k`, which was not chosen for this model, to the number of classes."""
        return min(top_k, len(self.class_names))

    def predict(self, images: np.ndarray, *, top_k: int, views: int = 1) -> list[Prediction]:
        """Classify images, which are as for `answers`, and rank `top_k` classes for each.

        Raises:
            BadParameter: `top_k` is out of range; or see `answers`.
        """
        return [self.rank(row, top_k) for row in self.answers(images, views)]

    def rank(self, answer: np.ndarray, top_k: int) -> Prediction:
        """Turn one row of `answers` into a prediction.

        Raises:
            BadParameter: `top_k` is out of range.
        """
        if not 1 <= top_k <= len(self.class_names):
            raise BadParameter(f"top_k must be from 1 to {len(self.class_names)}, the number of classes; got {top_k}.")
        probabilities = answer.tolist()
        ood_score = probabilities.pop() if self.has_ood_score else None
        scores = dict(zip(self.class_names, probabilities, strict=True))
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        in_distribution = None if ood_score is None else ood_score <= OOD_THRESHOLD
        return Prediction(scores, ranked[:top_k], ood_score, in_distribution, self.is_multi_label)
