"""Read what a Keras file says about its model without loading it: whether it holds code, and what loss it was trained with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from cifar.training.export.reading.files import ZIP


def read_definition(path: Path) -> tuple[Any, Any]:
    """Return the architecture and the training configuration of a Keras file or folder, as read from JSON; empty where there is none."""
    if (path / "saved_model.pb").is_file():
        entries = [json.loads(metadata) for metadata in _metadata(path) if metadata.startswith("{")]
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


def _metadata(path: Path) -> list[str]:
    """Return what Keras 2 wrote about each object of a SavedModel. From TensorFlow 2.5 on it has a file of its own."""
    if (path / "keras_metadata.pb").is_file():
        from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

        content = (path / "keras_metadata.pb").read_bytes()
        return [node.metadata for node in SavedMetadata.FromString(content).nodes]
    graphs = SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs
    return [node.user_object.metadata for graph in graphs for node in graph.object_graph_def.nodes]


def holds_code(architecture: Any) -> bool:
    """Return whether a Lambda layer stores its Python code in the file, rather than the name of a function."""
    return any(
        node.get("class_name") == "__lambda__" or node.get("function_type") == "lambda" for node in _nodes(architecture)
    )


def custom_classes(architecture: Any) -> dict[str, str]:
    """Return the classes that are not of Keras, with the modules that define them. Only newer files name modules."""
    return {
        str(node["class_name"]): node["module"]
        for node in _nodes(architecture)
        if "class_name" in node
        and isinstance(node.get("module"), str)
        and node["module"].partition(".")[0] not in {"keras", "tf_keras", "builtins", "numpy"}
    }


def takes_logits(training: Any, output: str | None) -> bool:
    """Return whether the loss of a training configuration takes logits.

    Args:
        training: a training configuration, from `read_definition`.
        output: the name of the output, if the model has several, each with its own loss.
    """
    return any(node.get("from_logits") is True for node in _nodes(_loss(training, output)))


def is_binary(training: Any, output: str | None) -> bool:
    """Return whether the loss compares each class by itself, for arguments as those of `takes_logits`."""
    return any(str(node.get("class_name")).startswith("Binary") for node in _nodes(_loss(training, output)))


def _loss(training: Any, output: str | None) -> Any:
    loss = training.get("loss") if isinstance(training, dict) else None
    return loss[output] if output is not None and isinstance(loss, dict) and output in loss else loss


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)
