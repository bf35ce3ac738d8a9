"""The HTTP API: middleware, error responses, probes and metrics. It knows the classifier, but not the page."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar import __version__
from cifar.dependency import Dependency
from cifar.errors import INTERNAL_ERROR, BadParameter, BadRequest, CifarError, MethodNotAllowed, RouteClosed
from cifar.serving.asgi import Endpoint, error_response
from cifar.serving.auth.signin import add_sign_in, documented
from cifar.serving.front.body_limit import BodyLimit
from cifar.serving.front.cross_origin import CrossOrigin
from cifar.serving.front.head import Head
from cifar.serving.front.headers import security_headers
from cifar.serving.front.last_resort import LastResort
from cifar.serving.front.observe import Observe
from cifar.serving.front.rate_limit import RateLimit
from cifar.serving.front.under_path import UnderPath
from cifar.serving.front.visitor import VisitorCookie
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.process.lifespan import watch_loop_while_serving
from cifar.serving.process.metrics import exposition, watch
from cifar.serving.process.redis import SharedRedis
from cifar.serving.process.shares import Shares
from cifar.serving.rest.openapi import Error, add_docs
from cifar.serving.rest.predict import add_predict
from cifar.settings import Settings

log = logging.getLogger(__name__)


class Api(FastAPI):
    """A FastAPI app behind `front`, the middleware. Middleware added to FastAPI would not see its answers to unexpected errors.

    Requests of the routes in `direct`, by method and path, reach their function without FastAPI's own middleware and router,
    which take 35 of about 250 microseconds of processor time (2026-11-26, one core, 32x32 PNG). FastAPI documents these routes.
    """

    front: ASGIApp
    direct: dict[tuple[str, str], Endpoint]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = super().__call__ if scope["type"] == "lifespan" else self.front
        await app(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        return _Direct(cast(ServerErrorMiddleware, super().build_middleware_stack()), self.direct)


class _Direct(ServerErrorMiddleware):
    """FastAPI's middleware. Requests of the routes in `direct` bypass it, unless they are traced.

    OpenTelemetry's instrumentation of FastAPI expects this base class, and wraps the app in it.
    """

    def __init__(self, stack: ServerErrorMiddleware, direct: dict[tuple[str, str], Endpoint]) -> None:
        super().__init__(stack.app, stack.handler, stack.debug)
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._direct.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None or "fastapi.telemetry" in scope:
            await super().__call__(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except CifarError as error:
            response = _respond(request, error)
        except Exception as error:
            response = _respond_unexpected(request, error)
        await response(scope, receive, send)


def create_api(classifier: RecordedClassifier, settings: Settings, *, redis: SharedRedis | None = None) -> FastAPI:
    """Create the API. When the server starts, the model is loaded in the background; `/readyz` reports when it is ready."""

    def load() -> None:
        classifier.versions.load_default()
        gc.freeze()  # a full collection of what lives as long as the process would hold the event loop for 0.1 seconds

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = threading.Thread(target=load, name="load-model", daemon=True)
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
        servers=[{"url": settings.path}] if settings.path else None,
    )
    api.front, of_sign_in = _front(api, settings, redis, classifier.waiting_bytes)
    parts = (redis, classifier.versions, classifier.records)
    dependencies = [*(part.dependency for part in parts if part and part.dependency), *of_sign_in]
    for dependency in dependencies:
        watch(dependency)
    _add_error_handlers(api)
    api.direct = {("POST", "/predict"): add_predict(api, classifier, settings)}
    add_docs(api)
    watch_loop_while_serving(api)
    _add_health(api, classifier, dependencies)

    @api.get("/metrics", response_class=PlainTextResponse, dependencies=documented(settings))
    async def metrics(request: Request) -> Response:
        """Metrics in Prometheus' text format, or as OpenMetrics, with exemplars, where `Accept` asks for it."""
        content, kind = await asyncio.to_thread(exposition, request.headers.get("accept", ""))
        return Response(content, media_type=kind)

    return api


def _front(
    api: Api, settings: Settings, redis: SharedRedis | None, waiting_bytes: Shares
) -> tuple[ASGIApp, list[Dependency]]:
    """Put the middleware around FastAPI, the innermost first. Return it, and the outside services that sign-in needs."""
    app: ASGIApp = partial(FastAPI.__call__, api)
    app = BodyLimit(app, settings.max_body_bytes, waiting_bytes)
    if settings.rate_limit_predict or settings.rate_limit_page:
        app = RateLimit(app, settings, redis=redis)
    app = VisitorCookie(app, settings)
    app, dependencies = add_sign_in(app, api, settings)
    app = LastResort(Head(CrossOrigin(app, settings)))
    app = Observe(
        app,
        access_log=settings.access_log,
        log_addresses=settings.log_addresses,
        headers=security_headers(settings),
    )
    return UnderPath(app, settings.path) if settings.path else app, dependencies


def _add_health(api: FastAPI, classifier: RecordedClassifier, dependencies: Sequence[Dependency]) -> None:
    """Add the probes. They are coroutines, because in the thread pool they would wait behind images."""

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Report whether the process answers and whether the model is loaded."""
        return {"status": "healthy", "model_loaded": classifier.versions.ready}

    @api.get("/healthz")
    async def alive() -> dict[str, str]:
        """Answer while the process is alive. Restart it when this fails."""
        return {"status": "alive"}

    @api.get("/readyz", responses={503: {"model": Error}})
    async def ready() -> dict[str, Any]:
        """Answer 200 when the model is loaded and warmed up. Send traffic only then.

        `without` lists the outside services that are down and that the server works without.
        """
        versions = classifier.versions
        versions.check_ready()
        if versions.dependency and versions.dependency.failing:
            await asyncio.to_thread(versions.probe_model_server)
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
    """Answer every error with the same JSON object, and never with a stack trace."""

    @api.exception_handler(CifarError)
    async def expected(request: Request, error: CifarError) -> JSONResponse:
        return _respond(request, error)

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return _respond_unexpected(request, error)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        sentence = f"{'.'.join(map(str, first['loc']))}: {first['msg']}."
        if first["loc"] == ("body",):  # such as a form
            sentence = "The body must be a JSON object, sent with Content-Type: application/json."
        return _respond(request, BadParameter(sentence))

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        sentence = str(error.detail)
        if error.status_code == 405:
            return _respond(request, MethodNotAllowed(sentence, (error.headers or {}).get("Allow", "")))
        response = _respond(request, (RouteClosed if error.status_code == 404 else BadRequest)(sentence))
        response.status_code = error.status_code
        return response


def _respond(request: Request, error: CifarError) -> JSONResponse:
    return error_response(error, request.state.request_id)


def _respond_unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("request %s failed", request.state.request_id, exc_info=error)
    return _respond(request, CifarError(INTERNAL_ERROR))
