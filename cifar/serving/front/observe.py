"""The outermost middleware: gives each request an id, counts, times and logs it, and adds headers to its answer.

Requests are counted under the label of their route. Paths themselves are not used as labels, because that would make the
cardinality of the metrics unbounded.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.records.values import REQUEST_ID
from cifar.serving.asgi import header, trace_id, with_headers
from cifar.serving.auth.principal import caller_of
from cifar.serving.process.logs import request_id
from cifar.serving.process.metrics import LATENCY, REQUESTS, note_exemplar
from cifar.serving.routes import OTHER, RouteRule, rule_of

log = logging.getLogger("cifar.access")

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")

Headers = Sequence[tuple[bytes, bytes]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Other methods share one label too."""


class Observe:
    """Identifies, counts, times and logs requests. It is outermost, and so sees the status of every answer.

    The id of a request is its `X-Request-ID`, if that is a valid one, or a random one. The answer has it in that header.
    """

    def __init__(self, app: ASGIApp, *, access_log: bool, log_addresses: bool = False, headers: Headers = ()) -> None:
        """Observe `app`. `headers`, names in lower case, are added to each answer that has none of that name."""
        self.app = app
        self._access_log = access_log
        self._log_addresses = log_addresses
        self._headers = headers
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        for status in (200, 500, 503):  # `rate()` misses the first increase of a series that did not exist
            self._series_of("POST", "/predict", status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. The time ends with the head of the answer, since a stream may last for hours."""
        if scope["type"] != "http":
            await self.app(scope, receive, with_headers(send, self._headers))
            return
        started = time.perf_counter()
        own_id = scope.setdefault("state", {})["request_id"] = _id_of(scope)
        request_id.set(own_id)
        trace_id.set(_trace_of(scope))
        counted = not scope["state"].get("from_worker")  # else the worker that received it counts it
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        rule = rule_of(scope["path"])
        status = 0

        def count(answered: int) -> None:
            nonlocal status
            status = answered
            if counted:
                self._count(method, rule.label, status, time.perf_counter() - started)

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
                message["headers"] = self._completed(message["headers"], own_id)
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except Exception:
            if not status:
                count(500)  # the server will answer with this status
            raise
        finally:
            if not status:
                count(499)  # the client disconnected before the answer
            if self._access_log and counted:
                self._log(scope, method, rule, status, time.perf_counter() - started)

    def _completed(self, headers: Headers, own_id: str) -> Headers:
        """Add our headers. Another worker that answered the request has added the id already."""
        present = {name.lower() for name, _ in headers}
        return [
            *(pair for pair in headers if pair[0] != b"x-request-id"),
            (b"x-request-id", own_id.encode()),
            *(pair for pair in self._headers if pair[0] not in present),
        ]

    def _log(self, scope: Scope, method: str, rule: RouteRule, status: int, seconds: float) -> None:
        level = logging.DEBUG if rule.quiet else logging.INFO
        if not log.isEnabledFor(level):
            return
        caller = caller_of(scope)
        fields = {
            "method": method,
            "endpoint": rule.label,
            "status": status,
            "seconds": round(seconds, 6),
            "caller": caller,
        }
        if self._log_addresses and scope.get("client"):
            fields["address"] = scope["client"][0]
            caller = f"{caller} at {fields['address']}"
        log.log(level, "%s %s %s in %.4f s by %s", method, rule.label, status, seconds, caller, extra=fields)

    def _count(self, method: str, label: str, status: int, seconds: float) -> None:
        requests, latency = self._series_of(method, label, status)
        requests.inc()
        latency.observe(seconds)
        if trace := trace_id.get():
            note_exemplar(method, label, seconds, trace)

    def _series_of(self, method: str, label: str, status: int) -> tuple[Counter, Histogram]:
        """Return the metrics of such requests. Their look-up by labels is as slow as counting, so they are kept here."""
        key = method, label, status
        if key not in self._series:
            self._series[key] = REQUESTS.labels(*key), LATENCY.labels(method, label)
        return self._series[key]


def _id_of(scope: Scope) -> str:
    chosen = header(scope, b"x-request-id")
    return chosen if REQUEST_ID.fullmatch(chosen) else secrets.token_hex(16)


def _trace_of(scope: Scope) -> str:
    """Return the trace id of the W3C header `traceparent`; empty without a valid one."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            return found[1].decode() if found else ""
    return ""
