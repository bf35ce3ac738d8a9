"""The Open Inference Protocol v2 over REST, `/v2/...`, which Triton, KServe and MLServer have too.

A call has one input, that of one of the version's signatures: floats, `uint8` or image files (`BYTES`). Tensors are part of the JSON or,
by the protocol's binary tensor extension, follow it as bytes. Triton's classification extension ranks classes. In JSON, image files are
written in base64. Errors have the field `error`, as the protocol demands, and our `code` and `request_id`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, FastAPI, Request, Response

from cifar import __version__
from cifar.errors import BadRequest
from cifar.models.manifest import Manifest, SignatureInfo
from cifar.serving.asgi import header
from cifar.serving.auth.signin import documented
from cifar.serving.rest import tensors
from cifar.serving.rest.json_pieces import decode_base64
from cifar.serving.rest.openapi import ERRORS, failures
from cifar.serving.rest.tensors import DEFAULT_SIGNATURE, Decode, decoded_files, parse_call, shown
from cifar.serving.rest.tfserving import Name, Number, TensorCalls, check_name
from cifar.settings import Settings

_HEADER_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {"float32": "FP32", "uint8": "UINT8", "string": "BYTES"}
_NUMPY: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}

_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"description": "A text, which the answer repeats."},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": {"type": "object"}},
        "outputs": {"description": "A list of objects; all outputs if it is left out."},
    },
}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


@dataclass(frozen=True)
class RequestedOutput:
    """One output that a call asks for.

    Attributes:
        name: an output of the signature.
        binary: send it as bytes after the JSON.
        classes: send this many of the largest probabilities as `SCORE:INDEX:LABEL`; 0 for the tensor itself.
    """

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class InferCall:
    """The content of one `infer` call. `images` is `(n, height, width, channels)` `uint8`."""

    call_id: str | None
    outputs: list[RequestedOutput]
    images: np.ndarray


def add_openinference(api: FastAPI, calls: TensorCalls, settings: Settings) -> None:
    own = {400: "A malformed call, or a tensor of the wrong shape", 404: "No such model or version"}
    router = APIRouter(prefix="/v2", responses=failures({**ERRORS, **own}))
    _add_health(router, calls)
    _add_models(router, calls, settings)
    _add_infer(router, calls, settings)
    api.router.routes.extend(router.routes)  # one by one, so that a test can compare them with the table of routes


def _add_health(router: APIRouter, calls: TensorCalls) -> None:
    @router.get("/health/live")
    async def server_live() -> dict[str, bool]:
        """Answer while the process is alive."""
        return {"live": True}

    @router.get("/health/ready")
    async def server_ready() -> dict[str, bool]:
        """Answer 200 when the model is loaded and warmed up, and 503 before."""
        calls.versions.check_ready()
        return {"ready": True}


def _add_models(router: APIRouter, calls: TensorCalls, settings: Settings) -> None:
    versions, signed_in = calls.versions, documented(settings)

    def metadata(manifest: Manifest) -> dict[str, Any]:
        signature = manifest.signatures[DEFAULT_SIGNATURE]
        return {
            "name": manifest.name,
            "versions": [str(number) for number in versions.registry.numbers()],
            "platform": "tensorflow_savedmodel",
            "inputs": _tensors(signature.inputs),
            "outputs": _tensors(signature.outputs),
            # In place of this input a call may have that of another signature, so it is not listed among `inputs`.
            "parameters": {
                "labels": manifest.class_names,
                "other_inputs": [
                    tensor
                    for other in manifest.signatures.values()
                    if other is not signature
                    for tensor in _tensors(other.inputs)
                ],
            },
        }

    @router.get("", dependencies=signed_in)
    async def server_metadata() -> dict[str, Any]:
        """Return the name and version of the server and the extensions of the protocol that it has."""
        return {"name": "cifar-space", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}

    @router.get("/models/{name:tfserving_part}/versions/{version:tfserving_number}/ready", dependencies=signed_in)
    def version_ready(name: Name, version: Number) -> dict[str, Any]:
        """Answer 200 when a version can be used."""
        check_name(versions, name)
        versions.check_ready()
        return {"name": versions.registry.get(version).name, "ready": True}

    @router.get("/models/{name:tfserving_part}/ready", dependencies=signed_in)
    def model_ready(name: Name) -> dict[str, Any]:
        """Answer 200 when the model can be used."""
        check_name(versions, name)
        versions.check_ready()
        return {"name": name, "ready": True}

    @router.get("/models/{name:tfserving_part}/versions/{version:tfserving_number}", dependencies=signed_in)
    def version_metadata(name: Name, version: Number) -> dict[str, Any]:
        """Return the inputs and outputs of one version."""
        check_name(versions, name)
        return metadata(versions.registry.get(version).manifest)

    @router.get("/models/{name:tfserving_part}", dependencies=signed_in)
    def model_metadata(name: Name) -> dict[str, Any]:
        """Return the inputs and outputs of the stable version."""
        check_name(versions, name)
        return metadata(versions.default.manifest)


def _add_infer(router: APIRouter, calls: TensorCalls, settings: Settings) -> None:
    async def answer(request: Request, number: int | None) -> Response:
        read = partial(read_infer, header_length=header(request.scope, _HEADER_LENGTH.lower().encode()))
        return await calls.answer(request, number, read=read, write=write_infer, mark=b"BYTES")

    options: dict[str, Any] = {"openapi_extra": _BODY, "dependencies": documented(settings)}

    @router.post("/models/{name:tfserving_part}/versions/{version:tfserving_number}/infer", **options)
    async def version_infer(name: Name, version: Number, request: Request) -> Response:
        """Return the outputs of one version."""
        check_name(calls.versions, name)
        return await answer(request, version)

    @router.post("/models/{name:tfserving_part}/infer", **options)
    async def model_infer(name: Name, request: Request) -> Response:
        """Return the outputs of the version that the rollout chooses for the caller."""
        check_name(calls.versions, name)
        return await answer(request, None)


def _tensors(infos: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": _DATATYPES[info.dtype],
            "shape": [-1 if size is None else size for size in info.shape],
        }
        for name, info in infos.items()
    ]


def read_infer(
    body: bytes, manifest: Manifest, *, max_images: int, max_pixels: int, decode: Decode, header_length: str = ""
) -> InferCall:
    """Read the body of an `infer` call for one version: JSON, followed by the input if it is binary.

    `header_length` is the value of the header that says how many bytes are JSON, empty for all. For the other arguments see `read_call`.

    Raises:
        BadRequest: the call does not follow the protocol, or its tensor has the wrong shape or range.
        UnsupportedImage, UnreadableImage, ImageTooLarge: see `preprocess`.
    """
    if header_length and not (
        header_length.isdecimal() and len(header_length) < 10 and int(header_length) <= len(body)
    ):
        raise BadRequest(f"{_HEADER_LENGTH} is {header_length[:20]!r}, and the body has {len(body):,} bytes.")
    end = int(header_length) if header_length else len(body)
    call = parse_call(body[:end], manifest, max_images)
    inputs = call.get("inputs") if isinstance(call, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequest("Expected a JSON object with `inputs`, a list of one input.")
    call_id = call.get("id")
    signature, tensor = _signature(inputs[0], manifest)
    dtype = signature.inputs[tensor].dtype
    count = _count(inputs[0], tensor, dtype, manifest, max_images)
    size = _parameters(inputs[0]).get("binary_data_size")
    if size is not None and size != len(body) - end:
        raise BadRequest(f"binary_data_size is {shown(size)}, and {len(body) - end:,} bytes follow the JSON.")
    data = inputs[0].get("data") if size is None else body[end:]
    if dtype == "string":
        images = np.stack(list(decoded_files(_files(data, count), manifest.image, max_pixels, decode)))
    elif isinstance(data, bytes):
        images = _binary(data, count, tensor, dtype, manifest)
    else:
        images = _listed(data, count, tensor, dtype, manifest)
    return InferCall(
        call_id if isinstance(call_id, str) else None, _outputs(call, signature, len(manifest.class_names)), images
    )


def _parameters(part: dict[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest(f"`parameters` must be an object; got {shown(parameters)}.")
    return parameters


def _signature(given: dict[str, Any], manifest: Manifest) -> tuple[SignatureInfo, str]:
    """Return the signature with this input, and the input's name."""
    for signature in manifest.signatures.values():
        for tensor, info in signature.inputs.items():
            if given.get("name") == tensor:
                if given.get("datatype") != _DATATYPES[info.dtype]:
                    raise BadRequest(
                        f"The datatype of {tensor} is {_DATATYPES[info.dtype]}; got {shown(given.get('datatype'))}."
                    )
                return signature, tensor
    known = ", ".join(
        f"{tensor} ({_DATATYPES[info.dtype]})"
        for each in manifest.signatures.values()
        for tensor, info in each.inputs.items()
    )
    raise BadRequest(f"There is no input {shown(given.get('name'))}; version {manifest.version} takes one of: {known}.")


def _count(given: dict[str, Any], tensor: str, dtype: str, manifest: Manifest, max_images: int) -> int:
    """Return the number of images that the input's shape announces."""
    shape = given.get("shape")
    sizes = [] if dtype == "string" else list(manifest.image.shape)
    if not isinstance(shape, list) or not shape or shape[1:] not in (sizes, sizes or [1]) or type(shape[0]) is not int:
        raise BadRequest(f"The shape of {tensor} is [n{''.join(f', {size}' for size in sizes)}]; got {shown(shape)}.")
    if not 1 <= shape[0] <= max_images:
        raise BadRequest(f"A call takes 1 to {max_images} images; got {shown(shape[0])}.")
    return int(shape[0])


def _files(data: Any, count: int) -> list[bytes]:
    if isinstance(data, bytes):
        files = list(islice(_binary_texts(data), count + 1))  # 20 MB can hold five million, which take 150 MB
    else:
        files = [_file(value) for value in _flat(data)]
    if len(files) != count:
        raise BadRequest(f"The shape announces {count} files; got {'more' if len(files) > count else len(files)}.")
    return files


def _binary_texts(data: bytes) -> Iterator[bytes]:
    """Yield the elements of a binary tensor of BYTES: each one's length in four bytes, and then itself."""
    at = 0
    while at < len(data):
        size = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data)
        if at + 4 + size > len(data):
            raise BadRequest(
                "The binary data ends within an element: each has its length in 4 bytes, little-endian, before it."
            )
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _flat(data: Any) -> list[Any]:
    """Return the elements of `[a, b]` and of `[[a], [b]]`."""
    if not isinstance(data, list):
        raise BadRequest(f"`data` must be a list; got {shown(data)}.")
    return [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]


def _file(value: Any) -> bytes:
    try:
        return decode_base64(value, needs_padding=False)
    except (ValueError, AttributeError) as error:
        raise BadRequest(f"In JSON, BYTES are image files in base64; got {shown(value)}.") from error


def _binary(data: bytes, count: int, tensor: str, dtype: str, manifest: Manifest) -> np.ndarray:
    shape = (count, *manifest.image.shape)
    if len(data) != math.prod(shape) * _NUMPY[dtype].itemsize:
        raise BadRequest(
            f"{tensor} of shape {list(shape)} has {math.prod(shape) * _NUMPY[dtype].itemsize:,} bytes; got {len(data):,}."
        )
    array = np.frombuffer(data, _NUMPY[dtype]).reshape(shape)
    return array if dtype == "uint8" else tensors.levels(array, tensor, dtype, decimals=True)


def _listed(data: Any, count: int, tensor: str, dtype: str, manifest: Manifest) -> np.ndarray:
    """Return the images of a nested list, or of a flat one in row-major order."""
    if not isinstance(data, list) or not data:
        raise BadRequest(f"`data` must be a list of numbers; got {shown(data)}.")
    shape = manifest.image.shape
    if not isinstance(data[0], list | np.ndarray):
        if len(data) != count * math.prod(shape):
            raise BadRequest(
                f"{tensor} of shape {[count, *shape]} has {count * math.prod(shape):,} numbers; got {len(data):,}."
            )
        return tensors.flat_pixels(data, tensor, dtype, shape)
    if len(data) != count:
        raise BadRequest(f"The shape announces {count} images; got {len(data)}.")
    return tensors.pixels(data, tensor, dtype, shape)


def _outputs(call: dict[str, Any], signature: SignatureInfo, classes: int) -> list[RequestedOutput]:
    binary = _parameters(call).get("binary_data_output") is True
    asked = call.get("outputs") or [{"name": name} for name in sorted(signature.outputs)]
    if (
        not isinstance(asked, list)
        or not all(isinstance(output, dict) for output in asked)
        or len(asked) > len(signature.outputs)
    ):
        raise BadRequest(f"`outputs` must be a list of at most {len(signature.outputs)} objects.")
    found = []
    for output in asked:
        name, parameters = output.get("name"), _parameters(output)
        if not isinstance(name, str) or name not in signature.outputs:
            raise BadRequest(f"There is no output {shown(name)}; there are: {', '.join(sorted(signature.outputs))}.")
        ranked = parameters.get("classification", 0)
        if type(ranked) is not int or ranked < 0 or (ranked and name != "probabilities"):
            raise BadRequest(
                f"`classification` is a number of classes, for the output probabilities; got {shown(ranked)} for {name}."
            )
        found.append(RequestedOutput(name, parameters.get("binary_data", binary) is True, min(ranked, classes)))
    return found


def write_infer(call: InferCall, rows: np.ndarray, manifest: Manifest) -> Response:
    """Return the response. For `rows` see `write_answer`."""
    outputs, tail = [], []
    for asked in call.outputs:
        tensor = _output(asked, rows, manifest.class_names)
        is_text = isinstance(tensor, list)
        shape = [len(tensor), len(tensor[0])] if isinstance(tensor, list) else list(tensor.shape)
        flat = [text for row in tensor for text in row] if isinstance(tensor, list) else tensor.ravel()
        output: dict[str, Any] = {"name": asked.name, "datatype": "BYTES" if is_text else "FP32", "shape": shape}
        if asked.binary:
            content = b"".join(map(_binary_text, flat)) if is_text else np.ascontiguousarray(flat, "<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            output["data"] = flat if isinstance(flat, list) else flat.tolist()
        outputs.append(output)
    head = {"model_name": manifest.name, "model_version": str(manifest.version), "outputs": outputs}
    content = orjson.dumps(head if call.call_id is None else {**head, "id": call.call_id})
    if not tail:
        return Response(content, media_type="application/json")
    headers = {_HEADER_LENGTH: str(len(content))}
    return Response(content + b"".join(tail), media_type="application/octet-stream", headers=headers)


def _output(asked: RequestedOutput, rows: np.ndarray, class_names: list[str]) -> np.ndarray | list[list[str]]:
    """Return an output: numbers, or rows of texts."""
    scores = rows[:, : len(class_names)]
    if asked.name == "ood_score":
        return rows[:, -1]
    if asked.name == "classes":
        return [class_names] * len(rows)
    if not asked.classes:
        return scores
    return [
        [f"{row[i]:f}:{i}:{class_names[i]}" for i in np.argsort(-row, kind="stable")[: asked.classes]] for row in scores
    ]


def _binary_text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded
