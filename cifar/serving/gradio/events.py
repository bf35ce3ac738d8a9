"""Streams of events that exist: Gradio would begin a stream for any id, and break it off."""

from __future__ import annotations

from urllib.parse import parse_qs

import gradio as gr
from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.errors import RouteClosed
from cifar.serving.routes import rule_of

_STREAM_OF_SESSION = "/gradio_api/queue/data"


class KnownEvents:
    """Refuses streams of unknown events and sessions. It stands in the worker that would hold them."""

    def __init__(self, gradio: ASGIApp, page: gr.Blocks) -> None:
        self.gradio = gradio
        self._queue = page._queue  # noqa: SLF001 - there is no public way to it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            RouteClosed: it asks for a stream that does not exist.
        """
        if scope["type"] == "http" and scope["method"] == "GET" and not self._exists(scope):
            raise RouteClosed("There is no such call, or its result was fetched already. Call the function again.")
        await self.gradio(scope, receive, send)

    def _exists(self, scope: Scope) -> bool:
        path, queue = scope["path"].rstrip("/"), self._queue
        if path == _STREAM_OF_SESSION:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = next(iter(query.get("session_hash", [])), "")
            return session in queue.pending_messages_per_session
        if rule_of(path).session != "event":
            return True
        event = path.rpartition("/")[2]
        return (
            event in queue.event_ids_to_events
            or event in queue.pending_messages_per_session
            or any(event in events for events in queue.pending_event_ids_session.values())
        )
