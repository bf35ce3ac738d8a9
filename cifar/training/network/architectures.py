"""The network architectures. Each takes raw pixels in [0, 255] and scales them itself, so serving cannot scale differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import keras
import numpy as np
from keras import layers

from cifar import IMAGE_SHAPE
from cifar.errors import BadParameter
from cifar.training.network.batchnorm import batch_normalization

Shape = tuple[int, int, int]
Precision = Literal["float32", "bfloat16"]

INPUT_RANGE = (0.0, 255.0)
"""The pixel values that these networks take for black and white."""

_HEAD_SCALE = 1 / 9
_WHITEN = "whiten"
"""Name of the first convolution of the networks after airbench."""


@keras.saving.register_keras_serializable("cifar")
class FixedConv2D(layers.Conv2D):  # type: ignore[misc] # Keras is untyped
    """A convolution with a fixed kernel, which learns only its bias.

    It is a class because a checkpoint does not record which variables are frozen.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights and freeze the kernel."""
        super().build(input_shape)
        self.kernel.trainable = False


def tutorial(image_shape: Shape, num_classes: int, _: Precision | None = None) -> keras.Model:
    """The CNN of TensorFlow's CIFAR tutorial, with dropout: 122,570 parameters for CIFAR."""
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


def fast(image_shape: Shape, num_classes: int, precision: Precision | None = None) -> keras.Model:
    """The network of the fast recipe, after airbench94 (Jordan 2024, arXiv:2404.00498): 1,973,944 parameters for CIFAR.

    A 2x2 convolution that whitens patches, then three blocks of two convolutions. LeakyReLU replaces the GELU of
    airbench, which takes several times as long on CPUs.

    Args:
        image_shape: height, width, channels; at least 16 pixels high and wide.
        num_classes: the number of outputs.
        precision: the number format of the convolutions during training; weights are always float32. None: only
            layers of Keras itself, in float32. They are slower to train, and can be loaded without this package.
    """
    return _blocks(image_shape, num_classes, precision, name="fast", widths=(64, 256, 256), convolutions=2)


def deep(image_shape: Shape, num_classes: int, precision: Precision | None = None) -> keras.Model:
    """`fast` with a third convolution in each block, which adds to the first: 3,192,184 parameters for CIFAR."""
    return _blocks(image_shape, num_classes, precision, name="deep", widths=(64, 256, 256), convolutions=3)


def large(image_shape: Shape, num_classes: int, precision: Precision | None = None) -> keras.Model:
    """`deep` with more channels, after airbench96: 9,921,848 parameters for CIFAR. For a GPU, as a teacher."""
    return _blocks(image_shape, num_classes, precision, name="large", widths=(128, 384, 512), convolutions=3)


def _blocks(
    image_shape: Shape,
    num_classes: int,
    precision: Precision | None,
    *,
    name: str,
    widths: tuple[int, ...],
    convolutions: int,
) -> keras.Model:
    policy = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    pixels = x = layers.Input(image_shape, name="pixels")
    x = layers.Rescaling(1 / 255, name="to_unit_range")(x)
    x = layers.Normalization(mean=[0.5] * image_shape[2], variance=[0.25**2] * image_shape[2], name="to_unit_spread")(x)
    convolution = layers.Conv2D if precision is None else FixedConv2D
    x = convolution(8 * image_shape[2], 2, dtype=policy, name=_WHITEN)(x)
    first = x = layers.LeakyReLU(0.1, dtype=policy)(x)
    for width in widths:
        for position in range(convolutions):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, dtype=policy)(x)
            if position == 0:
                x = layers.MaxPooling2D(dtype=policy)(x)
            x = batch_normalization(fused=precision is not None)(x)
            if position == 2:
                x = layers.Add(dtype=policy)([x, first])
            x = layers.LeakyReLU(0.1, dtype=policy)(x)
            if position == 0:
                first = x
    x = layers.GlobalMaxPooling2D(dtype="float32")(x)
    x = layers.Rescaling(_HEAD_SCALE, name="features")(x)
    x = layers.Dense(num_classes, use_bias=False, activation="softmax", name="probabilities")(x)
    return keras.Model(pixels, x, name=name)


ARCHITECTURES: dict[str, Callable[[Shape, int, Precision | None], keras.Model]] = {
    "fast": fast,
    "deep": deep,
    "large": large,
    "tutorial": tutorial,
}


def build_model(
    arch: str, num_classes: int, *, image_shape: Shape = IMAGE_SHAPE, precision: Precision | None = None
) -> keras.Model:
    """Build an untrained network.

    Returns:
        A model from `(n, height, width, channels)` pixels in [0, 255] to `(n, num_classes)` probabilities.

    Raises:
        BadParameter: there is no such architecture, fewer than two classes, or the images are too small for it.
    """
    if arch not in ARCHITECTURES:
        raise BadParameter(f"There is no architecture {arch!r}; there are: {', '.join(ARCHITECTURES)}.")
    if num_classes < 2:
        raise BadParameter(f"A classifier needs at least 2 classes; got {num_classes}.")
    try:
        return ARCHITECTURES[arch](image_shape, num_classes, precision)
    except ValueError as error:
        raise BadParameter(f"{arch} cannot take images of {image_shape}: {error}") from error


def initialize(model: keras.Model, images: np.ndarray) -> None:
    """Set the initial weights of a new network that begins by whitening. Other networks keep those that Keras gave them.

    The first layer whitens 2x2 patches of training images `(n, height, width, channels)`: its kernel holds the eigenvectors of
    their covariance and the negatives of these (Page 2019, "How to train your ResNet, 8"). The other convolutions start with the
    identity in as many output channels as there are inputs, and with random weights in the rest (airbench).
    """
    if all(layer.name != _WHITEN for layer in model.layers):
        return
    first, *others = (layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    _whiten(first, keras.Model(model.inputs[0], first.input), images[:: max(1, len(images) // 2000)])
    for layer in others:
        kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
        same = range(min(kernel.shape[2:]))
        kernel[..., same] = 0
        kernel[1, 1, same, same] = 1
        layer.kernel.assign(kernel)


def _whiten(layer: keras.Layer, before: keras.Model, images: np.ndarray) -> None:
    shape = layer.kernel.shape
    scaled = keras.ops.convert_to_numpy(before(images.astype(np.float32)))
    patches = np.lib.stride_tricks.sliding_window_view(scaled, shape[:2], (1, 2))[:, ::2, ::2]
    flat = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, int(np.prod(shape[:3]))).astype(np.float64)
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    kernel = (vectors / np.sqrt(values + 5e-4)).reshape(*shape[:3], -1)
    layer.kernel.assign(np.concatenate([kernel, -kernel], axis=-1))
