"""Checks every request before it reaches Gradio, and gives Gradio's error responses the format of the API.

Gradio reads files for its callers: it accepts a path on the server, or a URL that it then fetches, in every input that looks
like a file (`FileData`), and any URL after `/gradio_api/file=`. This service does not need that: the guard accepts uploaded
files only, and opens only the routes in `routes.py`. Gradio also answers 500 to a malformed call. The guard answers 4xx instead,
unless one of our own functions reports an internal error.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import (
    INTERNAL_ERROR,
    BadRequest,
    CallerLeft,
    CallFailed,
    CifarError,
    MethodNotAllowed,
    RouteClosed,
    TooLarge,
)
from cifar.serving.asgi import CALLER_LEFT, body_pieces, error_response, header, replay, with_headers
from cifar.serving.gradio.uploads import UPLOAD_PATH
from cifar.serving.routes import rule_of

log = logging.getLogger(__name__)

MAX_CALL_BYTES = 64 * 1024
"""Largest JSON body of a call; images are uploaded first."""
_PREFIX = "/gradio_api/"
_FILE_BY_URL = re.compile(r"/gradio_api/file=\s*[a-zA-Z][\w+.-]*:")
_SESSION_HASH = re.compile(r"[\w-]{1,64}")
_PYTHON_CLIENT = "gradio_client/"
"""In the User-Agent of Gradio's Python client."""
_MAX_PATH_CHARACTERS = 1024
"""The path of an upload is much shorter. Resolving a path of 64 kB whose folders do not exist takes half a second."""
_CLOSED = "There is nothing at this address; /docs lists what there is."
_DOES_NOT_FIT = "The call does not fit its endpoint. /gradio_api/info lists endpoints and parameters."


class GradioGuard:
    """An ASGI app around Gradio's."""

    def __init__(self, gradio: ASGIApp, *, own_routes: Iterable[Route], file_roots: list[Path]) -> None:
        """Guard `gradio`. A call may name files in `file_roots`.

        A request for a path of `own_routes`, those of the API, arrives here only if its method is wrong.
        """
        self.gradio = gradio
        self._own_routes = [(route.path_regex, route.methods or ()) for route in own_routes]
        self._file_roots = [root.resolve() for root in file_roots]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.gradio(scope, receive, send)
            return
        if not rule_of(scope["path"]).quiet:  # no cache may share the page, which sets a cookie, or an upload
            send = with_headers(send, [(b"cache-control", b"private, no-store")])
        try:
            await self._answer(scope, await self._checked(scope, receive), send)
        except CifarError as error:
            more = _shown_by_client(error) if _PYTHON_CLIENT in header(scope, b"user-agent") else {}
            await error_response(error, scope["state"]["request_id"], **more)(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Refuse a request that must not reach Gradio. Return a `receive` from which Gradio can read the body."""
        path: str = scope["path"]
        own = {method for pattern, methods in self._own_routes if pattern.match(path) for method in methods}
        if own:
            allowed = ", ".join(own)
            raise MethodNotAllowed(f"{scope['method']} is not a method of {path[:200]}; use {allowed}.", allowed)
        if path.startswith(_PREFIX) and (not rule_of(path).gradio or _FILE_BY_URL.match(path)):
            raise RouteClosed(_CLOSED)
        headers = MutableHeaders(scope=scope)
        del headers["x-gradio-server"]  # with it, a caller could set the address in Gradio's answers
        del headers["origin"]  # Gradio would allow every origin, with credentials; `create_api` has answered CORS
        if scope["method"] != "POST" or not path.startswith(_PREFIX) or path.rstrip("/") == UPLOAD_PATH:
            return receive
        body = await _read_call(receive)
        scope["state"]["gradio_session"] = self.check_call(body)
        return replay(body, receive)

    def check_call(self, body: bytes) -> str | None:
        """Check the body of a call, and return its `session_hash`.

        Raises:
            BadRequest: it is not a JSON object, or it names a file that was not uploaded.
        """
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
        if isinstance(data, list) and data and _is_path(data[0]):
            raise BadRequest(
                "The image came as text. Wrap its path: handle_file('photo.jpg'); in JavaScript, send a Blob of the file."
            )
        if not all(map(self._is_upload, _named_files(call))):
            raise BadRequest(
                f"A file must be uploaded to {UPLOAD_PATH} first, as handle_file('photo.jpg') does: a path on the server or a URL is not accepted."
            )
        return session

    def _is_upload(self, path: str) -> bool:
        if len(path) > _MAX_PATH_CHARACTERS:
            return False
        try:
            file = Path(path).resolve()
        except (ValueError, OSError):  # a null byte, a name that is too long
            return False
        return any(file.is_relative_to(root) for root in self._file_roots)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio answer. An error response of Gradio's is not sent, but raised as one of our errors."""
        failure: bytearray | None = None
        status, allowed = 500, ""

        async def send_unless_failed(message: Message) -> None:
            nonlocal failure, status, allowed
            if message["type"] == "http.response.start" and message["status"] >= 400:
                failure, status = bytearray(), message["status"]
                allowed = header(message, b"allow")
            elif failure is None:
                await send(message)
            else:
                failure += message.get("body", b"")

        try:
            await self.gradio(scope, receive, send_unless_failed)
        except ClientDisconnect as error:
            raise CallerLeft(CALLER_LEFT) from error
        except Exception as error:
            if isinstance(error, CifarError) or failure is None:
                raise
            log.warning("Gradio failed at %s %r: %r", scope["method"], scope["path"], type(error))
            if isinstance(error, (OSError, MemoryError)):  # such as a full disk: not an error of the caller
                log.exception("Request %s failed", scope["state"]["request_id"])
                failure = bytearray(json.dumps({"error": INTERNAL_ERROR}).encode())
        if status == 405:
            sentence = f"{scope['method']} is not a method of {scope['path'][:200]}; use {allowed}."
            raise MethodNotAllowed(sentence, allowed, head=not rule_of(scope["path"]).session)
        if failure is not None:
            raise _as_error(status, bytes(failure))


def _shown_by_client(error: CifarError) -> dict[str, Any]:
    """Make `gradio_client` show the sentence of an error: of all refused calls, it does so for a failed validation only."""
    if not isinstance(error, BadRequest):
        return {}
    error.status = 422
    return {"detail": [{"__type__": "validate", "is_valid": False, "parameter_name": "call", "message": str(error)}]}


def _is_path(value: Any) -> bool:
    """Return whether text came in place of an upload, or of the first of several."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], str) and bool(Path(value[0]).suffix)
    return isinstance(value, str)


async def _read_call(receive: Receive) -> bytes:
    body = b""
    async for piece in body_pieces(receive):
        body += piece
        if len(body) > MAX_CALL_BYTES:
            raise TooLarge(f"A call has at most {MAX_CALL_BYTES:,} bytes; images go to {UPLOAD_PATH} first.")
    return body


def _named_files(node: Any) -> Iterator[str]:
    """Yield every `path` in a call, at any depth, because Gradio may read each of them as a file."""
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
    """Return Gradio's error response as one of our errors. Its message is ours if one of our functions was called."""
    try:
        answer = json.loads(body)
        message = answer.get("error") or answer.get("detail")
    except (ValueError, AttributeError):
        message = None
    if message == INTERNAL_ERROR:
        return CifarError(INTERNAL_ERROR)
    if status in {403, 404}:
        return RouteClosed(_CLOSED)
    error = CallFailed(message if isinstance(message, str) else _DOES_NOT_FIT)
    error.status = CallFailed.status if status == 500 else status
    return error
