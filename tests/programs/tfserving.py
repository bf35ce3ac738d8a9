"""A gRPC server that speaks TensorFlow Serving's `Predict` over a real SavedModel, for there is no such binary to be had here.

    python tests/programs/tfserving.py PORT REGISTRY/NAME [--slow SECONDS]

Tensors are TensorFlow's own `TensorProto`, made and read by TensorFlow. The request around them is described here, as TensorFlow
Serving publishes it (`predict.proto`, `model.proto`), in the pool where TensorFlow's messages are. Prints `ready` when it serves.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf import wrappers_pb2 as _  # noqa: F401 - model.proto imports it
from tensorflow.core.framework import tensor_pb2

SERVICE = "tensorflow.serving.PredictionService"


def describe() -> tuple[type, type]:
    """PredictRequest and PredictResponse."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="predict.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.extend([tensor_pb2.DESCRIPTOR.name, "google/protobuf/wrappers.proto"])

    def add(message, name: str, number: int, kind: str, *, repeated: bool = False) -> None:
        field = message.field.add(name=name, number=number)
        field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        field.type = kinds.TYPE_STRING if kind == "string" else kinds.TYPE_MESSAGE
        if kind != "string":
            field.type_name = kind

    def add_map(message, name: str, number: int) -> None:
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        add(entry, "key", 1, "string")
        add(entry, "value", 2, ".tensorflow.TensorProto")
        add(message, name, number, f".tensorflow.serving.{message.name}.{entry.name}", repeated=True)

    spec = file.message_type.add(name="ModelSpec")
    add(spec, "name", 1, "string")
    add(spec, "version", 2, ".google.protobuf.Int64Value")
    add(spec, "signature_name", 3, "string")
    add(spec, "version_label", 4, "string")
    request = file.message_type.add(name="PredictRequest")
    add(request, "model_spec", 1, ".tensorflow.serving.ModelSpec")
    add_map(request, "inputs", 2)
    add(request, "output_filter", 3, "string", repeated=True)
    response = file.message_type.add(name="PredictResponse")
    add_map(response, "outputs", 1)
    add(response, "model_spec", 2, ".tensorflow.serving.ModelSpec")
    pool = descriptor_pool.Default()
    pool.Add(file)
    made = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
        for name in ("PredictRequest", "PredictResponse")
    ]
    return made[0], made[1]


class PredictionService(grpc.GenericRpcHandler):
    """Answers `Predict` by loading the version that is asked for, once."""

    def __init__(self, base: Path, slow: float) -> None:
        self._request, self._response = describe()
        self._base = base
        self._slow = slow
        self._loaded: dict[int, object] = {}

    def service(self, details):
        """The handler of one call."""
        if details.method != f"/{SERVICE}/Predict":
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._predict,
            request_deserializer=self._request.FromString,
            response_serializer=self._response.SerializeToString,
        )

    def _predict(self, request, context):
        time.sleep(self._slow)
        spec = request.model_spec
        folder = self._base / str(spec.version.value)
        if spec.name != self._base.name or not (folder / "saved_model.pb").is_file():
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: Specific({spec.name}, {spec.version.value})",
            )
        if spec.version.value not in self._loaded:
            self._loaded[spec.version.value] = tf.saved_model.load(str(folder))
        signature = self._loaded[spec.version.value].signatures[spec.signature_name or "serving_default"]
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        response = self._response()
        response.model_spec.CopyFrom(spec)
        for name, value in signature(**inputs).items():
            # as numbers in a field of their type, which is TensorFlow Serving's default, not as one piece of bytes
            proto = tensor_pb2.TensorProto(dtype=value.dtype.as_datatype_enum)
            proto.tensor_shape.CopyFrom(value.shape.as_proto())
            proto.float_val.extend(value.numpy().ravel().tolist())
            response.outputs[name].CopyFrom(proto)
        return response


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("base", type=Path)
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(8), handlers=[PredictionService(options.base, options.slow)])
    assert server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
