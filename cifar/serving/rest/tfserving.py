"""TensorFlow Serving's REST API on our server, so that one client works against both: `/v1/models/...`.

Status, metadata and `:predict`, by version, by label, or without either: then the caller's version answers, as everywhere
else here, and the header `X-Model-Version` says which. Errors have the `error` that its clients read, and our `code` beside it.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Path, Request, Response
from starlette.convertors import IntegerConvertor, StringConvertor, register_url_convertor

from cifar.errors import CifarError, LabelNotFound, RouteClosed, VersionNotFound
from cifar.models.manifest import Manifest, TensorInfo
from cifar.serving.auth.principal import Requester
from cifar.serving.auth.signin import documented
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.process.metrics import count_answer
from cifar.serving.rest.openapi import ERRORS, failures
from cifar.serving.rest.predict import read_body
from cifar.serving.rest.tensors import read_call, write_answer
from cifar.settings import Settings

CHANNEL = "tensor"
MAX_CALL_IMAGES = 256
"""Images in one call of `:predict`."""
_AWAY_BYTES = 64 * 1024
"""Longer bodies are read in a thread: JSON of a megabyte takes the event loop 20 ms."""

Name = Annotated[str, Path(description="The model's name.", max_length=200, pattern="^[^/:]+$")]
Number = Annotated[int, Path(description="A version.", ge=1, le=999_999_999)]
Label = Annotated[str, Path(description="A label, such as stable.", max_length=32, pattern="^[^/:]+$")]

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"signature_name": {"type": "string"}, "instances": {}, "inputs": {}},
                    "additionalProperties": False,
                }
            }
        },
    }
}


class _ModelName(StringConvertor):
    """A part of a path without a colon: behind one stands what to do."""

    regex = "[^/:]+"


class _Number(IntegerConvertor):
    """A number of no more digits than Python reads: from thousands on it raises, which would be an error of ours."""

    regex = "[0-9]{1,18}"


register_url_convertor("model", _ModelName())
register_url_convertor("number", _Number())


def add_tfserving(api: FastAPI, classifier: RecordedClassifier, settings: Settings) -> None:
    """Add the routes."""
    own = {
        400: "Malformed, or a tensor of another shape",
        404: "No such model, version or label",
        405: "Another method",
    }
    router = APIRouter(
        prefix="/v1/models", responses=failures({**ERRORS, **own}), dependencies=documented(settings), tags=["tensors"]
    )
    _add_predict(router, classifier, settings)
    _add_metadata(router, classifier.versions)
    _add_status(router, classifier.versions)
    api.router.routes.extend(router.routes)  # not as a router of their own: who lists the routes sees each


def _add_predict(router: APIRouter, classifier: RecordedClassifier, settings: Settings) -> None:
    versions = classifier.versions

    async def answer(request: Request, response: Response, number: int | None) -> dict[str, Any]:
        body = await read_body(request.receive)
        requester = Requester.of(request.scope)
        async with classifier.queue.slot(CHANNEL):
            served = versions.if_loaded(number, requester.user)
            if served is None:
                served = await asyncio.to_thread(versions.get, number)
            manifest = served.predictor.version.manifest
            limits = {"most_images": MAX_CALL_IMAGES, "max_pixels": settings.max_image_pixels}
            if len(body) > _AWAY_BYTES or _may_hold_files(body):
                call = await asyncio.to_thread(read_call, body, manifest, **limits)
            else:
                call = read_call(body, manifest, **limits)
            answers = await asyncio.gather(*(served.batcher.submit(image, channel=CHANNEL) for image in call.images))
        rows = np.stack([answer.row for answer in answers])
        for row in rows:
            count_answer(CHANNEL, manifest.version, served.predictor.rank(row, 1))
        response.headers["X-Model-Version"] = str(manifest.version)
        return write_answer(call, rows, manifest.class_names)

    @router.post("/{name:model}/versions/{version:number}:predict", openapi_extra=_BODY)
    async def predict_by_version(name: Name, version: Number, request: Request, response: Response) -> dict[str, Any]:
        """Ask one version for its outputs, in rows (`instances`) or columns (`inputs`)."""
        _check(versions, name)
        return await answer(request, response, version)

    @router.post("/{name:model}/labels/{label:model}:predict", openapi_extra=_BODY)
    async def predict_by_label(name: Name, label: Label, request: Request, response: Response) -> dict[str, Any]:
        """Ask the version that has a label."""
        _check(versions, name)
        return await answer(request, response, _labelled(versions, label))

    @router.post("/{name:model}:predict", openapi_extra=_BODY)
    async def predict(name: Name, request: Request, response: Response) -> dict[str, Any]:
        """Ask the caller's version."""
        _check(versions, name)
        return await answer(request, response, None)

    @router.post("/{name:model}:{verb}", include_in_schema=False)
    async def other(name: str, verb: str) -> None:
        """Classify and regress need signatures that image classifiers do not have."""
        raise RouteClosed(f"There is no :{verb[:20]} here; there is {name[:40]}:predict.")


def _add_metadata(router: APIRouter, versions: LoadedVersions) -> None:
    @router.get("/{name:model}/versions/{version:number}/metadata")
    def metadata_of_version(name: Name, version: Number) -> dict[str, Any]:
        """The signatures of one version."""
        _check(versions, name)
        return _metadata(versions.registry.get(version).manifest)

    @router.get("/{name:model}/labels/{label:model}/metadata")
    def metadata_of_label(name: Name, label: Label) -> dict[str, Any]:
        """The signatures of the version that has a label."""
        _check(versions, name)
        return _metadata(versions.registry.get(_labelled(versions, label)).manifest)

    @router.get("/{name:model}/metadata")
    def metadata(name: Name) -> dict[str, Any]:
        """The signatures of the stable version."""
        _check(versions, name)
        return _metadata(versions.default.manifest)


def _add_status(router: APIRouter, versions: LoadedVersions) -> None:
    @router.get("/{name:model}/versions/{version:number}")
    def status_of_version(name: Name, version: Number) -> dict[str, Any]:
        """Whether one version can be asked."""
        _check(versions, name)
        return {"model_version_status": [_status(versions, version)]}

    @router.get("/{name:model}/labels/{label:model}")
    def status_of_label(name: Name, label: Label) -> dict[str, Any]:
        """Whether the version that has a label can be asked."""
        _check(versions, name)
        return {"model_version_status": [_status(versions, _labelled(versions, label))]}

    @router.get("/{name:model}")
    def status(name: Name) -> dict[str, Any]:
        """Which versions can be asked, the newest first."""
        _check(versions, name)
        return {"model_version_status": [_status(versions, number) for number in reversed(versions.registry.numbers())]}


def _may_hold_files(body: bytes) -> bool:
    """Whether a call may bring image files, of which some bytes unpack to many pixels. JSON may spell `b64` with escapes."""
    return b"b64" in body or b"\\" in body


def _check(versions: LoadedVersions, name: str) -> None:
    if name != versions.registry.name:
        raise VersionNotFound(f"There is no model {name[:40]!r} here; there is {versions.registry.name}.")


def _labelled(versions: LoadedVersions, label: str) -> int:
    number = versions.labels.get(label)
    if number is None:
        raise LabelNotFound(f"There is no label {label!r}; there are: {', '.join(versions.labels)}.")
    return number


def _status(versions: LoadedVersions, number: int) -> dict[str, Any]:
    """One version's state. One that is not loaded is loaded when it is asked for, so it is available too."""
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
    """As the JSON form of `TensorInfo` writes it: sizes are 64-bit numbers, so text; -1 is any."""
    dtype = {"float32": "FLOAT"}.get(info.dtype, info.dtype.upper())
    sizes = [{"size": str(-1 if size is None else size), "name": ""} for size in info.shape]
    return {"dtype": f"DT_{dtype}", "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}
