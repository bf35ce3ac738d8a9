"""What stands in front of Gradio's own routes.

Gradio reads files for its callers: a path on this server, or a URL that it fetches, in any input that looks like a file
(`FileData`), and any URL named to `/gradio_api/file=`. None of that is needed here. Files come by upload only, and only
the routes that the page and the clients use are open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import BadRequest, CifarError
from cifar.serving.middleware import error_response

_PREFIX = "/gradio_api/"
_OPEN = re.compile(
    r"/gradio_api/(info|openapi\.json|app_id|startup-events|theme\.css|upload|upload_progress|cancel|reset|login_check|token|user"
    r"|heartbeat/\w+|queue/(join|data|status)|(run|api)/\w+|call/(v2/)?\w+(/\w+)?|file=(?!\s*[a-zA-Z][\w+.-]*:).*)/?"
)


class _RouteClosed(CifarError):
    code = "not_found"
    status = 404


class GradioGuard:
    """Closes the routes of Gradio that nobody here needs, and checks the files that calls name."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self.app(scope, receive, send)
            return
        try:
            if not _OPEN.fullmatch(scope["path"]):
                raise _RouteClosed("This route is closed.")
            if scope["method"] == "POST" and not scope["path"].rstrip("/").endswith("/upload"):
                body = await Request(scope, receive).body()
                _check_call(body)
                receive = _replay(body, receive)
        except CifarError as error:
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _check_call(body: bytes) -> None:
    """Refuse a call that is no JSON object, or names a file that was not uploaded."""
    try:
        call = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(call, dict):
        raise BadRequest("The body must be a JSON object.")
    uploads = Path(get_upload_folder()).resolve()
    for path in _named_files(call):
        if not Path(path).resolve().is_relative_to(uploads):
            raise BadRequest(
                "A file must be uploaded to /gradio_api/upload first: a path on the server or a URL is not accepted."
            )


def _named_files(node: Any) -> Iterator[str]:
    """Every `path` in the call: each is taken for a file by some part of Gradio."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("path"), str):
                yield node["path"]
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then what the server says (that the client left)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
