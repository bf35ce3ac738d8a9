"""The training recipe of each architecture: optimizer, loss, augmentation, and defaults for the settings of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from cifar.training.network.architectures import Precision
from cifar.training.network.muon import Muon

_MIN_STEPS_PER_EPOCH = 10


@dataclass(frozen=True)
class Recipe:
    """The training settings of one architecture."""

    optimizer: Callable[[float, Precision], keras.optimizers.Optimizer]
    """Makes the optimizer from learning rate and precision."""
    learning_rate: float
    transfer_ratio: float
    """Factor for the learning rate with `init_from`. A higher learning rate would destroy what the weights have learned."""
    batch_size: int
    """For images of CIFAR's size. Batches are smaller for larger images and for small data sets."""
    epochs: int
    min_steps: int
    """Small data sets get as many epochs as this number of steps needs."""
    anneal: bool
    """True if the learning rate falls linearly to zero."""
    label_smoothing: float
    max_shift: int | None
    """Limit for random shifts, in pixels of an image 32 pixels high. None: no augmentation."""

    def batch_size_for(self, images: int, shape: tuple[int, int, int]) -> int:
        """Return the batch size for this number of training images of this shape."""
        by_pixels = self.batch_size * 32 * 32 // (shape[0] * shape[1])
        return max(8, min(self.batch_size, by_pixels, images // _MIN_STEPS_PER_EPOCH))

    def epochs_for(self, images: int, batch_size: int) -> int:
        """Return the number of epochs for this number of training images."""
        return max(self.epochs, -(-self.min_steps * batch_size // images))


# After cifar10-airbench94 with Muon (https://github.com/KellerJordan/cifar10-airbench), which has 8 epochs.
_FAST = Recipe(
    optimizer=lambda rate, precision: Muon(rate, dtype=precision),
    learning_rate=0.24,
    transfer_ratio=0.1,
    batch_size=1000,
    epochs=24,
    min_steps=400,
    anneal=True,
    label_smoothing=0.2,
    max_shift=4,
)

RECIPES: dict[str, Recipe] = {
    "fast": _FAST,
    "deep": _FAST,
    "large": _FAST,
    # TensorFlow's CIFAR tutorial.
    "tutorial": Recipe(
        optimizer=lambda rate, _: keras.optimizers.Adam(rate),
        learning_rate=1e-3,
        transfer_ratio=1.0,
        batch_size=64,
        epochs=10,
        min_steps=0,
        anneal=False,
        label_smoothing=0.0,
        max_shift=None,
    ),
}
