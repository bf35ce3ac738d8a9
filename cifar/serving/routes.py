"""The table of all routes: the scope each one needs, its rate limit, its label in the metrics, how it is logged.

Sign-in, rate limits, the access log, the metrics and the code around Gradio read this one table. A route that is missing
from it is closed: it needs an authenticated caller, and below `/gradio_api/` it is answered 404. A test fails for every
route of the app that is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

OPEN = "open to all"
BROWSERS = "open to all where people can sign in to the page"
ANY_CALLER = "any caller"
OTHER = "other"
"""The label of all paths without a route of their own. It keeps the number of labels bounded."""


@dataclass(frozen=True)
class RouteRule:
    """One row of the table. It holds for all methods of the route.

    Attributes:
        path: the route's path. `{path:path}` stands for the rest of a path, any other `{...}` for one part.
        label: the route's label in the metrics and in the access log.
        scope: the scope that a caller needs (`predict`, `feedback` or `admin`), or one of the constants above.
        rate_group: the rate limit for POST requests: `predict` or `page`. Empty: they are not limited.
        quiet: log requests at debug level only, because there are very many of them.
        gradio: Gradio answers this route.
        session: where a request names its Gradio session: `body`, `query`, `path` (its last part), `event` (the last part
            is an event id, which begins with the worker's number) or `answer` (the answer holds a new event id).
        max_body_bytes: largest request body. None: that of the settings, which is made for images.
        to_disk: the request's body is written to a file as it arrives, and not kept in memory.
    """

    path: str
    label: str
    scope: str = ANY_CALLER
    rate_group: str = ""
    quiet: bool = False
    gradio: bool = False
    session: str = ""
    max_body_bytes: int | None = None
    to_disk: bool = False


def _rules(*paths: str, **attributes: Any) -> list[RouteRule]:
    """Return one row for each path, all with these attributes. The default label is the path."""
    return [RouteRule(path, **{"label": path, **attributes}) for path in paths]


_SMALL_JSON_BYTES = 16 * 1024
"""For routes with a few short fields. A note has at most 1,000 characters, each of at most 12 bytes in JSON."""
_GRADIO_API = {"scope": "predict", "rate_group": "page", "gradio": True}

ROUTES: tuple[RouteRule, ...] = (
    *_rules("/health", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", scope=OPEN, quiet=True),
    *_rules("/signin", "/signin/callback", "/signout", scope=BROWSERS),
    *_rules("/metrics", quiet=True),
    *_rules("/docs", "/openapi.json"),
    *_rules("/docs/{path:path}", label=OTHER),
    *_rules("/predict", "/explain", scope="predict", rate_group="predict"),
    *_rules("/feedback", scope="feedback", rate_group="predict", max_body_bytes=_SMALL_JSON_BYTES),
    *_rules(
        "/v1/models/{name}/versions/{version}:predict",
        "/v1/models/{name}/labels/{label}:predict",
        "/v1/models/{name}:predict",
        "/v1/models/{name}:{verb}",
        "/v1/models/{name}/versions/{version}/metadata",
        "/v1/models/{name}/labels/{label}/metadata",
        "/v1/models/{name}/metadata",
        "/v1/models/{name}/versions/{version}",
        "/v1/models/{name}/labels/{label}",
        "/v1/models/{name}",
        "/v2",
        "/v2/models/{name}/versions/{version}/infer",
        "/v2/models/{name}/versions/{version}/ready",
        "/v2/models/{name}/versions/{version}",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/ready",
        "/v2/models/{name}",
        scope="predict",
        rate_group="predict",
    ),
    *_rules(
        "/admin/models",
        "/admin/models/log",
        "/admin/models/promote",
        "/admin/models/rollback",
        "/admin/models/label",
        "/admin/models/traffic",
        scope="admin",
        max_body_bytes=_SMALL_JSON_BYTES,
    ),
    # The page and its files
    *_rules("/", "/config", gradio=True),
    *_rules(
        "/static/{path:path}",
        "/assets/{path:path}",
        "/svelte/{path:path}",
        "/pwa_icon/{size}",
        "/theme.css",
        "/favicon.ico",
        "/robots.txt",
        "/manifest.json",
        quiet=True,
        gradio=True,
    ),
    # Gradio's API: uploads, calls and their streams
    *_rules("/gradio_api/theme.css", **_GRADIO_API, quiet=True),
    *_rules(
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/app_id",
        "/gradio_api/startup-events",
        "/gradio_api/reset",
        "/gradio_api/login_check",
        "/gradio_api/token",
        "/gradio_api/user",
        "/gradio_api/queue/status",
        "/gradio_api/run/{name}",
        "/gradio_api/api/{name}",
        "/gradio_api/file={path:path}",
        **_GRADIO_API,
    ),
    *_rules("/gradio_api/queue/join", "/gradio_api/cancel", **_GRADIO_API, session="body"),
    *_rules(
        "/gradio_api/queue/data",
        "/gradio_api/upload_progress",
        **_GRADIO_API,
        session="query",
    ),
    *_rules("/gradio_api/upload", **_GRADIO_API, session="query", to_disk=True),
    *_rules("/gradio_api/heartbeat/{session}", **_GRADIO_API, session="path"),
    *_rules("/gradio_api/call/v2/{name}", **_GRADIO_API, session="answer"),
    *_rules("/gradio_api/call/v2/{name}/{event}", "/gradio_api/call/{name}/{event}", **_GRADIO_API, session="event"),
    *_rules("/gradio_api/call/{name}", **_GRADIO_API, session="answer"),
    # MCP is our own route, at the address where Gradio would have it.
    *_rules("/gradio_api/mcp", "/gradio_api/mcp/", "/gradio_api/mcp/{path:path}", scope="predict", rate_group="page"),
    # Unknown paths below these prefixes need the same scope as the routes there.
    *_rules("/v1/{path:path}", "/v2/{path:path}", label=OTHER, scope="predict", rate_group="predict"),
    *_rules("/gradio_api/{path:path}", label=OTHER, scope="predict", rate_group="page"),
    *_rules("/feedback/{path:path}", label=OTHER, scope="feedback"),
    *_rules("/admin", "/admin/{path:path}", label=OTHER, scope="admin"),
)
"""The first row that matches a path counts."""

_NO_ROUTE = RouteRule("", OTHER)
_EXACT = {rule.path: rule for rule in ROUTES if "{" not in rule.path}


def _pattern(rule: RouteRule) -> re.Pattern[str]:
    """Compile the path of a row. A slash or line feed at the end is allowed, because routers ignore them too."""
    part = r"[\w-]+" if rule.gradio else "[^/:]+"
    regex = re.escape(rule.path).replace(r"\{path:path\}", ".*")
    regex = re.sub(r"\\{\w+\\}", lambda _: part, regex)
    return re.compile(regex + r"[/\n]*", re.DOTALL)


_PATTERNS = [(_pattern(rule), rule) for rule in ROUTES if rule.scope not in {OPEN, BROWSERS}]
"""All rows except the open ones. An open route must match exactly: Gradio would answer a longer path."""


def rule_of(path: str) -> RouteRule:
    """Return the row of the table for a request's path; for an unknown path, one that needs any caller."""
    return _EXACT.get(path or "/") or next((rule for pattern, rule in _PATTERNS if pattern.fullmatch(path)), _NO_ROUTE)
