"""Reads from a Keras file, without loading the model, whether it contains code and what loss the model was trained with."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    training = config.pop("compile_config", None) or {}  # its losses and metrics are not loaded, whatever they are
    return config, training


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


def functions_by_name(architecture: Any) -> Any:
    """Return an architecture in which each function is its name: so Keras 2.13 and later read their own .h5 files, too."""
    if isinstance(architecture, list):
        return [functions_by_name(each) for each in architecture]
    if not isinstance(architecture, dict):
        return architecture
    if architecture.get("class_name") == "function" and isinstance(architecture.get("config"), str):
        return architecture["config"]
    return {key: functions_by_name(value) for key, value in architecture.items()}


def custom_classes(architecture: Any) -> dict[str, str]:
    """Return the classes that are not of Keras, with the modules that define them. Only newer files name modules."""
    return {
        str(node["class_name"]): node["module"]
        for node in _nodes(architecture)
        if "class_name" in node
        and isinstance(node.get("module"), str)
        and node["module"].partition(".")[0] not in {"keras", "tf_keras", "builtins", "numpy"}
    }


_OF_QUANTITIES = r'(?i)mean_?(squared|absolute)|"(mse|mae|mape|msle)"|huber|log_?cosh'
"""Names of losses that compare quantities, in both versions of Keras."""


class Loss(NamedTuple):
    """The loss that a model was trained with."""

    takes_logits: bool = False
    """True if it takes logits and its name says of what kind. A loss of the author's own may expect a softmax or sigmoids."""
    is_binary: bool = False
    """True if it compares each class by itself, as for multi-label models."""
    of_quantities: bool = False
    """True if it compares quantities, such as the mean squared error. It takes probabilities too, but hardly logits."""


def read_loss(training: Any, output: str | None, names: Sequence[str] = ()) -> Loss:
    """Return the loss of one output in a training configuration from `read_definition`.

    The names are those of all outputs in order, for losses in a list; empty if they are unknown.
    """
    loss = _loss(training, output, names)
    nodes = [node for node in _nodes(loss) if "class_name" in node]
    of_logits = [
        node for node in nodes if isinstance(node.get("config"), dict) and node["config"].get("from_logits") is True
    ]
    return Loss(
        takes_logits=bool(of_logits)
        and all(re.search("Categorical|Binary|Sigmoid", node["class_name"]) for node in of_logits),
        is_binary=any(re.search("Binary|Sigmoid", node["class_name"]) for node in nodes),
        of_quantities=bool(re.search(_OF_QUANTITIES, json.dumps(loss))),
    )


def _loss(training: Any, output: str | None, names: Sequence[str]) -> Any:
    """Return the definition of the loss, or None if there is none or it is unknown which one it is."""
    loss = training.get("loss") if isinstance(training, dict) else None
    if not isinstance(loss, dict | list) or "class_name" in loss:
        return loss  # of the only output, or of all
    by_name = loss if isinstance(loss, dict) else dict(zip(names, loss, strict=False))
    only = len(loss) == 1 and len(names) < 2
    (alone,) = (loss.values() if isinstance(loss, dict) else loss) if only else (None,)
    return by_name.get(output, alone)


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON value."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)
