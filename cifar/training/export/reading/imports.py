"""Imports the Python files that define a model's own layers."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from cifar.errors import ExportError
from cifar.training.export.reading.failures import first_sentence

log = logging.getLogger(__name__)

_PREPROCESSING = "preprocess_input"
"""Each network of `keras.applications` has its own function of this name, and a file contains only the name."""


_OF_NN = (tf.nn.softmax, tf.nn.log_softmax, tf.nn.crelu, tf.nn.silu, tf.nn.l2_normalize)
_OF_MATH = (tf.sin, tf.cos, tf.exp, tf.abs, tf.square, tf.identity)
_ACTIVATIONS = {function.__name__: function for function in (*_OF_NN, *_OF_MATH)}
"""Functions of TensorFlow that tutorials use as activations. Keras 3 writes their names but cannot read them."""

_LAYERS = {"convnext": ("LayerScale", "StochasticDepth"), "inception_resnet_v2": ("CustomScaleLayer",)}
"""Layers of `keras.applications`, by module, that Keras does not find when it reads an .h5 file."""


def known_objects(library: ModuleType) -> dict[str, Any]:
    """Return by name the objects that Keras (`keras` or `tf_keras`) writes into files but does not find when it reads them."""
    networks = {name: importlib.import_module(f"{library.__name__}.src.applications.{name}") for name in _LAYERS}
    return _ACTIVATIONS | {
        layer: getattr(networks[name], layer) for name, layers in _LAYERS.items() for layer in layers
    }


def custom_objects(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return from the names of imported modules the classes and functions that are their own."""
    return {
        name: value
        for name, value in names.items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and (name == _PREPROCESSING or not _is_of_library(value.__module__))
    }


@contextmanager
def names_in_lambdas(library: ModuleType, names: Mapping[str, Any]) -> Iterator[None]:
    """Let the code of Lambda layers use the usual names of libraries, such as `tf`, and those of imported modules.

    A file has the code without what its names stand for.
    """
    keras3 = library.__name__ == "keras"
    home: Any = importlib.import_module(f"{library.__name__}.src.utils.{'python_utils' if keras3 else 'generic_utils'}")
    backend = importlib.import_module("keras._tf_keras.keras.backend") if keras3 else library.backend
    usual = {
        "tf": tf if keras3 else _tensorflow_with(library),
        "np": np,
        "keras": library,
        "layers": library.layers,
        "K": backend,
        "backend": backend,
    }
    usual |= {"ops": library.ops} if keras3 else {}
    load = home.func_load

    def load_with_names(*arguments: Any, globs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        return load(*arguments, globs={**(globs or {}), **usual, **names}, **options)

    home.func_load = load_with_names
    try:
        yield
    finally:
        home.func_load = load


def imported_names(modules: tuple[str, ...], *, keras2: bool) -> dict[str, Any]:
    """Run Python modules, named or given as paths that end in `.py`, and return all their names with their values.

    With `keras2`, `keras` and `tf.keras` are Keras 2 in these modules.

    Raises:
        ExportError: a module does not exist or fails.
    """
    found: dict[str, Any] = {}
    with _as_keras2() if keras2 else nullcontext():
        for name in modules:
            found |= {key: value for key, value in vars(_imported(name)).items() if not key.startswith("__")}
    return found


def _imported(name: str) -> ModuleType:
    """Import a module by name from the current folder or the environment, or by the path of its file."""
    path = Path(name)
    folder, module = (str(path.parent), path.stem) if path.suffix == ".py" else ("", name)
    if path.suffix == ".py" and not path.is_file():
        raise ExportError(f"--import {name}: there is no such file.")
    if path.suffix != ".py" and (path.is_file() or path.name != name):
        raise ExportError(
            f"--import {name}: expected a Python file, which ends in .py, or the name of a module. From a notebook, copy the code of the "
            "layers into such a file."
        )
    log.warning("Running the code of %s, as --import asks.", name)
    if folder:
        sys.modules.pop(module, None)  # another module of this name may have been imported before
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except BaseException as error:  # the module may do anything, even call sys.exit
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ExportError(f"--import {name} fails with {type(error).__name__}: {first_sentence(error)}") from error
    finally:
        sys.path.remove(folder)


def _is_of_library(module: str) -> bool:
    return module.partition(".")[0] in {"keras", "tf_keras", "tensorflow", "numpy", "typing", "builtins"}


class _TensorFlow(ModuleType):
    """TensorFlow with another Keras. Layers use `tf.keras` also when they are created and called, long after the import."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tf, name)


def _tensorflow_with(library: ModuleType) -> ModuleType:
    module = _TensorFlow("tensorflow")
    vars(module)["keras"] = library
    return module


@contextmanager
def _as_keras2() -> Iterator[None]:
    """Let `import keras`, `from tensorflow.keras import ...` and `tf.keras` mean Keras 2."""
    import tf_keras

    def is_keras(name: str) -> bool:
        return f"{name}.".startswith(("keras.", "tensorflow.keras."))

    kept = {name: module for name, module in sys.modules.items() if is_keras(name)}
    for name in kept:
        del sys.modules[name]
    sys.modules["keras"] = sys.modules["tensorflow.keras"] = tf_keras
    sys.modules["tensorflow"] = _tensorflow_with(tf_keras)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if is_keras(name)]:
            del sys.modules[name]
        sys.modules.update(kept)
        sys.modules["tensorflow"] = tf
