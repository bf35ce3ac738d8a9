"""Load `.h5` files that Keras 2 wrote.

Keras 3 loads most of them, but refuses slashes in layer names and arguments that a layer no longer has. Both are corrected
in a copy of the file. Weights are matched by position, so layers can be renamed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras

_NAME_KEYS = frozenset({"name", "inbound_nodes", "input_layers", "output_layers"})
_REMOVED_ARGUMENTS = {"DepthwiseConv2D": ("groups",), "DepthwiseConv1D": ("groups",), "Conv2DTranspose": ("groups",)}
"""Arguments that Keras 2 wrote for every layer of a class, always with the only value that it supported."""


def load_h5(path: Path) -> keras.Model:
    """Load a model from an `.h5` file of Keras 2 or 3, without its optimizer. Exceptions of Keras are passed on."""
    if not _written_by_keras2(path):
        return keras.saving.load_model(path, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, Path(folder) / "model.h5"))
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(_corrected(json.loads(file.attrs["model_config"])))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Do not pass an `input_shape`")  # Keras 2 wrote one for the first layer
            return keras.saving.load_model(copy, compile=False)


def _written_by_keras2(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        version = file.attrs.get("keras_version", "")
        return "model_config" in file.attrs and not str(version).startswith("3")


def _corrected(node: Any) -> Any:
    """Return a model configuration that Keras 3 accepts."""
    if isinstance(node, list):
        return [_corrected(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    corrected = {
        key: _without_slashes(value) if key in _NAME_KEYS else _corrected(value) for key, value in node.items()
    }
    for argument in _REMOVED_ARGUMENTS.get(corrected.get("class_name", ""), ()):
        corrected["config"].pop(argument, None)
    return corrected


def _without_slashes(names: Any) -> Any:
    """Replace slashes in a name, or in every name of a nested list of connections."""
    if isinstance(names, str):
        return names.replace("/", "_")
    if isinstance(names, list):
        return [_without_slashes(entry) for entry in names]
    return _corrected(names)
