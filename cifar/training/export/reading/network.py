"""A loaded model as one TensorFlow function, whichever library reads its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from cifar.errors import ExportError
from cifar.images.spec import CHANNELS
from cifar.training.export.reading.definition import Loss

SEVERAL_INPUTS = "Export a model that takes an image alone."


@dataclass(frozen=True)
class ReadOptions:
    """The user's options, for facts that the file does not contain."""

    image_size: tuple[int, ...] | None = None
    """Height and width, for a model that takes images of any size, or flat ones. For a vector of colours also their number, as
    the last if those of one pixel stand together, or as the first if all red pixels do."""
    output: str | None = None
    """The name of the output with the classes."""
    signature: str | None = None
    """The name of the signature of a SavedModel."""
    imports: tuple[str, ...] = ()
    """Python files or modules that define the model's own layers. They are run."""
    allow_lambda: bool = False
    """True if code inside the file may be run."""

    @property
    def colours_first(self) -> bool | None:
        """True if all red pixels stand together in a vector, False if the colours of one pixel do. None: unknown."""
        if self.image_size is None or len(self.image_size) < 3:
            return None
        return self.image_size[0] in {3, 4} and self.image_size[-1] not in CHANNELS

    @property
    def sides(self) -> tuple[int, ...] | None:
        """Height and width."""
        return self.image_size and (self.image_size[1:] if self.colours_first else self.image_size[:2])


NO_OPTIONS = ReadOptions()
NO_LOSS = Loss()


@dataclass(frozen=True)
class Network:
    """A model with one input and one output, in inference mode."""

    call: Callable[[tf.Tensor], tf.Tensor]
    input_shape: tuple[int | None, ...] | None
    """With the batch axis. None: the file does not say."""
    input_dtype: str
    variables: tuple[tf.Variable, ...]
    layers: Any = None
    """The Keras 3 or `tf_keras` model; None for a SavedModel without layers."""
    loss: Loss = NO_LOSS
    predict: Callable[[Any], Any] | None = None
    """The `predict` of the model, if its class has one of its own."""
    input_range: tuple[float, float] | None = None
    """The values of a black and a white pixel, if the file contains them."""
    class_names: tuple[str, ...] = ()


def choose_output(names: list[str], wanted: str | None, shapes: list[tuple[int | None, ...]]) -> str:
    """Return the name of the output with the classes: the one that the user names, or the only one.

    Raises:
        ExportError: there are several and none is named, or there is none of this name.
    """
    if wanted in names:
        return wanted
    if len(names) == 1 and wanted is None:
        return names[0]
    described = ", ".join(f"{name} {shape}" for name, shape in zip(names[:10], shapes, strict=False))
    if wanted is None:
        raise ExportError(
            f"The model has {len(names)} outputs: {described}. Name the one with the classes: --output NAME"
        )
    raise ExportError(f"The model has no output {wanted!r}; its outputs are {described}.")


def is_keras_own(model: Any, *methods: str) -> bool:
    """Return whether Keras itself defines methods of a model. Those of a subclass may do more than its graph of layers shows."""
    return all(getattr(type(model), name).__module__.partition(".")[0] in {"keras", "tf_keras"} for name in methods)
