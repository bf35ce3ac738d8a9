"""The networks. Each takes raw pixels in [0, 255] and scales them itself, so that serving cannot scale them otherwise."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import layers

from cifar import IMAGE_SHAPE
from cifar.errors import BadParameter


def tutorial(image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """The CNN of TensorFlow's CIFAR tutorial, with dropout: 122,570 parameters for 32x32x3 and 10 classes."""
    return keras.Sequential(
        [
            layers.Input(image_shape, name="pixels"),
            layers.Rescaling(1 / 255, name="to_unit_range"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(num_classes, activation="softmax", name="probabilities"),
        ],
        name="tutorial",
    )


ARCHITECTURES: dict[str, Callable[[tuple[int, int, int], int], keras.Model]] = {"tutorial": tutorial}


def build_model(arch: str, num_classes: int, *, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> keras.Model:
    """Make a new, untrained network.

    Returns:
        A model from `(n, height, width, channels)` pixels in [0, 255] to `(n, num_classes)` probabilities.

    Raises:
        BadParameter: no such architecture, fewer than two classes, or pictures too small for the network.
    """
    if arch not in ARCHITECTURES:
        raise BadParameter(f"There is no architecture {arch!r}; there are: {', '.join(ARCHITECTURES)}.")
    if num_classes < 2:
        raise BadParameter(f"A classifier needs at least 2 classes; got {num_classes}.")
    try:
        return ARCHITECTURES[arch](image_shape, num_classes)
    except ValueError as error:
        raise BadParameter(f"{arch} cannot take pictures of {image_shape}: {error}") from error
