"""Read what a Keras file says about its model without loading it: whether it holds code, and what loss it was trained with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from cifar.training.export.reading.files import ZIP


def read_definition(path: Path) -> tuple[Any, Any]:
    """Return the architecture and the training configuration of a Keras file or folder, as read from JSON; empty where there is none."""
    if (path / "keras_metadata.pb").is_file():
        from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

        nodes = SavedMetadata.FromString((path / "keras_metadata.pb").read_bytes()).nodes
        entries = [json.loads(node.metadata) for node in nodes if node.metadata.startswith("{")]
        return entries, next((entry["training_config"] for entry in entries if entry.get("training_config")), {})
    if path.is_dir():
        config = json.loads((path / "config.json").read_bytes())
    elif path.read_bytes()[:4] == ZIP:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    else:
        with h5py.File(path, "r") as file:
            return json.loads(file.attrs["model_config"]), json.loads(file.attrs.get("training_config", "{}"))
    return config, config.get("compile_config") or {}


def holds_code(architecture: Any) -> bool:
    """Return whether a Lambda layer stores its Python code in the file, rather than the name of a function."""
    return any(
        node.get("class_name") == "__lambda__" or node.get("function_type") == "lambda" for node in _nodes(architecture)
    )


def takes_logits(training: Any, output: str | None) -> bool:
    """Return whether the loss of a training configuration takes logits.

    Args:
        training: a training configuration, from `read_definition`.
        output: the name of the output, if the model has several, each with its own loss.
    """
    loss = training.get("loss") if isinstance(training, dict) else None
    if output is not None and isinstance(loss, dict) and output in loss:
        loss = loss[output]
    return any(node.get("from_logits") is True for node in _nodes(loss))


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)
