"""Finds the last activation of a function in its graph, which has the same operations for every library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_ACTIVATIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
    "BiasAdd": "linear",
    "MatMul": "linear",
    "BatchMatMulV2": "linear",
    "Conv2D": "linear",
    "FusedBatchNormV3": "linear",
}
_TRANSPARENT = {"Identity", "IdentityN", "Cast", "Reshape", "Squeeze", "ExpandDims", "StopGradient"}
"""Operations that do not change the values."""


def last_activation(function: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int | None, ...]) -> str | None:
    """Return softmax, sigmoid, linear or another activation, or None if the output is computed in another way.

    The function takes one float32 tensor of this shape, and returns one tensor.
    """
    traced = tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    graph = traced.graph.as_graph_def()
    functions = {each.signature.name: each for each in graph.library.function}
    nodes: dict[str, Any] = {node.name: node for node in graph.node}
    reference = traced.graph.outputs[0].name
    added = False
    for _ in range(len(nodes) + 1000):
        name, *output = reference.split(":")
        node = nodes.get(name)
        if node is None or not node.input:  # an argument of the function, or a constant
            return None
        if node.op in _ACTIVATIONS:
            found = _ACTIVATIONS[node.op]
            return found if found == "linear" or not added else None
        if node.op in {"AddV2", "Add"}:  # perhaps the bias of a dense layer of Keras 3
            added = True
            reference = node.input[0]
        elif node.op in {"PartitionedCall", "StatefulPartitionedCall"}:
            called = functions[node.attr["f"].func.name]
            nodes = {each.name: each for each in called.node_def}
            position = int(output[-1]) if output else 0
            reference = called.ret[called.signature.output_arg[position].name]
        elif node.op in _TRANSPARENT:
            reference = node.input[int(output[-1]) if node.op == "IdentityN" and output else 0]
        else:
            return None
    return None
