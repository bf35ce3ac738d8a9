"""Refuses streams that do not exist or belong to another caller. Gradio would begin a stream for any id, and break it off."""

from __future__ import annotations

import gradio as gr
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.errors import RouteClosed
from cifar.serving.gradio.bounded import Owners
from cifar.serving.routes import rule_of

_STREAM_OF_SESSION = "/gradio_api/queue/data"


class KnownEvents:
    """Refuses streams of unknown events and sessions, and any use of another caller's session. It runs in the worker that holds the session."""

    def __init__(self, gradio: ASGIApp, page: gr.Blocks) -> None:
        self.gradio = gradio
        self._queue = page._queue  # noqa: SLF001 - there is no public way to it
        self._owners = Owners(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(scope):
            raise RouteClosed("There is no such call, or its result was fetched already. Call the function again.")
        await self.gradio(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"].rstrip("/")
        named_in, name = rule_of(path).session, path.rpartition("/")[2]
        if named_in in {"body", "answer"}:
            name = scope["state"].get("gradio_session") or ""
        elif named_in == "query":
            name = QueryParams(scope["query_string"]).get("session_hash", "")  # of two, the one that Gradio takes
        elif named_in not in {"path", "event"}:
            return True
        return self._owners.may_use(scope, name) and (scope["method"] != "GET" or self._exists(path, named_in, name))

    def _exists(self, path: str, named_in: str, name: str) -> bool:
        queue = self._queue
        if path == _STREAM_OF_SESSION:
            return name in queue.pending_messages_per_session
        return named_in != "event" or (
            name in queue.event_ids_to_events
            or name in queue.pending_messages_per_session
            or any(name in events for events in queue.pending_event_ids_session.values())
        )
