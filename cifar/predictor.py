"""One loaded version: images in, ranked classes out. TensorFlow is imported when a version is loaded, not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cifar.errors import BadParameter, VersionUnusable
from cifar.registry import ImageSpec, Version
from cifar.settings import quiet_tensorflow

_CANNOT_ANSWER = (
    "{0.name} version {0.number} is as it was exported, but TensorFlow cannot run it ({1}). Export it again."
)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    class_scores: dict[str, float]
    """Probability of every class, in class order."""
    top_k: list[tuple[str, float]]
    """The k most probable classes, best first; equal scores in class order."""


class Predictor:
    """One loaded version. Safe to share between threads."""

    def __init__(self, version: Version, infer: Callable[[np.ndarray], np.ndarray]) -> None:
        """Serve `version` with `infer`, from `uint8` images to `float32` probabilities."""
        self.version = version
        self.class_names = version.manifest.class_names
        self._infer = infer

    @classmethod
    def load(cls, version: Version) -> Predictor:
        """Verify, load and warm up a version; seconds, and the first time some more for TensorFlow itself.

        Raises:
            VersionUnusable: a file is not what was exported, or TensorFlow cannot load it.
        """
        version.verify()
        predictor = cls(version, _load_saved_model(version))
        predictor.warm_up()
        return predictor

    @property
    def image(self) -> ImageSpec:
        """The size of one input."""
        return self.version.manifest.image

    def warm_up(self) -> None:
        """Answer once, so that no user waits for what happens only the first time."""
        try:
            self.predict(np.zeros((1, *self.image.shape), np.uint8), top_k=1)
        except Exception as error:
            raise VersionUnusable(_CANNOT_ANSWER.format(self.version, type(error).__name__)) from error

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
        if not 1 <= top_k <= len(self.class_names):
            raise BadParameter(f"top_k must be from 1 to {len(self.class_names)}, the number of classes; got {top_k}.")
        return [self._rank(row, top_k) for row in self.probabilities(images)]

    def _rank(self, probabilities: np.ndarray, top_k: int) -> Prediction:
        scores = dict(zip(self.class_names, probabilities.tolist(), strict=True))
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        return Prediction(class_scores=scores, top_k=ranked[:top_k])


def _load_saved_model(version: Version) -> Callable[[np.ndarray], np.ndarray]:
    """Load the SavedModel and return its `serving_uint8` signature as a function of arrays."""
    quiet_tensorflow()
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(version.path))  # owns the weights, so `infer` must hold it
    except Exception as error:  # TensorFlow raises whatever its file formats raise
        raise VersionUnusable(_CANNOT_ANSWER.format(version, type(error).__name__)) from error

    def infer(images: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = loaded.signatures["serving_uint8"](image=tf.constant(images))["probabilities"].numpy()
        return outputs

    return infer
