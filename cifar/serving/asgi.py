"""Helpers that all ASGI code shares: the error response, reading a header, replaying a body, adding headers."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from cifar.errors import BadRequest, BodyTooLarge, CallerLeft, CifarError, UnsupportedEncoding

CALLER_LEFT = "The client disconnected before the request was complete."
_MAX_GZIP_MEMBERS = 1000
"""Limit on the members of a gzip body. A small body can hold a million empty ones."""
_UNPACKING = ThreadPoolExecutor(1, "unpacking")
"""One at a time: 20 kB become 20 MB, which count for the caller only when they are there. Sixty at once ended two workers in one gibibyte."""
_GZIP_PIECE_BYTES = 64 * 1024
"""Bytes that are unpacked at once. Each member copies the rest of its piece, so pieces are short."""

_MAX_SIZE_DIGITS = 20
_MAX_ACCEPTED = 100
"""Entries of an `Accept` header that are read. Thirty thousand would hold the event loop for a fifth of a second."""
_WEIGHT = re.compile(r"q=[01](\.\d*)?", re.ASCII)

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of the trace that the request's `traceparent` names; empty without one. Log lines and error bodies carry it."""

Endpoint = Callable[[Request], Awaitable[Response]]
"""A function that answers the requests of one route."""


def error_response(error: CifarError, request_id: str, **more: object) -> JSONResponse:
    """Return the response to an error: a sentence, a stable code, the request id to quote to the operator, and `more`."""
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    body = {"error": str(error), "code": error.code, "request_id": request_id, **more}
    if trace := trace_id.get():
        body["trace_id"] = trace
    return JSONResponse(body, status_code=error.status, headers=headers)


def header(scope: Scope | Message, name: bytes) -> str:
    """Return the value of a header of a request or of the head of an answer, `name` in lower case, or an empty string without that header."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


def announced_bytes(scope: Scope) -> int | None:
    """Return the `Content-Length` of a request; None without one, or if it has more digits than a size: Python reads at most 4,300."""
    announced = header(scope, b"content-length")
    return int(announced) if announced.isdecimal() and len(announced) <= _MAX_SIZE_DIGITS else None


def preferred(accept: str, offered: Sequence[str]) -> str | None:
    """Return the media type among `offered` that an `Accept` header prefers, the first one of equals, or None if it excludes all.

    The most specific entry for a type decides (RFC 9110, 12.5.1). An empty header accepts everything.
    """
    weights: dict[str, float] = {}
    for entry in (accept.lower() or "*/*").split(",", _MAX_ACCEPTED)[:_MAX_ACCEPTED]:
        kind, *parameters = (part.replace(" ", "") for part in entry.split(";"))
        weights[kind.strip()] = next((float(part[2:]) for part in parameters if _WEIGHT.fullmatch(part)), 1.0)

    def weight(kind: str) -> float:
        names = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next((weights[name] for name in names if name in weights), 0.0)

    best = max(offered, key=weight)
    return best if weight(best) > 0 else None


async def disconnected(receive: Receive) -> None:
    """Wait until the client disconnects. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def body_pieces(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises:
        CallerLeft: the client disconnected before the body was complete.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft(CALLER_LEFT)
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def read_body(receive: Receive) -> bytes:
    """Return the complete body, or raise what `body_pieces` does."""
    pieces = [piece async for piece in body_pieces(receive)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_unpacked_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the complete body, unpacked if it came with `Content-Encoding: gzip`.

    Raises:
        UnsupportedEncoding: it came with another encoding.
        BodyTooLarge: it has more than `max_bytes` unpacked.
        BadRequest: it is not gzip, or cut off.
        CallerLeft: see `body_pieces`.
    """
    body = await read_body(receive)
    encoding = header(scope, b"content-encoding").strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip"}:
        raise UnsupportedEncoding(
            f"Content-Encoding {encoding[:40]!r} is not read here; send the body as it is or with gzip."
        )
    return await asyncio.get_running_loop().run_in_executor(_UNPACKING, _gunzip, body, max_bytes)


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    unpacked = bytearray()
    member, members = None, 0
    try:
        for start in range(0, len(body), _GZIP_PIECE_BYTES):
            piece = body[start : start + _GZIP_PIECE_BYTES]
            while piece:
                if member is None:
                    member, members = zlib.decompressobj(wbits=31), members + 1
                if members > _MAX_GZIP_MEMBERS:
                    raise BadRequest(f"The gzip body has more than {_MAX_GZIP_MEMBERS:,} members. Pack it as one.")
                unpacked += member.decompress(piece, max_bytes + 1 - len(unpacked))
                if len(unpacked) > max_bytes:
                    raise BodyTooLarge(f"The body has more than {max_bytes:,} bytes unpacked. Send less.")
                piece = member.unused_data
                if member.eof:
                    member = None
    except zlib.error as error:
        raise BadRequest(f"The body is not gzip, as Content-Encoding says: {error}.") from error
    if member is not None:
        raise BadRequest("The gzip body is cut off.")
    return bytes(unpacked)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` for a body that has been read: `body` is its first message, and the next ones come from `receive`."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def with_headers(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    """Return a `send` that adds headers, names in lower case, to an answer. It replaces none that the answer has."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in headers if pair[0] not in own)]
        await send(message)

    return send_with
