"""Import the Python files that define a model's own layers."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow as tf

from cifar.errors import ExportError
from cifar.training.export.reading.failures import short

log = logging.getLogger(__name__)

_PREPROCESSING = "preprocess_input"
"""A function of Keras that each network of `keras.applications` has one of: a file tells its name alone."""


_ACTIVATIONS = {function.__name__: function for function in (tf.nn.softmax, tf.nn.log_softmax, tf.nn.crelu)}
"""Functions of TensorFlow that tutorials name as activations, and that Keras 3 writes under names that it cannot read."""

_LAYERS = {"convnext": ("LayerScale", "StochasticDepth"), "inception_resnet_v2": ("CustomScaleLayer",)}
"""Layers of `keras.applications` that Keras itself does not know when it reads an .h5 file."""


def known_objects(library: ModuleType) -> dict[str, Any]:
    """Return by name what Keras (`keras` or `tf_keras`) writes and cannot read by itself."""
    networks = {name: importlib.import_module(f"{library.__name__}.src.applications.{name}") for name in _LAYERS}
    return _ACTIVATIONS | {
        layer: getattr(networks[name], layer) for name, layers in _LAYERS.items() for layer in layers
    }


def custom_objects(modules: tuple[str, ...], *, keras2: bool) -> dict[str, Any]:
    """Run Python modules, and return the classes and functions that they define, by name.

    Args:
        modules: names of modules, or paths that end in `.py`.
        keras2: whether `keras` and `tf.keras` are Keras 2 in these modules.

    Raises:
        ExportError: a module does not exist or fails.
    """
    found: dict[str, Any] = {}
    with _as_keras2() if keras2 else nullcontext():
        for name in modules:
            log.warning("Running the code of %s, as --import asks.", name)
            found |= {
                key: value
                for key, value in vars(_imported(name)).items()
                if (inspect.isclass(value) or inspect.isfunction(value))
                and (key == _PREPROCESSING or not _is_of_library(value.__module__))
            }
    return found


def _imported(name: str) -> ModuleType:
    """Import a module by name from the current folder or the environment, or by the path of its file."""
    path = Path(name)
    folder, module = (str(path.parent), path.stem) if path.suffix == ".py" else ("", name)
    if path.suffix == ".py" and not path.is_file():
        raise ExportError(f"--import {name}: there is no such file.")
    if folder:
        sys.modules.pop(module, None)  # another module of this name may have been imported before
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except BaseException as error:  # the module may do anything, also end the program
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ExportError(f"--import {name} fails with {type(error).__name__}: {short(error)}") from error
    finally:
        sys.path.remove(folder)


def _is_of_library(module: str) -> bool:
    return module.partition(".")[0] in {"keras", "tf_keras", "tensorflow", "numpy", "typing", "builtins"}


@contextmanager
def _as_keras2() -> Iterator[None]:
    """Let `import keras`, `from tensorflow.keras import ...` and `tf.keras` mean Keras 2."""
    import tf_keras

    def is_keras(name: str) -> bool:
        return f"{name}.".startswith(("keras.", "tensorflow.keras."))

    kept = {name: module for name, module in sys.modules.items() if is_keras(name)}
    attribute = tf.keras
    for name in kept:
        del sys.modules[name]
    sys.modules["keras"] = sys.modules["tensorflow.keras"] = tf.keras = tf_keras
    try:
        yield
    finally:
        for name in [name for name in sys.modules if is_keras(name)]:
            del sys.modules[name]
        sys.modules.update(kept)
        tf.keras = attribute
