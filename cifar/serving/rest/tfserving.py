"""TensorFlow Serving's REST API, `/v1/models/...`, so that one client works with both servers.

A request for status, metadata or `:predict` names a version, a label or neither. Without either, the rollout chooses the
version for `:predict`. The header `X-Model-Version` names the version that answered, and `X-Model-Engine` the engine and its
precision, which may be int8 also for a signature of floats. Errors have the field `error`, which
TensorFlow Serving's clients read, and our `code`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, FastAPI, Path, Request, Response
from starlette.convertors import IntegerConvertor, StringConvertor, register_url_convertor

from cifar.errors import CifarError, LabelNotFound, RouteClosed, VersionNotFound
from cifar.models.manifest import Manifest, TensorInfo
from cifar.serving.asgi import read_unpacked_body
from cifar.serving.auth.principal import Requester
from cifar.serving.auth.signin import documented
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.process.metrics import count_answer
from cifar.serving.rest.openapi import ERRORS, failures
from cifar.serving.rest.tensors import TensorCall, read_call, write_answer
from cifar.settings import Settings

CHANNEL = "tensor"
MAX_CALL_IMAGES = 256
"""Images in one call of `:predict`."""
_THREAD_BYTES = 64 * 1024
"""Longer bodies are parsed in a thread: one megabyte of JSON would block the event loop for 20 ms."""

Name = Annotated[
    str, Path(description="The model's name.", examples=["cifar_classifier"], max_length=200, pattern="^[^/:]+$")
]
Number = Annotated[int, Path(description="A version.", examples=[2], ge=1, le=999_999_999)]
Label = Annotated[
    str, Path(description="A label, such as stable.", examples=["stable"], max_length=32, pattern="^[^/:]+$")
]

_SCHEMA = {
    "type": "object",
    "properties": {"signature_name": {}, "instances": {}, "inputs": {}},
}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}}


class _Part(StringConvertor):
    """A part of a path without a colon, which separates the verb: `NAME:predict`."""

    regex = "[^/:]+"


class _Number(IntegerConvertor):
    """A number of at most 18 digits. Python raises ValueError for thousands of digits, which would be answered 500."""

    regex = "[0-9]{1,18}"


# Starlette has one registry for all converters, so these names are ours.
register_url_convertor("tfserving_part", _Part())
register_url_convertor("tfserving_number", _Number())


def add_tfserving(api: FastAPI, calls: TensorCalls, settings: Settings) -> None:
    own = {
        400: "A malformed body, or a tensor of the wrong shape",
        404: "No such model, version or label",
        405: "Wrong method",
    }
    router = APIRouter(prefix="/v1/models", responses=failures({**ERRORS, **own}), dependencies=documented(settings))
    _add_predict(router, calls)
    _add_metadata(router, calls.versions)
    _add_status(router, calls.versions)
    api.router.routes.extend(router.routes)  # one by one, so that a test can compare them with the table of routes


class TensorCalls:
    """Answers calls with tensors, of TensorFlow Serving's clients and of those of the Open Inference Protocol."""

    def __init__(self, classifier: RecordedClassifier, settings: Settings) -> None:
        self.versions = classifier.versions
        self._classifier = classifier
        self._settings = settings
        self._files_threads = ThreadPoolExecutor(2, "tensor-files")

    async def answer(
        self,
        request: Request,
        number: int | None,
        *,
        read: Callable[..., Any],
        write: Callable[[Any, np.ndarray, Manifest], Response],
        mark: bytes,
    ) -> Response:
        """Answer a call. The response's headers name version and engine.

        Args:
            request: its body has not been read yet; it may be packed with gzip.
            number: the version; None for the one that the rollout chooses for the caller.
            read: reads the body, with the arguments of `read_call`. The call that it returns has `images`, as `TensorCall` has.
            write: makes the response of the call, the rows of `Predictor.answers` and the manifest of the version.
            mark: is in each body with image files, which are expensive to decode, unless its JSON has escapes.

        Raises:
            CifarError: see `read_unpacked_body`, `read`, `QueueSlots.slot` and `LoadedVersions.get`.
        """
        body = await read_unpacked_body(request.scope, request.receive, self._settings.max_body_bytes)
        requester = Requester.of(request.scope)
        async with self._classifier.queue.slot(CHANNEL, caller=requester.caller, size_bytes=len(body)):
            served = self.versions.if_loaded(number, requester.user)
            if served is None:
                served = await asyncio.to_thread(self.versions.get, number)
            manifest = served.predictor.version.manifest
            limits = {"max_images": MAX_CALL_IMAGES, "max_pixels": self._settings.max_image_pixels}
            reading = partial(read, body, manifest, **limits, decode=self._classifier.decoder.finish)
            if mark in body or b"\\" in body:  # files may wait for memory, and must not hold up other work in threads
                call = await asyncio.get_running_loop().run_in_executor(self._files_threads, reading)
            else:
                call = await asyncio.to_thread(reading) if len(body) > _THREAD_BYTES else reading()
            waiting = [served.batcher.submit(image[None], channel=CHANNEL) for image in call.images]
            answers = await asyncio.gather(*waiting)
        rows = np.stack([answer.row for answer in answers])
        for row in rows:
            count_answer(CHANNEL, manifest.version, served.predictor.rank(row, 1))
        response = write(call, rows, manifest)
        response.headers["X-Model-Version"] = str(manifest.version)
        response.headers["X-Model-Engine"] = f"{served.predictor.engine}, {served.predictor.precision}"
        return response


def _add_predict(router: APIRouter, calls: TensorCalls) -> None:
    versions = calls.versions

    def write(call: TensorCall, rows: np.ndarray, manifest: Manifest) -> Response:
        content = orjson.dumps(write_answer(call, rows, manifest.class_names))
        return Response(content, media_type="application/json")

    answer = partial(calls.answer, read=read_call, write=write, mark=b"b64")

    @router.post("/{name:tfserving_part}/versions/{version:tfserving_number}:predict", openapi_extra=_BODY)
    async def predict_by_version(name: Name, version: Number, request: Request) -> Response:
        """Return the outputs of one version, by row (`instances`) or by column (`inputs`)."""
        check_name(versions, name)
        return await answer(request, version)

    @router.post("/{name:tfserving_part}/labels/{label:tfserving_part}:predict", openapi_extra=_BODY)
    async def predict_by_label(name: Name, label: Label, request: Request) -> Response:
        """Return the outputs of the version with this label."""
        check_name(versions, name)
        return await answer(request, _labelled(versions, label))

    @router.post("/{name:tfserving_part}:predict", openapi_extra=_BODY)
    async def predict(name: Name, request: Request) -> Response:
        """Return the outputs of the version that the rollout chooses for the caller."""
        check_name(versions, name)
        return await answer(request, None)

    @router.post("/{name:tfserving_part}:{verb}", include_in_schema=False)
    async def other(name: str, verb: str) -> None:
        """Answer 404 to `:classify` and `:regress`, which need signatures that image classifiers do not have."""
        raise RouteClosed(f"There is no :{verb[:20]} here; there is {name[:40]}:predict.")


def _add_metadata(router: APIRouter, versions: LoadedVersions) -> None:
    @router.get("/{name:tfserving_part}/versions/{version:tfserving_number}/metadata")
    def metadata_of_version(name: Name, version: Number) -> dict[str, Any]:
        """Return the signatures of one version."""
        check_name(versions, name)
        return _metadata(versions.registry.get(version).manifest)

    @router.get("/{name:tfserving_part}/labels/{label:tfserving_part}/metadata")
    def metadata_of_label(name: Name, label: Label) -> dict[str, Any]:
        """Return the signatures of the version with this label."""
        check_name(versions, name)
        return _metadata(versions.registry.get(_labelled(versions, label)).manifest)

    @router.get("/{name:tfserving_part}/metadata")
    def metadata(name: Name) -> dict[str, Any]:
        """Return the signatures of the stable version."""
        check_name(versions, name)
        return _metadata(versions.default.manifest)


def _add_status(router: APIRouter, versions: LoadedVersions) -> None:
    @router.get("/{name:tfserving_part}/versions/{version:tfserving_number}")
    def status_of_version(name: Name, version: Number) -> dict[str, Any]:
        """Report whether one version can be used."""
        check_name(versions, name)
        return {"model_version_status": [_status(versions, version)]}

    @router.get("/{name:tfserving_part}/labels/{label:tfserving_part}")
    def status_of_label(name: Name, label: Label) -> dict[str, Any]:
        """Report whether the version with this label can be used."""
        check_name(versions, name)
        return {"model_version_status": [_status(versions, _labelled(versions, label))]}

    @router.get("/{name:tfserving_part}")
    def status(name: Name) -> dict[str, Any]:
        """Report which versions can be used, newest first."""
        check_name(versions, name)
        return {"model_version_status": [_status(versions, number) for number in reversed(versions.registry.numbers())]}


def check_name(versions: LoadedVersions, name: str) -> None:
    """Raise `VersionNotFound` for a model that is not served."""
    if name != versions.registry.name:
        raise VersionNotFound(f"There is no model {name[:40]!r} here; there is {versions.registry.name}.")


def _labelled(versions: LoadedVersions, label: str) -> int:
    number = versions.labels.get(label)
    if number is None:
        raise LabelNotFound(f"There is no label {label!r}; there are: {', '.join(versions.labels)}.")
    return number


def _status(versions: LoadedVersions, number: int) -> dict[str, Any]:
    """Return the state of one version. A version that is not in memory is available too: a call loads it."""
    state, code, message = "AVAILABLE" if versions.ready else "LOADING", "OK", ""
    try:
        versions.registry.get(number)
    except VersionNotFound:
        raise
    except CifarError as error:
        state, code, message = "END", "FAILED_PRECONDITION", str(error)
    return {"version": str(number), "state": state, "status": {"error_code": code, "error_message": message}}


def _metadata(manifest: Manifest) -> dict[str, Any]:
    signatures = {
        name: {
            "inputs": {tensor: _tensor(info, f"{name}_{tensor}:0") for tensor, info in signature.inputs.items()},
            "outputs": {tensor: _tensor(info, "") for tensor, info in signature.outputs.items()},
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }
        for name, signature in manifest.signatures.items()
    }
    return {
        "model_spec": {"name": manifest.name, "signature_name": "", "version": str(manifest.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _tensor(info: TensorInfo, name: str) -> dict[str, Any]:
    """Return the JSON form of protobuf's `TensorInfo`: sizes are strings, since they are 64-bit numbers; -1 is any size."""
    dtype = {"float32": "FLOAT"}.get(info.dtype, info.dtype.upper())
    sizes = [{"size": str(-1 if size is None else size), "name": ""} for size in info.shape]
    return {"dtype": f"DT_{dtype}", "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}
