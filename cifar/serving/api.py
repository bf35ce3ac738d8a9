"""The HTTP API: routes, parameters and errors. It knows the classifier and nothing of the page."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cifar import __version__
from cifar.errors import OUR_FAULT, BadParameter, BadRequest, CifarError, MethodNotAllowed, MissingImage, RouteClosed
from cifar.serving.classify import Classifier
from cifar.serving.middleware import BodyLimit, RequestId, error_response
from cifar.settings import Settings

log = logging.getLogger(__name__)


class Ranked(BaseModel):
    """One class and its probability."""

    label: str
    score: float


class ModelVersion(BaseModel):
    """Which model spoke."""

    name: str
    version: int


class Answer(BaseModel):
    """The classification of one image."""

    predicted_class: str
    confidence: float
    class_scores: dict[str, float]
    top_k: list[Ranked]
    model: ModelVersion
    request_id: str


class Error(BaseModel):
    """What went wrong, in a sentence; `code` is stable."""

    error: str
    code: str
    request_id: str


_ERRORS = {
    400: "No image, or a malformed body",
    404: "No such version",
    413: "Body or image too large",
    415: "Not an image in a supported format",
    422: "The image cannot be decoded, or a parameter is wrong",
    503: "Not ready; `Retry-After` says when to try again",
}

_PARAMETERS: dict[str, Any] = {
    "top_k": {"type": "integer", "minimum": 1, "description": "How many classes to rank."},
    "version": {"type": "integer", "minimum": 1, "description": "The model version to ask."},
}

_PREDICT_DOC: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in _PARAMETERS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}, **_PARAMETERS},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}


def create_api(classifier: Classifier, settings: Settings) -> FastAPI:
    """Make the API. The model is loaded in the background when the server starts; `/readyz` says when it is there."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=classifier.versions.load_default, name="load-model", daemon=True).start()
        yield

    api = FastAPI(
        title="CIFAR Space",
        version=__version__,
        summary="Classify images with a versioned Keras model.",
        lifespan=lifespan,
    )
    api.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes)
    # Gradio reflects any origin, with credentials, unless the app around it has a CORS policy of its own.
    api.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"])
    api.add_middleware(RequestId)
    _add_error_handlers(api)
    _add_health(api, classifier)

    @api.post(
        "/predict",
        response_model=Answer,
        responses={status: {"model": Error, "description": text} for status, text in _ERRORS.items()},
        openapi_extra=_PREDICT_DOC,
    )
    async def predict(request: Request) -> dict[str, Any]:
        """Classify one image: a multipart field `image`, or the file itself as the body."""
        payload, parameters = await _read(request)
        top_k, version = parameters.get("top_k"), parameters.get("version")
        answer = None if version else classifier.classify_at_once(payload, top_k=top_k)
        if answer is None:
            answer = await run_in_threadpool(classifier.classify, payload, top_k=top_k, version=version)
        return {**answer.as_json(), "request_id": request.state.request_id}

    return api


async def _read(request: Request) -> tuple[bytes | None, dict[str, str]]:
    """The image and the parameters, from a form or from a raw body and the query."""
    parameters = {name: value for name, value in request.query_params.items() if name in _PARAMETERS}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body() or None, parameters
    if kind != "multipart/form-data":
        raise MissingImage(
            f"Expected multipart/form-data with a file field `image`, or an image/* body; got {kind or 'no Content-Type'}."
        )
    try:
        return await _read_form(request, parameters)
    except UnicodeError as error:  # a charset that is none
        raise BadRequest("The form's charset cannot be read; leave it out.") from error


async def _read_form(request: Request, parameters: dict[str, str]) -> tuple[bytes | None, dict[str, str]]:
    async with request.form(max_files=1, max_fields=10) as form:
        parameters |= {name: value for name, value in form.items() if name in _PARAMETERS and isinstance(value, str)}
        if unknown := [name for name in form if name != "image" and name not in _PARAMETERS]:
            raise BadParameter(f"There is no field {unknown[0]!r}; there are: image, {', '.join(_PARAMETERS)}.")
        image = form.get("image")
        if isinstance(image, str):
            raise MissingImage("The field `image` came as text; send it as a file, as `curl -F image=@photo.jpg` does.")
        return await image.read() if isinstance(image, UploadFile) else None, parameters


def _add_health(api: FastAPI, classifier: Classifier) -> None:
    """Coroutines, all three: in the thread pool they would wait behind the images."""

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the process answers, and whether the model is loaded."""
        return {"status": "healthy", "model_loaded": classifier.versions.ready}

    @api.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process is alive. Restart it when this fails."""
        return {"status": "alive"}

    @api.get("/readyz", responses={503: {"model": Error}})
    async def ready() -> dict[str, Any]:
        """The model is loaded and warmed up. Send traffic only then."""
        classifier.versions.check_ready()
        return {
            "status": "ready",
            "model": {"name": classifier.versions.default.name, "version": classifier.versions.default.number},
        }


def _add_error_handlers(api: FastAPI) -> None:
    """Every error leaves in one shape, and none with a stack trace."""

    def respond(request: Request, error: CifarError) -> JSONResponse:
        return error_response(error, request.state.request_id)

    @api.exception_handler(CifarError)
    async def known(request: Request, error: CifarError) -> JSONResponse:
        return respond(request, error)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return respond(request, BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))

    @api.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> JSONResponse:
        known_status = {404: RouteClosed, 405: MethodNotAllowed}
        response = respond(request, known_status.get(error.status_code, BadRequest)(str(error.detail)))
        response.status_code = error.status_code
        return response

    @api.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed", request.state.request_id, exc_info=error)
        return respond(request, CifarError(OUR_FAULT))
