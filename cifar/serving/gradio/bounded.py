"""Limits on what Gradio stores for its callers: uploads, unread results and usage statistics. Binds sessions to their owners."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import gradio as gr
import orjson
from gradio import queueing, route_utils, routes, utils
from starlette.types import Scope

_MAX_TRACKED_UPLOADS = 1000
_MAX_OWNERS = 10_000
_MAX_UNREAD_BYTES = 32 * 1024**2
"""Memory for all unread results in one process. The result of a batch of 1,000 images takes 4 MB."""
_MAX_UNREAD_SESSIONS = 500
"""Sessions whose unread results one process keeps; Gradio's number, 2,000, makes garbage collections long."""
_BYTES_PER_JSON_BYTE = 4
"""Memory of a result as Python objects, for each byte of its JSON."""
_BYTES_PER_MESSAGE = 4096
"""Memory of a message without a result."""


class _RandomName:
    """Replaces the SHA-256 of an upload, which Gradio uses as the name of the upload's folder."""

    def update(self, _: bytes) -> None:
        """Ignore the content: from a folder named after it, anyone with the same photo could learn that another caller uploaded it."""

    def hexdigest(self) -> str:
        return secrets.token_hex(32)


class _Upload(route_utils.GradioUploadFile):  # type: ignore[misc] # Gradio has no types
    """An uploaded file in a folder whose name cannot be guessed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sha = _RandomName()

    async def seek(self, _: int) -> None:
        """Close the file, which is complete: Gradio only moves it. A form may have a thousand files, each with a descriptor."""
        await self.close()


class _Progress(route_utils.FileUploadProgress):  # type: ignore[misc] # Gradio has no types
    """The progress of the latest uploads. Gradio itself keeps the progress of every upload until a client asks for it."""

    def track(self, upload_id: str) -> None:
        super().track(upload_id)
        for entries in (self._statuses, self._signals):
            while len(entries) > _MAX_TRACKED_UPLOADS:
                del entries[next(iter(entries))]


def bound_uploads() -> None:
    """Store each upload in a folder with a random name, and forget the progress of old ones."""
    route_utils.GradioUploadFile = _Upload
    routes.file_upload_statuses = _Progress()


def leave_out_statistics() -> None:
    """Switch off the statistics that Gradio computes after every queued call. Call it before the page is created."""
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**12)


def leave_out_matplotlib() -> None:
    """Keep Gradio from importing matplotlib, for plots that no function here returns, inside the first call of each process.

    The import held the event loop for 0.3 seconds of processor time: for 1.7 seconds beside uploads that are being decoded.
    """
    utils.MatplotlibBackendMananger = nullcontext


class _Messages(asyncio.Queue[Any]):
    """The messages of a session that its stream has not read yet."""

    unread_bytes = 0
    """Memory of the unread messages of all sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.own_bytes = self.last_bytes = 0

    def _put(self, item: Any) -> None:
        output = getattr(item, "output", None)
        size = _BYTES_PER_MESSAGE
        if output:
            size += _BYTES_PER_JSON_BYTE * len(orjson.dumps(output, default=str))
        super()._put((item, size))  # asyncio's own subclasses override these two methods as well
        self.last_bytes = size
        self._count(size)

    def _get(self) -> Any:
        item, size = super()._get()
        self._count(-size)
        return item

    def _count(self, size: int) -> None:
        self.own_bytes += size
        _Messages.unread_bytes += size

    def __del__(self) -> None:
        self._count(-self.own_bytes)


def bound_results(page: gr.Blocks) -> None:
    """Limit the memory of unread results. Gradio keeps any number of them for each of 2,000 sessions.

    Over the limit, the session whose unread results take the most memory loses them, and its stream ends with an error. The message that
    has just been sent does not count, because a stream may be about to read it.
    """
    queueing.AsyncQueue = _Messages
    queue = page._queue  # noqa: SLF001 - there is no public way to it
    queue.pending_messages_per_session.max_size = _MAX_UNREAD_SESSIONS
    sessions, events, send = queue.pending_messages_per_session, queue.pending_event_ids_session, queue.send_message

    def send_within_limit(event: Any, message: Any) -> None:
        if event.session_hash not in sessions:  # it has lost its results
            return
        send(event, message)

        def unread_by(session: str) -> int:
            messages = sessions[session]
            return int(messages.own_bytes - (messages.last_bytes if session == event.session_hash else 0))

        while _Messages.unread_bytes > _MAX_UNREAD_BYTES and sessions:
            largest = max(sessions, key=unread_by)
            del sessions[largest]
            events.pop(largest, None)

    queue.send_message = send_within_limit


class Owners:
    """Binds the sessions and calls of a page to the signed-in callers who began them. Without sign-in there are no owners."""

    def __init__(self, page: gr.Blocks) -> None:
        self._queue = page._queue  # noqa: SLF001 - there is no public way to it
        self._owner_of: OrderedDict[str, str] = OrderedDict()
        self._push = self._queue.push
        self._queue.push = self._push_with_owner

    def may_use(self, scope: Scope, session: str) -> bool:
        """Return whether a request may use a session or call: its caller owns it, or it has no owner."""
        caller = _caller_of(scope)
        return not caller or self._owner_of.get(session, caller) == caller

    async def _push_with_owner(self, body: Any, request: Any, username: str | None) -> tuple[bool, Any, str]:
        """Queue a call, and make its caller the owner of the session and of the call."""
        scope = request.scope
        self._set_owner(scope, body.session_hash)
        accepted, event, state = await self._push(body=body, request=request, username=username)
        if accepted:
            self._set_owner(scope, event)
        self._forget_unread()
        return accepted, event, state

    def _set_owner(self, scope: Scope, name: str | None) -> None:
        caller = _caller_of(scope)
        if caller and name:
            self._owner_of[name] = caller
            self._owner_of.move_to_end(name)
            if len(self._owner_of) > _MAX_OWNERS:
                self._owner_of.popitem(last=False)

    def _forget_unread(self) -> None:
        """Drop the ids of calls whose unread results Gradio has dropped. Gradio itself keeps these ids for ever."""
        ids, messages = self._queue.pending_event_ids_session, self._queue.pending_messages_per_session
        if len(ids) > 2 * messages.max_size:
            for session in ids.keys() - messages.keys():
                del ids[session]


def _caller_of(scope: Scope) -> str:
    principal = scope["state"].get("principal")
    return principal.name if principal else ""
