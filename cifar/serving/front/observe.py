"""Counts, times and logs every request, by the template of its address: raw paths would be labels without end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import cached_property

from prometheus_client import Counter, Histogram
from starlette.routing import BaseRoute, Route, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.serving.process.logs import request_id
from cifar.serving.process.metrics import LATENCY, REQUESTS

log = logging.getLogger("cifar.access")

OTHER = "other"
"""The one label of all addresses that are nobody's, and of all methods that HTTP does not know."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ASSETS = (
    "/static/{path:path}",
    "/assets/{path:path}",
    "/svelte/{path:path}",
    "/pwa_icon/{size}",
    "/theme.css",
    "/favicon.ico",
    "/robots.txt",
    "/manifest.json",
    "/gradio_api/theme.css",
)
_QUIET = frozenset({"/health", "/healthz", "/readyz", "/metrics", *_ASSETS})
"""What is asked without a pause, or dozens of times for one page: logged at debug level."""
_GRADIO = (
    "/",
    "/config",
    *_ASSETS,
    *(
        f"/gradio_api/{rest}"
        for rest in (
            "info",
            "openapi.json",
            "app_id",
            "startup-events",
            "upload",
            "upload_progress",
            "cancel",
            "reset",
            "login_check",
            "token",
            "user",
            "heartbeat/{session}",
            "queue/join",
            "queue/data",
            "queue/status",
            "run/{name}",
            "api/{name}",
            "call/{name}",
            "call/v2/{name}",
            "call/v2/{name}/{event}",
            "call/{name}/{event}",
            "file={path:path}",
            "mcp/{path:path}",
        )
    ),
)
"""Gradio's own routes hide in a router of FastAPI's that has no list, and most requests of a session never reach it here."""


def endpoint_templates(routes: Iterable[BaseRoute]) -> Callable[[str], str]:
    """A function from a path to the template of its route, or to `OTHER`: from a URL's path to one of a few labels."""
    # The API's as OpenAPI writes them, without converters; Gradio's as they stand above.
    named = [(route.path, compile_path(route.path)[1]) for route in routes if isinstance(route, Route)]
    named += [(path, path) for path in _GRADIO]
    exact = {path: name for path, name in named if "{" not in path}
    patterns = [(compile_path(path)[0], name) for path, name in named if "{" in path]

    def template_of(path: str) -> str:
        if known := exact.get(path):
            return known
        path = path.rstrip("/") or "/"
        return exact.get(path) or next((name for pattern, name in patterns if pattern.match(path)), OTHER)

    return template_of


class Observe:
    """Stands right inside `RequestId`, so that it sees every status that leaves."""

    def __init__(self, app: ASGIApp, routes: list[BaseRoute], *, access_log: bool) -> None:
        """Observe what `app` answers.

        Args:
            app: who answers.
            routes: the API's; read at the first request, when all are there.
            access_log: whether each request gets a line.
        """
        self.app = app
        self._routes = routes
        self._access_log = access_log
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        for status in (200, 500, 503):  # a rate does not see the first of what was never there
            self._series_of("POST", "/predict", status)

    @cached_property
    def _template_of(self) -> Callable[[str], str]:
        return endpoint_templates(self._routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered. Its time ends with the answer's head: a stream may last for hours."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id.set(scope["state"]["request_id"])
        if scope["state"].get("from_worker"):  # it was counted where it arrived
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        endpoint = self._template_of(scope["path"])
        status = 0

        def count(answered: int) -> None:
            nonlocal status
            status = answered
            requests, latency = self._series.get((method, endpoint, status)) or self._series_of(
                method, endpoint, status
            )
            requests.inc()
            latency.observe(time.perf_counter() - started)

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except Exception:
            if not status:
                count(500)  # as the server will say
            raise
        finally:
            if not status:
                count(499)  # the caller left before there was anything to say
            if self._access_log:
                _log(method, endpoint, status, time.perf_counter() - started)

    def _series_of(self, method: str, endpoint: str, status: int) -> tuple[Counter, Histogram]:
        """What counts such requests, made once: finding it by its labels takes as long as counting."""
        made = REQUESTS.labels(method, endpoint, status), LATENCY.labels(method, endpoint)
        return self._series.setdefault((method, endpoint, status), made)


def _log(method: str, endpoint: str, status: int, seconds: float) -> None:
    level = logging.DEBUG if endpoint in _QUIET else logging.INFO
    if log.isEnabledFor(level):
        fields = {"method": method, "endpoint": endpoint, "status": status, "seconds": round(seconds, 6)}
        log.log(level, "%s %s %s in %.4f s", method, endpoint, status, seconds, extra=fields)
