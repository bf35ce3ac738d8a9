"""One loaded version: images in, ranked classes out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cifar.cpus import available_cpus
from cifar.engines import GAIN_FROM_BATCHES, Engine, Infer, cannot_run, load_engine
from cifar.errors import BadParameter, VersionUnusable
from cifar.registry import ImageSpec, Version

_QUICK_SECONDS = 0.001


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    class_scores: dict[str, float]
    """Probability of every class, in class order."""
    top_k: list[tuple[str, float]]
    """The k most probable classes, best first; equal scores in class order."""


class Predictor:
    """One loaded version. Safe to share between threads."""

    def __init__(self, version: Version, infer: Infer, *, engine: str) -> None:
        """Serve `version` with `infer`, which `engine` runs."""
        self.version = version
        self.engine = engine
        self.quick = False
        """Whether to ask for one image at once: waiting for others, or for a thread, would cost more. Known after `warm_up`."""
        self.class_names = version.manifest.class_names
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

    def warm_up(self) -> None:
        """Answer a few times: what happens only the first time keeps no user waiting, and the quickest tells if it is quick."""
        black = np.zeros((1, *self.image.shape), np.uint8)
        seconds = []
        try:
            for _ in range(5):
                started = time.perf_counter()
                self.predict(black, top_k=1)
                seconds.append(time.perf_counter() - started)
        except Exception as error:
            raise VersionUnusable(cannot_run(self.version, self.engine, error)) from error
        self.quick = min(seconds) < _QUICK_SECONDS and self.engine not in GAIN_FROM_BATCHES

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class for each image.

        Args:
            images: `(n, height, width, channels)` `uint8` in [0, 255], `n` at least 1, of the model's size.

        Returns:
            `(n, classes)` `float32`; each row sums to 1.

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
            images: as for `probabilities`.
            top_k: how many classes to rank, from 1 to the number of classes.

        Raises:
            BadParameter: `top_k` is out of range, or `images` has another dtype or shape.
        """
        return [self.rank(row, top_k) for row in self.probabilities(images)]

    def rank(self, probabilities: np.ndarray, top_k: int) -> Prediction:
        """Name and order one row of `probabilities`.

        Raises:
            BadParameter: there are not `top_k` classes.
        """
        if not 1 <= top_k <= len(self.class_names):
            raise BadParameter(f"top_k must be from 1 to {len(self.class_names)}, the number of classes; got {top_k}.")
        scores = dict(zip(self.class_names, probabilities.tolist(), strict=True))
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        return Prediction(class_scores=scores, top_k=ranked[:top_k])
