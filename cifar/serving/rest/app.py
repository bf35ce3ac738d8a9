"""The HTTP API: routes, parameters and errors. It knows the classifier and nothing of the page."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar import __version__
from cifar.dependency import Dependency
from cifar.errors import BadParameter, BadRequest, CifarError, MethodNotAllowed, RouteClosed
from cifar.serving.asgi import any_error_response, closing, error_response
from cifar.serving.auth.signin import add_sign_in, documented
from cifar.serving.front.body_limit import BodyLimit
from cifar.serving.front.headers import SecurityHeaders
from cifar.serving.front.observe import Observe
from cifar.serving.front.rate_limit import RateLimit
from cifar.serving.front.request_id import RequestId
from cifar.serving.front.visitor import VisitorCookie
from cifar.serving.inference.classify import Classifier
from cifar.serving.process.metrics import exposition, watch
from cifar.serving.process.redis import SharedRedis
from cifar.serving.rest.docs import add_docs
from cifar.serving.rest.openapi import VERSION, Error, ModelVersion, failures, image_request
from cifar.serving.rest.predict import PredictRoute
from cifar.settings import Settings


class Api(FastAPI):
    """FastAPI behind what every request passes, and with a way around it for the route that is called most."""

    front: ASGIApp
    """Request id, counts and log, headers, CORS, sign-in and limits; then `choose`."""
    predict_route: ASGIApp
    draining = False
    """Set when the server is about to end: every connection is closed with its next answer, and none in between."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass the front; everything else is the framework's."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            await self.front(scope, receive, closing(send) if self.draining else send)

    async def choose(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer `POST /predict` here: the framework's router and responses take longer than the model."""
        if scope["path"] == "/predict" and scope["type"] == "http" and scope["method"] == "POST":
            await self.predict_route(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Ranked(BaseModel):
    """One class and its probability."""

    label: str
    score: float


class Answer(BaseModel):
    """The classification of one image."""

    predicted_class: str
    confidence: float
    class_scores: dict[str, float]
    top_k: list[Ranked]
    ood_score: float | None = Field(
        description="How unlike the training images: 0 for a typical one, above 1 for the 5 % least typical. Null: this version cannot tell."
    )
    in_distribution: bool | None = Field(
        description="False: probably of none of the classes, whatever the probabilities say. Null: this version cannot tell."
    )
    model: ModelVersion
    request_id: str


def _predict_parameters(classes: int) -> dict[str, Any]:
    return {
        "top_k": {"type": "integer", "minimum": 1, "maximum": classes, "description": "How many classes to rank."},
        "version": VERSION,
        "record": {
            "type": "boolean",
            "default": True,
            "description": "False: nothing of this request is recorded, and no feedback on it can be given.",
        },
    }


def create_api(classifier: Classifier, settings: Settings, *, redis: SharedRedis | None = None) -> FastAPI:
    """Make the API. The model is loaded in the background when the server starts; `/readyz` says when it is there."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = threading.Thread(target=classifier.versions.load_default, name="load-model", daemon=True)
        loading.start()
        if settings.workers > 1:  # a worker that is not ready must not take requests from those that are
            await asyncio.to_thread(loading.join)
        ended = threading.Event()
        threading.Thread(target=classifier.versions.follow, args=[ended], name="follow-registry", daemon=True).start()
        yield
        ended.set()
        if redis:
            await redis.client.aclose()

    api = Api(
        title="CIFAR Space",
        version=__version__,
        summary="Classify images with a versioned Keras model.",
        lifespan=lifespan,
        docs_url=None,  # see `add_docs`
        redoc_url=None,
    )
    api.predict_route = PredictRoute(classifier)
    limited = RateLimit(BodyLimit(api.choose, max_body_bytes=settings.max_body_bytes), settings, redis=redis)
    cors: dict[str, Any] = {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["Authorization", "X-API-Key"],
    }
    signed_in, dependencies = add_sign_in(VisitorCookie(limited), api, settings)
    answered = SecurityHeaders(CORSMiddleware(signed_in, **cors), settings)
    api.front = RequestId(Observe(answered, api.routes, access_log=settings.access_log))
    # A second time, for Gradio to see: it reflects any origin, with credentials, unless the app around it has a policy.
    api.add_middleware(CORSMiddleware, **cors)
    secured = documented(settings)
    add_docs(api)
    _add_error_handlers(api)
    records = classifier.records and classifier.records.recorder
    parts = (redis and redis.dependency, classifier.versions.dependency, records and records.dependency)
    dependencies = [*(part for part in parts if part), *dependencies]
    for dependency in dependencies:
        watch(dependency)
    _add_health(api, classifier, dependencies)

    @api.post(
        "/predict",
        response_model=Answer,
        responses=failures(),
        dependencies=secured,
        openapi_extra=image_request(_predict_parameters(len(classifier.versions.default.manifest.class_names))),
    )
    async def predict() -> None:  # documented here, answered by `PredictRoute`
        """Classify one image: a multipart field `image`, or the file itself as the body."""

    @api.get("/metrics", response_class=Response, dependencies=secured)
    async def metrics() -> Response:
        """What is counted, in Prometheus' text format."""
        content, kind = exposition()
        return Response(content, media_type=kind)

    return api


def _add_health(api: FastAPI, classifier: Classifier, dependencies: Sequence[Dependency]) -> None:
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
        """The model is loaded and warmed up. Send traffic only then. `without` names the outside services that are down; the server works without them."""
        versions = classifier.versions
        versions.check_ready()
        if versions.dependency and versions.dependency.failing:
            await asyncio.to_thread(versions.ask_again)
        return {
            "status": "ready",
            "without": [dependency.name for dependency in dependencies if dependency.failing],
            "model": {"name": versions.default.name, "version": versions.default.number},
            "traffic": {
                f"{label}, version {versions.labels[label]}": percent for label, percent in versions.traffic.items()
            },
            "problem": versions.problem,
        }


def _add_error_handlers(api: FastAPI) -> None:
    """Every error leaves in one shape, and none with a stack trace."""

    def respond(request: Request, error: CifarError) -> JSONResponse:
        return error_response(error, request.state.request_id)

    @api.exception_handler(CifarError)
    @api.exception_handler(Exception)
    async def known_or_not(request: Request, error: Exception) -> JSONResponse:
        return any_error_response(error, request.state.request_id)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return respond(request, BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))

    @api.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> JSONResponse:
        sentence = str(error.detail)
        if error.status_code == 405:
            return respond(request, MethodNotAllowed(sentence, (error.headers or {}).get("Allow", "").split(", ")))
        response = respond(request, (RouteClosed if error.status_code == 404 else BadRequest)(sentence))
        response.status_code = error.status_code
        return response
