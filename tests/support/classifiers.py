"""Small Keras classifiers of every kind of preparation, with what their authors did to the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

L = keras.layers

NAMES = ("dark", "grey", "bright")

BRIGHTNESSES = {"black": 12, "dark": 70, "grey": 128, "bright": 186, "white": 243}
"""The classes of `by_brightness`, and their pixels."""


def by_brightness(black: float, white: float, *before: keras.layers.Layer) -> keras.Model:
    """Return a model that tells `BRIGHTNESSES` apart if black and white pixels have these values after the layers `before`."""
    centres = black + np.array(list(BRIGHTNESSES.values())) / 255 * (white - black)
    scale = 200 / (white - black) ** 2
    dense = L.Dense(len(centres), activation="softmax")
    model = keras.Sequential([L.Input((16, 16, 3)), *before, L.GlobalAveragePooling2D(), dense])
    weights = np.tile(2 * centres * scale, (dense.kernel.shape[0], 1)) / dense.kernel.shape[0]
    dense.set_weights([weights, -(centres**2) * scale])
    return model


def sequential(
    *before: keras.layers.Layer, shape: Sequence[int | None] = (16, 16, 3), dtype: str = "float32"
) -> keras.Model:
    """Return an untrained network behind these layers."""
    return keras.Sequential([L.Input(tuple(shape), dtype=dtype), *before, *_head()])


def functional(prepare: Callable[[Any], Any], shape: Sequence[int | None] = (16, 16, 3)) -> keras.Model:
    """Return an untrained network behind operations on its input."""
    pixels = L.Input(tuple(shape))
    values = prepare(pixels)
    for layer in _head():
        values = layer(values)
    return keras.Model(pixels, values)


def _head() -> list[keras.layers.Layer]:
    return [L.Conv2D(8, 3, activation="tanh"), L.Flatten(), L.Dense(3, activation="softmax")]


def augmentation() -> keras.Model:
    return keras.Sequential(
        [L.RandomFlip("horizontal"), L.RandomRotation(0.1), L.RandomZoom(0.1), L.RandomBrightness(0.2)]
    )


def adapted(images: np.ndarray) -> keras.layers.Layer:
    """Return a Normalization of these images."""
    layer = L.Normalization()
    layer.adapt(images)
    return layer


def photos(count: int = 64, size: int = 16, channels: int = 3) -> np.ndarray:
    """Return random images `(count, size, size, channels)` `uint8` with the mean and deviation of photographs."""
    dice = np.random.default_rng(0)
    return dice.normal(120, 62, (count, size, size, channels)).clip(0, 255).astype(np.uint8)
