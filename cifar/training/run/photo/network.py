"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, in its edition for phones) with a new last layer."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from cifar.training.data.photographs import PHOTO
from cifar.training.network.architectures import Shape

_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""For each stage: number of blocks, side of the kernel, stride of the first block, expansion, and channels."""
_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3
"""Epsilon of the batch normalization that the weights were trained with."""


def photo_network(image_shape: Shape, classes: int) -> keras.Model:
    """Build the network with random weights, from pixels in [0, 255] to probabilities, of Keras's own layers only.

    `load_backbone` sets all but the last layer, and makes the batch normalization a part of the convolutions. The features, `(n, 1280)`, have length 1.
    """
    pixels = layers.Input(image_shape, name="pixels")
    x = layers.Rescaling(1 / 128, -127 / 128, name="to_unit_range")(pixels)
    x = _activated(layers.Conv2D(_STEM, 3, 2, padding="same", name="stem"), x)
    number = 0
    for repeats, kernel, stride, expansion, channels in _STAGES:
        for repeat in range(repeats):
            before = x
            if expansion > 1:
                x = _activated(layers.Conv2D(x.shape[-1] * expansion, 1, name=f"block{number}_expand"), x)
            strides = stride if repeat == 0 else 1
            x = _activated(layers.DepthwiseConv2D(kernel, strides, padding="same", name=f"block{number}_depthwise"), x)
            x = layers.Conv2D(channels, 1, name=f"block{number}_project")(x)
            x = layers.Add()([before, x]) if repeat else x
            number += 1
    x = _activated(layers.Conv2D(_HEAD, 1, name="head"), x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.UnitNormalization(name="features")(x)
    return keras.Model(pixels, layers.Dense(classes, activation="softmax", name="probabilities")(x), name=PHOTO)


def _activated(layer: keras.Layer, x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.ReLU(6)(layer(x))


def load_backbone(model: keras.Model, weights: dict[str, np.ndarray]) -> None:
    """Set the weights of all convolutions, multiplied with the batch normalization that follows each one in the original."""
    arrays = iter([array for name, array in weights.items() if not name.endswith("num_batches_tracked")])
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            kernel, scale, shift, mean, variance = (next(arrays) for _ in range(5))
            factor = scale / np.sqrt(variance + _EPSILON)
            axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
            layer.set_weights([(kernel * factor[:, None, None, None]).transpose(axes), shift - mean * factor])
