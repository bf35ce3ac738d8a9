"""How each network is trained: optimizer, loss, views, and what a run does when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from cifar.training.network.architectures import Precision
from cifar.training.network.muon import Muon

_LEAST_STEPS_AN_EPOCH = 10


@dataclass(frozen=True)
class Recipe:
    """One network's way to be trained."""

    optimizer: Callable[[float, Precision], keras.optimizers.Optimizer]
    """From learning rate and precision."""
    learning_rate: float
    transfer_ratio: float
    """What remains of the learning rate when weights are taken over: more would destroy what they have learned."""
    batch_size: int
    """Of images of CIFAR's size; larger images come in smaller batches, few images too."""
    epochs: int
    least_steps: int
    """With few images there are more epochs, until there are so many steps."""
    anneal: bool
    """Whether the learning rate falls to zero in a straight line."""
    label_smoothing: float
    shift: int | None
    """Most pixels that a view is moved by, of 32, before it may be mirrored; None for the pictures as they are."""

    def batch_for(self, images: int, shape: tuple[int, int, int]) -> int:
        """A batch size for so many training images of such a shape."""
        by_pixels = self.batch_size * 32 * 32 // (shape[0] * shape[1])
        return max(8, min(self.batch_size, by_pixels, images // _LEAST_STEPS_AN_EPOCH))

    def epochs_for(self, images: int, batch_size: int) -> int:
        """Epochs for so many training images."""
        return max(self.epochs, -(-self.least_steps * batch_size // images))


RECIPES: dict[str, Recipe] = {
    # After cifar10-airbench94 with Muon (https://github.com/KellerJordan/cifar10-airbench), which has 8 epochs.
    "fast": Recipe(
        optimizer=lambda rate, precision: Muon(rate, dtype=precision),
        learning_rate=0.24,
        transfer_ratio=0.1,
        batch_size=1000,
        epochs=24,
        least_steps=400,
        anneal=True,
        label_smoothing=0.2,
        shift=4,
    ),
    # TensorFlow's CIFAR tutorial.
    "tutorial": Recipe(
        optimizer=lambda rate, _: keras.optimizers.Adam(rate),
        learning_rate=1e-3,
        transfer_ratio=1.0,
        batch_size=64,
        epochs=10,
        least_steps=0,
        anneal=False,
        label_smoothing=0.0,
        shift=None,
    ),
}
