"""One loaded version: images in, ranked classes out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cifar.cpus import available_cpus
from cifar.errors import BadParameter, CifarError, VersionUnusable
from cifar.images.spec import ImageSpec
from cifar.models.engines import GAIN_FROM_BATCHES, Engine, Infer, cannot_run, load_engine
from cifar.models.registry import Version

_QUICK_SECONDS = 0.001


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    class_scores: dict[str, float]
    """Probability of every class, in class order."""
    top_k: list[tuple[str, float]]
    """The k most probable classes, best first; equal scores in class order."""
    ood_score: float | None = None
    """How unlike the training images the image is: higher is further away. None for a version without such a score."""
    in_distribution: bool | None = None
    """Whether the score is within the version's threshold. False: the image is probably of none of the classes."""


class Predictor:
    """One loaded version. Safe to share between threads."""

    def __init__(self, version: Version, infer: Infer, *, engine: str) -> None:
        """Serve `version` with `infer`, which `engine` runs."""
        self.version = version
        self.engine = engine
        self.quick = False
        """Whether to ask for one image at once: waiting for others, or for a thread, would cost more. Known after `warm_up`."""
        self.class_names = version.manifest.class_names
        confidence = version.manifest.confidence
        self.threshold = confidence and confidence.threshold
        """The largest `ood_score` that counts as in distribution; None for a version without scores."""
        self._infer = infer

    @classmethod
    def load(cls, version: Version, engine: Engine = "auto", *, threads: int | None = None) -> Predictor:
        """Verify, load and warm up a version: a tenth of a second with LiteRT, seconds with TensorFlow.

        Args:
            version: what to load.
            engine: see `load_engine`.
            threads: how many to compute with; None for as many as there are processors.

        Raises:
            VersionUnusable: a file is not what was exported, or the engine cannot run it.
        """
        version.verify()
        name, infer = load_engine(version, engine, threads=threads or available_cpus())
        predictor = cls(version, infer, engine=name)
        predictor.warm_up()
        return predictor

    @property
    def image(self) -> ImageSpec:
        """The size of one input."""
        return self.version.manifest.image

    def ask_once(self) -> None:
        """Ask for a black image, to see whether the engine answers; raises what it raises."""
        self.answers(np.zeros((1, *self.image.shape), np.uint8))

    def warm_up(self) -> None:
        """Answer a few times: what happens only the first time keeps no user waiting, and the quickest tells if it is quick."""
        black = np.zeros((1, *self.image.shape), np.uint8)
        seconds = []
        try:
            for _ in range(5):
                started = time.perf_counter()
                self.predict(black, top_k=1)
                seconds.append(time.perf_counter() - started)
        except CifarError:
            raise
        except Exception as error:
            raise VersionUnusable(cannot_run(self.version, self.engine, error)) from error
        self.quick = min(seconds) < _QUICK_SECONDS and self.engine not in GAIN_FROM_BATCHES

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class for each image.

        Args:
            images: as for `answers`.

        Returns:
            `(n, classes)` `float32`; each row sums to 1.

        Raises:
            BadParameter: as `answers` does.
        """
        return self.answers(images)[:, : len(self.class_names)]

    def answers(self, images: np.ndarray) -> np.ndarray:
        """All that the model says of each image; `rank` reads one row.

        Args:
            images: `(n, height, width, channels)` `uint8` in [0, 255], `n` at least 1, of the model's size.

        Returns:
            `(n, classes)` `float32` probabilities; for a version with scores `(n, classes + 1)`, `ood_score` last.

        Raises:
            BadParameter: another dtype or shape; says what came. Floats in [0, 1] would be cut to black without this.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image.shape or len(images) == 0:
            raise BadParameter(
                f"Expected uint8 images of shape (n, {', '.join(map(str, self.image.shape))}) in [0, 255]; "
                f"got {images.dtype} of shape {images.shape}."
            )
        return self._infer(images)

    def at_most(self, top_k: int) -> int:
        """`top_k`, or the number of classes when that is less: for a default that nobody chose for this model."""
        return min(top_k, len(self.class_names))

    def predict(self, images: np.ndarray, *, top_k: int) -> list[Prediction]:
        """Classify images; the one call behind page, API and command line.

        Args:
            images: as for `answers`.
            top_k: how many classes to rank, from 1 to the number of classes.

        Raises:
            BadParameter: `top_k` is out of range, or `images` has another dtype or shape.
        """
        return [self.rank(row, top_k) for row in self.answers(images)]

    def rank(self, answer: np.ndarray, top_k: int) -> Prediction:
        """Name and order one row of `answers`.

        Raises:
            BadParameter: there are not `top_k` classes.
        """
        if not 1 <= top_k <= len(self.class_names):
            raise BadParameter(f"top_k must be from 1 to {len(self.class_names)}, the number of classes; got {top_k}.")
        probabilities = answer.tolist()
        ood_score = probabilities.pop() if self.threshold is not None else None
        scores = dict(zip(self.class_names, probabilities, strict=True))
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        near = None if ood_score is None or self.threshold is None else ood_score <= self.threshold
        return Prediction(scores, ranked[:top_k], ood_score, near)
