"""What stands around Gradio's own routes.

Gradio reads files for its callers: a path on this server, or a URL that it fetches, in any input that looks like a file
(`FileData`), and any URL named to `/gradio_api/file=`. None of that is needed here: files come by upload only, and only
the routes that the page and the clients use are open. And Gradio answers 500 to a call that it did not expect; here it
is the caller's mistake, unless our own function says that it is ours.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import OUR_FAULT, BadRequest, CallFailed, CifarError, MethodNotAllowed, RouteClosed, TooLarge
from cifar.serving.asgi import error_response, replay

log = logging.getLogger(__name__)

_PREFIX = "/gradio_api/"
_OPEN = re.compile(
    r"/gradio_api/(info|openapi\.json|app_id|startup-events|theme\.css|upload|upload_progress|cancel|reset|login_check"
    r"|token|user|heartbeat/[\w-]+|queue/(join|data|status)|(run|api)/\w+|call/(v2/)?\w+(/[\w-]+)?"
    r"|file=(?!\s*[a-zA-Z][\w+.-]*:).*)/?"
)
_UPLOAD = "/gradio_api/upload"
_NO_FIT = "The call does not fit its endpoint. /gradio_api/info lists endpoints and parameters."
MAX_CALL_BYTES = 64 * 1024
"""Largest JSON body of a call; images are uploaded first."""
_SESSION_HASH = re.compile(r"[\w-]{1,64}")
_MAX_PATH_CHARACTERS = 1024
"""An upload's is much shorter; following a call's worth of folders that are not there takes half a second."""


class GradioGuard:
    """An ASGI app around Gradio's."""

    def __init__(self, gradio: ASGIApp, *, own_routes: Iterable[Route], file_roots: list[Path]) -> None:
        """Guard `gradio`.

        Args:
            gradio: the mounted app.
            own_routes: the API's; what arrives here for one of their paths came with another method.
            file_roots: folders whose files a call may name.
        """
        self.gradio = gradio
        self._own_routes = [(route.path_regex, route.methods or ()) for route in own_routes]
        self._file_roots = [root.resolve() for root in file_roots]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let Gradio answer it."""
        if scope["type"] != "http":
            await self.gradio(scope, receive, send)
            return
        try:
            receive = await self._checked(scope, receive)
        except CifarError as error:
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        await self._answer(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Refuse what Gradio should not see; the request may be read from what is returned."""
        path: str = scope["path"]
        own = {method for pattern, methods in self._own_routes if pattern.match(path) for method in methods}
        if own:
            raise MethodNotAllowed(f"{scope['method']} is not a method of {path[:200]}; see /docs.", sorted(own))
        if path.startswith(_PREFIX) and not _OPEN.fullmatch(path):
            raise RouteClosed("There is nothing at this address.")
        del MutableHeaders(scope=scope)["x-gradio-server"]  # it would make Gradio name another server as itself
        if scope["method"] != "POST" or not path.startswith(_PREFIX) or path.rstrip("/") == _UPLOAD:
            return receive
        body = await self._read_call(scope, receive)
        self._check_call(body)
        return replay(body, receive)

    async def _read_call(self, scope: Scope, receive: Receive) -> bytes:
        body = b""
        async for piece in Request(scope, receive).stream():
            body += piece
            if len(body) > MAX_CALL_BYTES:
                raise TooLarge(f"A call has at most {MAX_CALL_BYTES:,} bytes; images go to {_UPLOAD} first.")
        return body

    def _check_call(self, body: bytes) -> None:
        """Refuse a call that is no JSON object, or names a file that was not uploaded."""
        try:
            call = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise BadRequest("The body is not JSON.") from error
        if not isinstance(call, dict):
            raise BadRequest("The body must be a JSON object.")
        session = call.get("session_hash")
        if session is not None and not (isinstance(session, str) and _SESSION_HASH.fullmatch(session)):
            raise BadRequest("session_hash must be 1 to 64 letters, digits, - or _.")
        data = call.get("data")
        if isinstance(data, list) and data and isinstance(data[0], str):
            raise BadRequest("The image came as text. In Python, wrap its path: handle_file('photo.jpg').")
        if not all(map(self._is_served_file, _named_files(call))):
            raise BadRequest(
                f"A file must be uploaded to {_UPLOAD} first: a path on the server or a URL is not accepted."
            )

    def _is_served_file(self, path: str) -> bool:
        if len(path) > _MAX_PATH_CHARACTERS:
            return False
        try:
            file = Path(path).resolve()
        except (ValueError, OSError):  # a null byte, a name that is too long
            return False
        return any(file.is_relative_to(root) for root in self._file_roots)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio answer, save with an error: that leaves in the one shape of ours."""
        failure: bytearray | None = None
        status = 500

        async def send_unless_failed(message: Message) -> None:
            nonlocal failure, status
            if message["type"] == "http.response.start" and message["status"] >= 400:
                failure, status = bytearray(), message["status"]
            elif failure is None:
                await send(message)
            else:
                failure += message.get("body", b"")

        try:
            await self.gradio(scope, receive, send_unless_failed)
        except CifarError as error:
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        except Exception as error:
            if failure is None:
                raise
            log.warning("Gradio failed at %s %r: %r", scope["method"], scope["path"], type(error))
            if isinstance(error, (OSError, MemoryError)):  # a full disk is no mistake of the caller's
                log.exception("request %s failed", scope["state"]["request_id"])
                failure = bytearray(json.dumps({"error": OUR_FAULT}).encode())
        if failure is not None:
            await error_response(_as_error(status, bytes(failure)), scope["state"]["request_id"])(scope, receive, send)


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


def _as_error(status: int, body: bytes) -> CifarError:
    """What an error of Gradio's says: a sentence, or nothing, when a call never came to our function."""
    try:
        answer = json.loads(body)
        sentence = answer.get("error") or answer.get("detail")
    except (ValueError, AttributeError):
        sentence = None
    if sentence == OUR_FAULT:
        return CifarError(OUR_FAULT)
    if status in {403, 404}:
        return RouteClosed("There is nothing at this address.")
    error = CallFailed(sentence if isinstance(sentence, str) else _NO_FIT)
    error.status = CallFailed.status if status == 500 else status
    return error
