"""`export --also onnx`: the network as an ONNX file, with metadata on its classes and its input."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cifar.errors import ExportError
from cifar.training.export.reading.failures import first_sentence
from cifar.training.export.silence import quiet_libraries

ONNX_FILE = "assets.extra/model.onnx"
_SIGNATURE = "serving_uint8"
_NO_INLINING = ("_XlaMustCompile", "_noinline")
"""Keras compiles grouped convolutions with XLA, in functions with these attributes. ONNX has no such functions."""


def write_onnx(
    signatures: Any, metadata: Mapping[str, Any], file: Path
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Write the signature for `uint8` images as an ONNX file, and load the file again with ONNX Runtime.

    Values of `metadata` that are no texts are written as JSON.

    Returns:
        The function that runs the file: from images `(n, height, width, channels)` `uint8` to outputs by name.

    Raises:
        ExportError: ONNX lacks an operation of the network.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised too
    try:
        model = _convert(signatures[_SIGNATURE])
        if missing := sorted({node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type)}):
            raise NotImplementedError(f"ONNX lacks {', '.join(missing)}")
        texts = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in metadata.items()
        }
        onnx.helper.set_model_props(model, texts)
        file.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the two libraries raise many types, which have no common base class
        raise ExportError(
            f"This network cannot be written as ONNX: {first_sentence(error).rstrip('.')}. Export it without --also onnx."
        ) from error
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": images}), strict=True))

    return run


def _convert(signature: Any) -> Any:
    """Return the ONNX model of a signature, with the signature's names of inputs and outputs."""
    import tf2onnx

    frozen = convert_variables_to_constants_v2(signature, lower_control_flow=False)
    graph = frozen.graph.as_graph_def()
    functions = graph.library.function
    for each in (*graph.node, *functions, *(node for function in functions for node in function.node_def)):
        for attribute in _NO_INLINING:
            each.attr.pop(attribute, None)
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs))
    names = zip((*inputs, *outputs), ("image", *sorted(signature.structured_outputs)), strict=True)
    with quiet_libraries(logging.CRITICAL):  # tf2onnx logs a stack trace for each optimization that fails
        model, _ = tf2onnx.convert.from_graph_def(
            graph,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=dict(names),
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """Write `erfc(x)`, which GELU uses and ONNX lacks, as `1 - erf(x)`."""
    about = {"shapes": [context.get_shape(node.output[0])], "dtypes": [context.get_dtype(node.output[0])]}
    erf = context.make_node("Erf", node.input, **about)
    one = context.make_const(f"{name}_one", np.array(1, np.float32))
    context.remove_node(node.name)
    context.make_node("Sub", [one.output[0], erf.output[0]], name=name, outputs=node.output, **about)
