"""Read `.h5` files that Keras 2 wrote.

Keras 3 reads most of them. It refuses what Keras 2 allowed in a configuration: slashes in layer names, and arguments
that a layer no longer has. Both are mended in a copy; weights are matched by position, so names are free to change.
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
_GONE = {"DepthwiseConv2D": ("groups",), "DepthwiseConv1D": ("groups",), "Conv2DTranspose": ("groups",)}
"""Arguments that Keras 2 wrote for every such layer, with the one value it supported."""


def load_h5(path: Path) -> keras.Model:
    """Load a model from an `.h5` file of any Keras, without its optimizer. Raises whatever Keras raises."""
    if not _written_by_keras2(path):
        return keras.saving.load_model(path, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, Path(folder) / "model.h5"))
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(_mend(json.loads(file.attrs["model_config"])))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Do not pass an `input_shape`")  # Keras 2 wrote it so
            return keras.saving.load_model(copy, compile=False)


def _written_by_keras2(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        version = file.attrs.get("keras_version", "")
        return "model_config" in file.attrs and not str(version).startswith("3")


def _mend(node: Any) -> Any:
    """The same configuration as Keras 3 accepts it."""
    if isinstance(node, list):
        return [_mend(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    mended = {key: _without_slashes(value) if key in _NAME_KEYS else _mend(value) for key, value in node.items()}
    for argument in _GONE.get(mended.get("class_name", ""), ()):
        mended["config"].pop(argument, None)
    return mended


def _without_slashes(names: Any) -> Any:
    """Replace slashes in a name, or in every name of a nested list of connections."""
    if isinstance(names, str):
        return names.replace("/", "_")
    if isinstance(names, list):
        return [_without_slashes(entry) for entry in names]
    return _mend(names)
