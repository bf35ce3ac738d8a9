"""Follow the pixels of an image through a Keras model, up to the first layers that have learned weights.

What stands before these layers prepares the images: augmentation, which does nothing outside training, resizing, padding,
scaling, operations of `preprocess_input`, or models of such layers. It is run rather than recognised, so it may be any layer
or function. Works for models of Keras 3 and of Keras 2 (`tf_keras`), whose classes have the same names.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from cifar.training.export.reading.network import calls_its_graph


@dataclass
class Walk:
    """What happened to one image."""

    steps: list[Step] = field(default_factory=list)
    """The results of all layers without learned weights that were reached, in the order of the model's connections."""
    stopped_at: list[str] = field(default_factory=list)
    """The names of the layers with learned weights that were reached."""


@dataclass(frozen=True)
class Step:
    """What one layer or operation returned."""

    layer: str
    normalises: bool
    """Whether this is a Normalization layer, whose numbers are statistics of training images."""
    values: np.ndarray


def walk(model: Any, image: np.ndarray) -> Walk:
    """Follow `image`, in the shape of the model's input, without the batch axis."""
    walked = Walk()
    batch = model.inputs[0].shape[0] or 1
    _through(model, (tf.repeat(tf.cast(image, model.inputs[0].dtype)[None], batch, axis=0),), {}, walked)
    return walked


def _through(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any], walked: Walk) -> Any:
    """Return what a layer or a model makes of its arguments, or None if that depends on learned weights."""
    if hasattr(layer, "_nodes_by_depth") and calls_its_graph(layer):
        return _through_graph(layer, inputs or named.get("inputs"), walked)
    if type(layer).__name__ == "Sequential" and calls_its_graph(layer):
        outputs = inputs[0] if inputs else named.get("inputs")
        for each in layer.layers:
            outputs = None if outputs is None else _through(each, (outputs,), {}, walked)
        return outputs
    outputs = None if _has_learned(layer) else _called(layer, inputs, named)
    if outputs is None:
        walked.stopped_at.append(layer.name)
        return None
    normalises = type(layer).__name__ == "Normalization"
    of_the_batch = (np.asarray(each, np.float64) for each in _tensors(outputs))
    walked.steps += [Step(layer.name, normalises, each[0] if each.ndim else each) for each in of_the_batch]
    return outputs


def _has_learned(layer: Any) -> bool:
    """Whether a layer has weights, other than the state of random numbers and the statistics of a Normalization."""
    if type(layer).__name__ == "Normalization":
        return False
    return any("float" in str(weight.dtype) for weight in getattr(layer, "weights", ()))


def _called(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Call a layer as in prediction, and return None if it cannot be called by itself."""
    if "training" in inspect.signature(layer.call).parameters and named.get("training") is None and len(inputs) < 2:
        named = named | {"training": False}
    try:
        return layer(*inputs, **named)
    except Exception:  # a layer may raise anything, and the walk ends where it cannot go on
        return None


def _through_graph(model: Any, inputs: Any, walked: Walk) -> Any:
    """Run the nodes of a Functional model that can be reached without learned weights.

    `_nodes_by_depth` is what Keras itself iterates over in `call`; neither Keras 2 nor Keras 3 has a public way to the nodes.
    """
    given = _tensors(inputs)
    known = {id(reference): tensor for reference, tensor in zip(model.inputs, given, strict=False)}
    for depth in sorted(model._nodes_by_depth, reverse=True):  # noqa: SLF001
        for node in model._nodes_by_depth[depth]:  # noqa: SLF001
            layer = node.operation if hasattr(node, "operation") else node.layer
            sources = node.input_tensors if hasattr(node, "operation") else node.keras_inputs
            if node.is_input or layer is None or not all(id(source) in known for source in _tensors(sources)):
                continue
            outputs = _through(layer, *_arguments(node, known), walked)
            if outputs is not None:
                known |= {
                    id(one): tensor for one, tensor in zip(_tensors(node.outputs), _tensors(outputs), strict=True)
                }
    outputs = [known.get(id(output)) for output in model.outputs]
    if any(output is None for output in outputs):
        return None
    return outputs[0] if len(outputs) == 1 else outputs


def _arguments(node: Any, known: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with which Keras calls the layer of a node."""
    if hasattr(node, "arguments"):  # Keras 3
        positional, named = node.arguments.fill_in(known)
    else:  # Keras 2 takes each tensor from a list, once for each use
        positional, named = node.map_arguments({str(key): [tensor] * 16 for key, tensor in known.items()})
    return tuple(positional), dict(named)


def _tensors(structure: Any) -> list[Any]:
    return tf.nest.flatten(structure)  # type: ignore[no-any-return] # TensorFlow is untyped
