"""Gradio's sessions across several workers: each request of a session reaches the worker that holds it.

Gradio keeps a session's queue in one process, and names the session in the body (`/queue/join`, `/cancel`), the query
(`/queue/data`, uploads) or the path (`/heartbeat/HASH`, `/call/NAME/EVENT`). Whichever worker accepts a request looks
there. A session's worker is found from its hash alone, so nothing is shared between workers; the worker it does not
belong to passes the request on over that worker's Unix socket. Everything else is answered where it arrived.
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
from urllib.parse import parse_qs

import anyio
import httpx
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import WorkerGone
from cifar.serving.asgi import replay
from cifar.serving.process.lifespan import while_serving

_SESSION_IN_BODY = re.compile(r"/gradio_api/(queue/join|cancel)/?")
_SESSION_IN_QUERY = re.compile(r"/gradio_api/(queue/data|upload|upload_progress)/?")
_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([\w-]+)")
_CALL = re.compile(r"/gradio_api/call/(?:v2/)?\w+/?")
_EVENT = re.compile(r"(/gradio_api/call/(?:v2/)?\w+/)(\d+)-(\w+)")
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_SAID_ANEW = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-request-id"})
_GONE = "The worker that held this session has gone."
_CONNECT_RETRIES = 5
"""With httpx's waits of 0, 0.5, 1, 2 and 4 seconds: a worker that died is back by then."""


class SessionRouter:
    """An ASGI app around Gradio's that answers the sessions of this worker and passes on those of others."""

    def __init__(self, gradio: ASGIApp, *, slot: int, workers: int, sockets: Path) -> None:
        """Route for `gradio`.

        Args:
            gradio: the app to answer with.
            slot: this worker's number, from 0.
            workers: how many there are.
            sockets: the folder in which each worker listens, at `SLOT.sock`.
        """
        self.gradio = gradio
        self._slot = slot
        self._workers = workers
        self._sockets = sockets
        self._clients: dict[int, httpx.AsyncClient] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer here, or have the session's worker answer."""
        if scope["type"] != "http" or scope["state"].get("from_worker"):
            await self.gradio(scope, receive, send)
            return
        body: bytes | None = None
        owner = self._slot
        if event := _EVENT.fullmatch(scope["path"]):
            owner = int(event[2]) % self._workers
            scope = {**scope, "path": event[1] + event[3], "raw_path": (event[1] + event[3]).encode()}
        elif _SESSION_IN_BODY.fullmatch(scope["path"]):
            body = await Request(scope, receive).body()
            owner = self._owner(json.loads(body).get("session_hash"))
        else:
            owner = self._owner(_session_in_address(scope))
        if owner != self._slot:
            await self._forward(owner, scope, _stream(body, receive), receive, send)
            return
        if scope["method"] == "POST" and _CALL.fullmatch(scope["path"]):
            send = _sender_that_names_the_slot(send, self._slot)
        await self.gradio(scope, receive if body is None else replay(body, receive), send)

    def _owner(self, session: str | None) -> int:
        return self._slot if not session else zlib.crc32(session.encode()) % self._workers

    def _client(self, owner: int) -> httpx.AsyncClient:
        """A client that keeps its connections to one worker."""
        if owner not in self._clients:
            transport = httpx.AsyncHTTPTransport(
                uds=str(self._sockets / f"{owner}.sock"),
                verify=False,
                retries=_CONNECT_RETRIES,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            )
            self._clients[owner] = httpx.AsyncClient(transport=transport, timeout=None)  # noqa: S113 - streams are silent
        return self._clients[owner]

    async def _forward(
        self, owner: int, scope: Scope, content: AsyncIterator[bytes], receive: Receive, send: Send
    ) -> None:
        """Pass the request on and the answer back, as it comes, until either side leaves."""
        address = f"http://worker{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP | _SAID_ANEW]
        headers += _asker_headers(scope)
        try:
            request = self._client(owner).build_request(scope["method"], address, headers=headers, content=content)
            answer = await self._client(owner).send(request, stream=True)
        except httpx.TransportError as error:
            raise WorkerGone(f"{_GONE} Reload the page, or call again.") from error
        async with aclosing(answer), anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
            raw = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": raw})
            async for piece in _pieces(answer):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body"})


def _asker_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Who asks, for the other worker, which sees a socket of ours; a client's own words of it are left out."""
    client = scope.get("client")
    said = {b"x-forwarded-proto": scope["scheme"], b"x-request-id": scope["state"]["request_id"]}
    if client:
        said[b"x-forwarded-for"] = client[0]
    return [(name, value.encode()) for name, value in said.items()]


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The answer as it comes; when its worker dies, a last event that Gradio's clients read as the end, with a reason."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TransportError:
        gone = {"msg": "unexpected_error", "success": False, "message": _GONE}
        yield f"data: {json.dumps(gone)}\n\n".encode()


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _session_in_address(scope: Scope) -> str | None:
    if heartbeat := _HEARTBEAT.fullmatch(scope["path"]):
        return heartbeat[1]
    if _SESSION_IN_QUERY.fullmatch(scope["path"]):
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return next(iter(query.get("session_hash") or query.get("upload_id") or []), None)
    return None


def _sender_that_names_the_slot(send: Send, slot: int) -> Send:
    """Puts the slot before the `event_id` of an answer, for that is all the caller will name when they come back."""
    start: Message | None = None
    body = b""

    async def send_named(message: Message) -> None:
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

    return send_named


async def _stream(body: bytes | None, receive: Receive) -> AsyncIterator[bytes]:
    """The request's body: what was read already, or what is still to come."""
    if body is not None:
        yield body
        return
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        yield message.get("body", b"")
        more = message.get("more_body", False)


class _FromWorker:
    """Marks requests that another worker passed on: they have been counted, and are answered here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["from_worker"] = True
        await self.app(scope, receive, send)


class _SocketServer(uvicorn.Server):
    """A second server in a worker's loop, at a socket whose name says whose it is; signals are the first one's."""

    def __init__(self, app: FastAPI, *, slot: int, sockets: Path) -> None:
        self._own = sockets / f"{slot}-{os.getpid()}.sock"
        self._shared = sockets / f"{slot}.sock"
        super().__init__(
            uvicorn.Config(
                _FromWorker(app),
                uds=str(self._own),
                lifespan="off",
                log_config=None,
                access_log=False,
                forwarded_allow_ips="*",  # none but our workers come by this socket
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and only then take over the slot's name: in one step, whoever held it."""
        await super().startup(sockets)
        link = self._own.with_suffix(".link")
        link.symlink_to(self._own)
        link.replace(self._shared)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def listen_for_other_workers(api: FastAPI, *, slot: int, sockets: Path) -> None:
    """While `api` serves, answer requests that other workers pass on, at `sockets/SLOT.sock`."""

    @asynccontextmanager
    async def listening() -> AsyncIterator[None]:
        server = _SocketServer(api, slot=slot, sockets=sockets)
        task = asyncio.create_task(server.serve())
        while not server.started:  # a worker that cannot be reached by the others must not begin
            if task.done():
                await task
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            server.should_exit = True
            await task

    while_serving(api, listening)
