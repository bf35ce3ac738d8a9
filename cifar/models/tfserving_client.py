"""A gRPC client of TensorFlow Serving: sends images to another host and gets the model's outputs back.

The few protobuf messages of TensorFlow Serving's `Predict` call are declared here with the same field numbers, so TensorFlow is
not needed. They have other names and a descriptor pool of their own, so they do not clash with TensorFlow's messages in a
process that imports both.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from cifar.dependency import CircuitOpen, Dependency
from cifar.errors import ModelServerUnavailable, VersionUnusable
from cifar.models.registry import Version

_METHOD = "/tensorflow.serving.PredictionService/Predict"
_SIGNATURE = "serving_uint8"
_FLOAT, _UINT8 = 1, 4
"""TensorFlow's numbers for the two data types."""
_TIMEOUT_SECONDS = 5.0
_MAX_ATTEMPTS = 3
_MAX_ANSWER_BYTES = 256 * 1024**2

_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Dim": {"size": (1, "int64")},
    "Shape": {"dim": (2, "repeated Dim")},
    "Tensor": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "Shape"),
        "content": (4, "bytes"),
        "floats": (5, "repeated float"),
        "ints": (7, "repeated int32"),
        "strings": (8, "repeated bytes"),
    },
    "Number": {"value": (1, "int64")},
    "Model": {"name": (1, "string"), "version": (2, "Number"), "signature_name": (3, "string")},
    "Named": {"key": (1, "string"), "value": (2, "Tensor")},
    "Request": {"model": (1, "Model"), "inputs": (2, "repeated Named")},
    "Response": {"outputs": (1, "repeated Named")},
    "PredictLog": {"request": (1, "Request")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
}
"""The fields of each message: number and type. On the wire, a map is a repeated pair of key and value."""


class ModelServer:
    """One TensorFlow Serving host, or several behind one address. Safe to share between threads.

    The connection is opened by the first call, so a process may fork before that.
    """

    def __init__(self, address: str, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        """Create a client; the server is not called yet. The time limit of one answer includes repeated attempts.

        `address` is `HOST:PORT` of the gRPC interface, or a name that gRPC resolves (`dns:///...` for several hosts).
        """
        self.address = address
        self.dependency = Dependency(
            "tensorflow-serving",
            impact="Images cannot be classified until it is back.",
            failures=ModelServerUnavailable,
        )
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._predict: Any = None

    def infer_for(self, version: Version) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that runs one version; see `cifar.models.engines`.

        The function raises:
            ModelServerUnavailable: the server does not answer, or not in time.
            VersionUnusable: the server does not have this version, or its answer does not fit the manifest.
        """
        signature = version.manifest.signatures[_SIGNATURE]
        (source,) = signature.inputs
        shapes: dict[str, tuple[int, ...]] = {"probabilities": (len(version.manifest.class_names),)}
        if "ood_score" in signature.outputs:
            shapes["ood_score"] = ()

        def infer(images: np.ndarray) -> np.ndarray:
            response = self._guarded_answer(version, _request(version, source, images))
            try:
                answer = {pair.key: _array(pair.value) for pair in response.outputs if pair.value.dtype == _FLOAT}
                for name, shape in shapes.items():
                    if answer[name].shape != (len(images), *shape):
                        raise ValueError(answer[name].shape)
            except (KeyError, ValueError) as error:
                raise VersionUnusable(
                    f"TensorFlow Serving at {self.address} answers for {version.name} version {version.number}, "
                    f"but its answer does not fit the manifest ({type(error).__name__}: {error}). Do both serve the same files?"
                ) from error
            return np.column_stack([answer[name] for name in shapes])

        return infer

    def _guarded_answer(self, version: Version, request: Any) -> Any:
        """Return the answer to `request`, unless the circuit breaker is open."""
        try:
            with self.dependency.guard():
                return self._answer(version, request)
        except CircuitOpen:
            raise ModelServerUnavailable(
                f"TensorFlow Serving at {self.address} does not answer. Try again in a moment."
            ) from None

    def _answer(self, version: Version, request: Any) -> Any:
        import grpc

        try:
            return self._remote_function()(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            if error.code() in {
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
            }:
                raise VersionUnusable(
                    f"TensorFlow Serving at {self.address} does not serve {version.name} version {version.number}: "
                    f"{error.details()}"
                ) from error
            late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            failure = f"did not answer within {self._timeout_seconds:g} seconds" if late else "does not answer"
            raise ModelServerUnavailable(
                f"TensorFlow Serving at {self.address} {failure} ({error.code().name}). Try again in a moment."
            ) from error

    def _remote_function(self) -> Any:
        """Return the remote function. Its channel keeps the connections open."""
        with self._lock:
            if self._predict is None:
                import grpc

                channel = grpc.insecure_channel(
                    self.address,
                    options=[
                        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
                        ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
                        ("grpc.keepalive_time_ms", 30_000),
                        ("grpc.initial_reconnect_backoff_ms", 200),
                        ("grpc.max_reconnect_backoff_ms", 2000),
                    ],
                )
                messages = message_types()
                self._predict = channel.unary_unary(
                    _METHOD,
                    request_serializer=messages["Request"].SerializeToString,
                    response_deserializer=messages["Response"].FromString,
                )
            return self._predict


_SERVICE_CONFIG = {
    # A prediction has no side effect, so it may be repeated. gRPC adds jitter to the waiting times.
    "methodConfig": [
        {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": _MAX_ATTEMPTS,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "loadBalancingConfig": [{"round_robin": {}}],
}


def _request(version: Version, source: str, images: np.ndarray) -> Any:
    messages = message_types()
    tensor = messages["Tensor"](
        dtype=_UINT8, tensor_shape={"dim": [{"size": size} for size in images.shape]}, content=images.tobytes()
    )
    model = {"name": version.name, "version": {"value": version.number}, "signature_name": _SIGNATURE}
    return messages["Request"](model=model, inputs=[messages["Named"](key=source, value=tensor)])


def _array(tensor: Any) -> np.ndarray:
    """Convert a float tensor, which comes as bytes or as numbers."""
    values = np.frombuffer(tensor.content, np.float32) if tensor.content else np.asarray(tensor.floats, np.float32)
    return values.reshape([dim.size for dim in tensor.tensor_shape.dim])


@cache
def message_types() -> dict[str, Any]:
    """Return the message classes by their names in `_MESSAGES`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="cifar/model_server.proto", package="cifar", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            *repeated, base = kind.split()
            field = message.field.add(name=field_name, number=number)
            field.label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            if base in _MESSAGES:
                field.type, field.type_name = types.TYPE_MESSAGE, f".cifar.{base}"
            else:
                field.type = types.Type.Value(f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"cifar.{name}")) for name in _MESSAGES}
