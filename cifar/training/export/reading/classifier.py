"""Adapts a network to the shape that is served: from images `(n, height, width, 1 or 3)` to rows `(n, classes)`."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from cifar.errors import ExportError
from cifar.images.spec import CHANNELS, ImageSpec
from cifar.training.export.reading.activation import last_activation
from cifar.training.export.reading.failures import calling_error
from cifar.training.export.reading.network import Network, ReadOptions

log = logging.getLogger(__name__)

_NAME_OUTPUT = "If the model has another output, name it: --output NAME"
_SMALLEST_SIDE = 8
"""Smallest side of an input of two axes that is taken as a grey image without a channel axis."""
_ROUNDING_OF_16_BITS = 0.02
_SQUASHING = frozenset({"softmax", "sigmoid"})
_NO_PIXELS = frozenset({tf.int8, tf.bool})
"""Types of numbers that cannot hold pixels from 0 to 255."""

Rows = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Classifier:
    """A model as a function from images to one row of numbers per image."""

    rows: Rows
    """From `(n, height, width, channels)` `float32`, with the alpha channel if there is one, to `(n, columns)` `float32`."""
    image: ImageSpec
    columns: int
    """Number of outputs of the network itself: 1 for a single sigmoid or logit."""
    variables: tuple[tf.Variable, ...]
    activation: str | None
    """The last activation: softmax, sigmoid, linear, ...; None if it is unknown."""
    integer: bool = False
    """True if the input of the network has an integer type, so its range is (0, 255)."""
    alpha: float | None = None
    """The value of an opaque pixel in the fourth channel, for a model that takes RGBA."""
    logits: bool = False
    layers: Any = None
    """The Keras 3 or `tf_keras` model, or None for a SavedModel without layers."""

    @property
    def classes(self) -> int:
        """The number of classes: two for a single unit."""
        return max(2, self.columns)

    def __call__(self, images: Any) -> tf.Tensor:
        """Return `(n, classes)` `float32`, for images `(n, height, width, channels)` in the model's own range."""
        images = tf.convert_to_tensor(images, tf.float32)
        if self.alpha is not None:
            images = tf.concat([images, tf.fill(tf.shape(images[..., :1]), float(self.alpha))], axis=-1)
        rows = self.rows(images)
        if self.columns == 1:  # the softmax of (0, z) is (1 - sigmoid(z), sigmoid(z))
            rows = tf.concat([tf.zeros_like(rows) if self.logits else 1 - rows, rows], axis=-1)
        return rows


def adapt(network: Network, options: ReadOptions) -> Classifier:
    """Return a network as a classifier.

    Raises:
        ExportError: the network does not take images or does not return one row of classes.
    """
    (height, width, channels), arrange = _input(network, options)
    spec_channels = 3 if channels == 4 else channels
    dtype = tf.as_dtype(network.input_dtype)

    if dtype in _NO_PIXELS:
        raise ExportError(
            f"The model takes numbers of type {dtype.name}, which cannot be pixels from 0 to 255. Save it again behind layers that make "
            "them from such pixels: keras.Sequential([keras.Input((32, 32, 3)), LAYERS, model])"
        )

    def arranged(images: tf.Tensor) -> tf.Tensor:
        pixels = arrange(images)
        return tf.cast(tf.round(pixels) if dtype.is_integer else pixels, dtype)

    def whole(images: tf.Tensor) -> tf.Tensor:
        answer = network.call(arranged(images))
        if not answer.dtype.is_floating:
            raise ExportError(
                f"Expected an output of numbers for each class; it is of type {answer.dtype.name}. {_NAME_OUTPUT}"
            )
        exact = tf.cast(answer, tf.float32)
        # Probabilities in 16 bits do not add up to exactly 1.
        rounded = answer.dtype.size < tf.float32.size and activation == "softmax"
        return exact / tf.reduce_sum(exact, axis=-1, keepdims=True) if rounded else exact

    activation: str | None = None
    batch = network.input_shape[0] if network.input_shape else None
    rows, columns = _output(whole, (height, width, channels), batch)
    if network.predict:
        images = 255 * np.random.default_rng(0).uniform(size=(2, height, width, channels)).astype(np.float32)
        _check_predict(network.predict, arranged(images), rows(images).numpy())
    activation = last_activation(whole, (batch, height, width, channels))
    return Classifier(
        rows=rows,
        image=ImageSpec.from_shape((height, width, spec_channels)),
        columns=columns,
        variables=network.variables,
        activation=activation,
        integer=dtype.is_integer,
        alpha=255.0 if channels == 4 else None,
        layers=network.layers,
    )


def with_logits(model: Classifier, network: Network, asked: bool) -> Classifier:
    """Return the classifier with `logits` set: from the option (`asked`), the loss in the network's file, or the last activation.

    Raises:
        ExportError: the outputs cannot be logits as the user says, or a single output is neither a logit nor a probability.
    """
    squashed = _returns_probabilities(model)
    if asked and squashed:
        ends = f"ends in a {model.activation}" if model.activation in _SQUASHING else "returns probabilities"
        raise ExportError(f"The model {ends}, so its outputs are no logits. Leave out --logits.")
    if asked and network.loss.of_quantities:
        raise ExportError(
            "The file says that the model was trained on quantities, by their squared or absolute error, so its outputs are no logits. "
            "If that loss is not the one it was trained with: model.compile(loss=None) in Python, and save it again."
        )
    # Keras too computes the loss of a softmax from probabilities, whatever `from_logits` says.
    trained_on_logits = network.loss.takes_logits and not squashed
    if trained_on_logits and not asked:
        added = "sigmoid" if network.loss.is_binary or model.columns == 1 else "softmax"
        log.warning("The file says that the model was trained with from_logits=True: a %s is added.", added)
    logits = asked or trained_on_logits or model.activation == "log_softmax"  # the softmax of log(p) is p
    if model.columns == 1 and model.activation not in {"sigmoid", "linear", None}:
        way_out = "Add layers that turn it into a probability, such as Rescaling(0.5, 0.5) for tanh, and save it again."
        if model.activation == "softmax":
            way_out = "A softmax of one number is always 1: train again with a sigmoid."
        raise ExportError(
            f"The model returns one number that comes from a {model.activation}: neither a probability (sigmoid) nor a logit. {way_out}"
        )
    if model.columns == 1 and not logits and not squashed:
        raise ExportError(
            "The model returns one number that comes from no sigmoid. If it is a logit, add --logits; a model that estimates a "
            "quantity cannot be exported."
        )
    return replace(model, logits=logits)


def _returns_probabilities(model: Classifier) -> bool:
    """Return whether the outputs are probabilities: by the last activation or, if it is unknown, by outputs for small and huge pixels."""
    if model.activation not in {"linear", None}:  # probabilities times a matrix can be probabilities too
        return model.activation in _SQUASHING
    images = np.random.default_rng(0).uniform(size=(4, *model.image.shape)).astype(np.float32)
    scales = (1, 255) if model.integer else (1, 255, 1e4, -1e4)
    answers = []
    for scale in scales:
        with contextlib.suppress(tf.errors.OpError):  # an embedding has no entry for a number beyond its table
            answers.append(model(images * scale))
    rows = np.concatenate(answers)
    rows = rows[np.isfinite(rows).all(axis=1)]
    within = len(rows) > 0 and rows.min() >= 0 and rows.max() <= 1
    return bool(within and np.abs(rows.sum(axis=1) - 1).max() < _ROUNDING_OF_16_BITS)


def _input(network: Network, options: ReadOptions) -> tuple[tuple[int, int, int], Rows]:
    """Return height, width and channels of an image, and the function that gives images the shape of the network's input."""
    shape = network.input_shape[1:] if network.input_shape is not None else (None, None, 3)
    if len(shape) == 1 or (len(shape) == 2 and None not in shape and set(shape) & set(CHANNELS)):
        return _flat(shape, options)
    without_channels = len(shape) == 2 and all(side is None or side >= _SMALLEST_SIDE for side in shape)
    if without_channels:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise ExportError(
            f"Expected an input of images, (batch, height, width, channels); got {_text(network.input_shape)}."
        )
    first = shape[0] in CHANNELS and shape[2] not in CHANNELS
    height, width, channels = (*shape[1:], shape[0]) if first else (*shape[:2], shape[2] or 3)
    if channels not in CHANNELS:
        raise ExportError(
            f"Expected an input with 1 channel (grey), 3 (RGB) or 4 (RGBA); got {_text(network.input_shape)}."
        )
    wanted = options.sides or _resizing_size(network.layers) or (height, width)
    height, width = (fixed or asked for fixed, asked in zip((height, width), wanted, strict=True))
    if height is None or width is None:
        raise ExportError(
            f"The model takes images of any size: {_text(network.input_shape)}. "
            "Name the size that it was trained with: --image-size HEIGHT,WIDTH"
        )
    if options.sides and (height, width) != options.sides:
        raise ExportError(
            f"The model takes images of {height}x{width} only; got --image-size {options.sides[0]},{options.sides[1]}. Leave it out."
        )

    def arrange(images: tf.Tensor) -> tf.Tensor:
        if without_channels:
            return tf.squeeze(images, -1)
        return tf.transpose(images, (0, 3, 1, 2)) if first else images

    return (height, width, channels), arrange


def _flat(shape: tuple[int | None, ...], options: ReadOptions) -> tuple[tuple[int, int, int], Rows]:
    """Return the size of an image whose pixels are one vector or sequence, row by row, as `numpy.reshape` and Flatten order them."""
    length = math.prod(side or 0 for side in shape)
    if options.sides is None or not length:
        roots = {channels: math.isqrt(length // channels) for channels in (1, 3)}
        square = next((_named(root, root, by) for by, root in roots.items() if by * root**2 == length), "HEIGHT,WIDTH")
        raise ExportError(
            f"The model takes a vector of {length} numbers. If these are the pixels of an image, name its size: --image-size {square}"
        )
    height, width = options.sides
    channels, rest = divmod(length, height * width)
    if rest or channels not in CHANNELS:
        raise ExportError(
            f"The model takes a vector of {length} numbers; an image of {height}x{width} has {height * width} pixels "
            f"in 1 channel and {3 * height * width} in 3. Name another size: --image-size HEIGHT,WIDTH"
        )
    colours_first = options.colours_first if channels not in shape else shape[0] == channels
    if channels > 1 and colours_first is None:
        raise ExportError(
            f"The model takes a vector of {length} numbers, and nothing shows the order of its colours. Name it: --image-size "
            f"{_named(height, width, channels)}"
        )

    def arrange(images: tf.Tensor) -> tf.Tensor:
        planes = colours_first and channels > 1
        return tf.reshape(tf.transpose(images, (0, 3, 1, 2)) if planes else images, (-1, *shape))

    return (height, width, channels), arrange


def _named(height: int, width: int, channels: int) -> str:
    """Return what `--image-size` takes for a vector of an image's pixels."""
    if channels == 1:
        return f"{height},{width}"
    return (
        f"{height},{width},{channels} if the colours of one pixel stand together (numpy.reshape), {channels},{height},{width} if all "
        "red pixels do (CIFAR's own files)"
    )


def _resizing_size(layers: Any) -> tuple[int, int] | None:
    """Return the size to which the first layer resizes images: images of that size do not change in it."""
    for layer in getattr(layers, "layers", ()):
        kind = type(layer).__name__
        if kind == "Resizing":
            return layer.height, layer.width
        if hasattr(layer, "layers"):
            return _resizing_size(layer)
        if kind != "InputLayer":
            return None
    return None


def _output(whole: Rows, shape: tuple[int, int, int], batch: int | None) -> tuple[Rows, int]:
    """Return the function to rows, and the number of its columns.

    Args:
        whole: from `(n, *shape)` to the output of the network.
        shape: the shape of one image.
        batch: the batch size if the model states a fixed one. Other sizes are tried, because they may work too.
    """
    two = tf.constant(np.random.default_rng(0).uniform(size=(2, *shape)), tf.float32)
    answer = _tried(whole if batch is None else _one_by_one(whole, batch), two)
    if batch is not None:
        with contextlib.suppress(ExportError):
            together = _tried(
                tf.function(whole), two
            )  # a SavedModel that is called directly takes more sizes than its graph
            batch = None if together.shape == answer.shape and np.allclose(together, answer, atol=1e-6) else batch
    columns = math.prod(answer.shape[1:])
    if len(answer) != len(two) or columns < 1 or columns != max((1, *answer.shape[1:])):
        raise ExportError(
            f"Expected an output (batch, classes), with one number for each class; got {_text((None, *answer.shape[1:]))}."
        )
    called = whole if batch is None else _one_by_one(whole, batch)
    if answer.shape == (2, columns):
        return called, columns
    return (lambda images: tf.reshape(called(images), (-1, columns))), columns


def _check_predict(predict: Callable[[Any], Any], images: Any, called: np.ndarray) -> None:
    """Refuse a model whose class has a `predict` that does more than call the model."""
    try:
        same = np.allclose(np.reshape(predict(images), called.shape), called, atol=1e-3)
    except Exception:  # it may raise anything, for example if it takes files
        log.debug("The model's own predict:", exc_info=True)
        same = False
    if not same:
        raise ExportError(
            "The class of the model has its own predict, which answers otherwise than the model itself: it prepares images or changes "
            "answers, and no version can hold that. Make it layers of the model, and save that: keras.Sequential([..., model, ...])"
        )


def _tried(function: Rows, images: tf.Tensor) -> np.ndarray:
    try:
        return function(images).numpy()  # type: ignore[no-any-return] # TensorFlow is untyped
    except ExportError:
        raise
    except Exception as error:  # a layer may raise anything
        raise calling_error(_text(tuple(images.shape[1:])), error) from error


def _one_by_one(whole: Rows, batch: int) -> Rows:
    """Return a function of any number of images, for a network that takes exactly `batch`: each image fills a batch."""

    def one(image: tf.Tensor) -> tf.Tensor:
        return whole(tf.repeat(image[None], batch, axis=0))[0]

    return lambda images: tf.map_fn(one, images, fn_output_signature=tf.float32)


def _text(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "an unknown shape"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
