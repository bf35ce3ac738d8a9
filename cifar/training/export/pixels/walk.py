"""Runs the graph of a model on images, up to the first operations that use learned weights.

The operations before these prepare the images: augmentation (which does nothing outside training), resizing, padding,
scaling, `preprocess_input`. They are run, not recognised, so any layer or function of any version of Keras works, at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants as freezing

from cifar.training.export.reading.classifier import Classifier
from cifar.training.export.silence import quiet_libraries

_LEARNED = frozenset({"Conv2D", "Conv3D", "DepthwiseConv2dNative", "FusedBatchNormV3"})
"""Operations whose weights may be constants of the graph."""

_MAX_VALUES = 10_000
"""Largest number of values of one output that are compared."""

_OF_A_VARIABLE = "ReadVariableOp"
"""Part of the names of operations that return the value of a variable."""


@dataclass(frozen=True)
class Step:
    """The output of one operation for the images."""

    name: str
    results: np.ndarray
    """`(images, numbers)` `float64`."""


def walk(model: Classifier, images: Sequence[np.ndarray]) -> tuple[list[Step], str]:
    """Follow images `(height, width, channels)`.

    Returns:
        The results of the operations that were reached, in order, and the name of the first one that uses learned weights.
    """
    frozen = _frozen(tf.function(model.rows).get_concrete_function(tf.TensorSpec((1, *images[0].shape), tf.float32)))
    (pixels,) = frozen.inputs
    operations, stopped_at = _reached(frozen.graph, pixels)
    with tf.compat.v1.Session(graph=frozen.graph) as session:
        outputs = [operation.outputs[0] for operation in operations]
        rows = [[_some(each) for each in session.run(outputs, {pixels.name: image[None]})] for image in images]
    by_operation = zip(operations, zip(*rows, strict=True), strict=True)
    return [Step(_short(operation.name), np.stack(results)) for operation, results in by_operation], _short(stopped_at)


def _frozen(concrete: Any) -> Any:
    """Return a function with constants in place of variables.

    These are the steps of `convert_variables_to_constants_v2`, which fails where a graph changes a variable. Random layers of Keras 3
    change their seeds outside training too. Loops and conditions stay one operation each: the values inside cannot be fetched.
    """
    with quiet_libraries():
        data = freezing._FunctionConverterDataInEager(concrete, lower_control_flow=False, aggressive_inlining=False)  # noqa: SLF001
    nodes = data.graph_def.node
    changes = {node.name for node in nodes if node.op.startswith("Assign")}
    kept = [node for node in nodes if node.name not in changes]
    for node in kept:
        node.input[:] = [each for each in node.input if each.removeprefix("^") not in changes]
    data.graph_def.ClearField("node")
    data.graph_def.node.extend(kept)
    return freezing._construct_concrete_function(concrete, *freezing._replace_variables_by_constants(data))  # noqa: SLF001


def _some(values: np.ndarray) -> np.ndarray:
    """Return at most `_MAX_VALUES` values of an array: the same positions for arrays of the same size."""
    numbers = np.ravel(values)
    if numbers.size > _MAX_VALUES:
        numbers = numbers[np.random.default_rng(0).integers(0, numbers.size, _MAX_VALUES)]
    return numbers.astype(np.float64)


def _reached(graph: Any, pixels: Any) -> tuple[list[Any], str]:
    reached, operations, stopped_at = {pixels.name}, [], ""
    functions = {each.signature.name: each.node_def for each in graph.as_graph_def().library.function}
    for operation in graph.get_operations():
        if not any(each.name in reached for each in operation.inputs):
            continue
        if _is_learned(operation.node_def, functions) or any(_OF_A_VARIABLE in each.name for each in operation.inputs):
            stopped_at = stopped_at or operation.name
            continue
        reached |= {each.name for each in operation.outputs}
        if operation.outputs and operation.outputs[0].dtype.is_floating:
            operations.append(operation)
    return operations, stopped_at


def _is_learned(node: Any, functions: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether a node, or a function that it calls, may have weights as constants. `functions`: their nodes by name."""
    called = [each.name for value in node.attr.values() for each in (value.func, *value.list.func)]
    inner = [each for name in called for each in functions.get(name, ())]
    return node.op in _LEARNED or any(each.op == "MatMul" or _is_learned(each, functions) for each in inner)


def _short(name: str) -> str:
    """Return the layer and the operation: `rescaling/mul` for `StatefulPartitionedCall/sequential_1/rescaling/mul`."""
    return "/".join(name.split("/")[-2:])
