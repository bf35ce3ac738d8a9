"""Forwards each request of a Gradio session to the worker that holds the session.

Gradio keeps the queue and the streams of a session in one process, but any worker may accept a request. `routes.py` says where a
request names its session, and the session's hash gives the number of its worker, so the workers need no shared state. A worker
forwards requests for other workers over their Unix sockets, and answers all others itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import httpx2
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import WorkerGone
from cifar.serving.asgi import body_pieces, disconnected
from cifar.serving.process.http_protocol import hanging_up
from cifar.serving.process.lifespan import while_serving
from cifar.serving.routes import rule_of

_EVENT_ID = re.compile(r"(\d{1,4})-(\w+)")
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_REPLACED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id"})
_LAST_ANSWERS_SECONDS = 5.0
_GONE = "The worker that held this session has ended."
_CONNECT_RETRIES = 5
"""httpx2 waits 0, 0.5, 1, 2 and 4 seconds between them. In this time gunicorn replaces a worker that died."""


class SessionRouter:
    """An ASGI app around Gradio's. It answers requests for this worker's sessions and forwards those for others."""

    def __init__(self, gradio: ASGIApp, *, slot: int, workers: int, sockets: Path) -> None:
        """Wrap `gradio`. Each worker, of which this is number `slot`, from 0, listens in the folder `sockets`, at `SLOT.sock`."""
        self.gradio = gradio
        self._slot = slot
        self._workers = workers
        self._sockets = sockets
        self._clients: dict[int, httpx2.AsyncClient] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["state"].get("from_worker"):
            await self.gradio(scope, receive, send)
            return
        session_in = rule_of(scope["path"]).session
        before, _, last = scope["path"].rstrip("/").rpartition("/")
        owner = self._slot
        if session_in == "event":
            if event := _EVENT_ID.fullmatch(last):
                owner = int(event[1]) % self._workers
                path = f"{before}/{event[2]}"
                scope = {**scope, "path": path, "raw_path": path.encode()}
        elif session_in == "body" and scope["method"] == "POST":
            owner = self._owner(scope["state"]["gradio_session"])
        elif session_in == "query":
            query = QueryParams(scope["query_string"])
            owner = self._owner(query.get("session_hash") or query.get("upload_id"))
        elif session_in == "path":
            owner = self._owner(last)
        if owner != self._slot:
            await self._forward(owner, scope, receive, send)
            return
        if session_in == "answer" and scope["method"] == "POST":
            send = _sender_that_adds_the_slot(send, self._slot)
        await self.gradio(scope, receive, send)

    def _owner(self, session: str | None) -> int:
        return self._slot if not session else zlib.crc32(session.encode()) % self._workers

    def _client(self, owner: int) -> httpx2.AsyncClient:
        """Return the client for one worker; it keeps its connections open."""
        if owner not in self._clients:
            transport = httpx2.AsyncHTTPTransport(
                uds=str(self._sockets / f"{owner}.sock"),
                verify=False,
                retries=_CONNECT_RETRIES,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            )
            self._clients[owner] = httpx2.AsyncClient(transport=transport, timeout=None)  # streams can be silent
        return self._clients[owner]

    async def _forward(self, owner: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the request to another worker, and its answer back, until either side disconnects."""
        address = f"http://worker{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP | _REPLACED]
        headers += _forwarded_headers(scope)
        try:
            request = self._client(owner).build_request(
                scope["method"], address, headers=headers, content=body_pieces(receive)
            )
            answer = await self._client(owner).send(request, stream=True)
        except httpx2.TransportError as error:
            raise WorkerGone(f"{_GONE} Reload the page, or call again.") from error
        async with aclosing(answer), anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            raw = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": raw})
            async for piece in _pieces(answer):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body"})


def _forwarded_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return headers that tell the other worker the client's address, the scheme and the request id.

    They replace the client's own headers of these names, which are not trusted.
    """
    client = scope.get("client")
    values = {b"x-forwarded-proto": scope["scheme"], b"x-request-id": scope["state"]["request_id"]}
    if client:
        values[b"x-forwarded-for"] = client[0]
    return [(name, value.encode()) for name, value in values.items()]


async def _pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield the answer as it arrives. If its worker dies, end with an event that Gradio's clients show as an error."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx2.TransportError:
        gone = {"msg": "unexpected_error", "success": False, "message": _GONE}
        yield f"data: {json.dumps(gone)}\n\n".encode()


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    await disconnected(receive)
    scope.cancel()


def _sender_that_adds_the_slot(send: Send, slot: int) -> Send:
    """Prefix the answer's `event_id` with the slot: when the client asks for the result, it sends only this id."""
    start: Message | None = None
    body = b""

    async def send_with_slot(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            start = message
            return
        body += message.get("body", b"")
        if message.get("more_body") or start is None:
            return
        with suppress(ValueError, KeyError, TypeError):
            answer = json.loads(body)
            body = json.dumps({**answer, "event_id": f"{slot}-{answer['event_id']}"}).encode()
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    return send_with_slot


def _marked(app: ASGIApp) -> ASGIApp:
    """Mark requests that another worker forwarded: that worker has counted them, and this one must answer them."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["from_worker"] = True
        await app(scope, receive, send)

    return answer


class _SocketServer(uvicorn.Server):
    """A second server in a worker's event loop, at a Unix socket. It leaves signals to the first server."""

    def __init__(self, app: FastAPI, *, slot: int, sockets: Path) -> None:
        self._own = sockets / f"{slot}-{os.getpid()}.sock"
        self._shared = sockets / f"{slot}.sock"
        super().__init__(
            uvicorn.Config(
                _marked(app),
                uds=str(self._own),
                lifespan="off",
                log_config=None,
                access_log=False,
                forwarded_allow_ips="*",  # only our workers can reach this socket
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then replace the link `SLOT.sock` of an earlier worker in one atomic step."""
        await super().startup(sockets)
        link = self._own.with_suffix(".link")
        link.symlink_to(self._own)
        link.replace(self._shared)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what other workers have forwarded; a page's stream never ends by itself."""
        with hanging_up(self, after_seconds=_LAST_ANSWERS_SECONDS):
            await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


def listen_for_other_workers(api: FastAPI, *, slot: int, sockets: Path) -> None:
    """While `api` serves, answer the requests that other workers forward to `sockets/SLOT.sock`."""

    @asynccontextmanager
    async def listening() -> AsyncIterator[None]:
        server = _SocketServer(api, slot=slot, sockets=sockets)
        task = asyncio.create_task(server.serve())
        while not server.started:  # a worker must not start before the others can reach it
            if task.done():
                await task
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            server.should_exit = True
            await task

    while_serving(api, listening)
