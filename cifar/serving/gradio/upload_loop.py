"""Gradio's handling of uploads, in an event loop of its own.

When a form is complete, Gradio makes a folder and renames a file for each of up to a thousand files, and awaits nothing between
them. In the server's loop, this would delay the requests of all others; on a slow disk by more than a tenth of a second.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from functools import cache
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from cifar.serving.gradio.uploads import UPLOAD_PATH

_PATHS = {UPLOAD_PATH, f"{UPLOAD_PATH}_progress"}
"""An upload tells its progress by an `asyncio.Event`, so both run in the same loop."""


class UploadLoop:
    """An ASGI app around Gradio's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio answer: an upload in the loop for uploads, any other request in the server's loop."""
        if scope["type"] != "http" or scope["path"].rstrip("/") not in _PATHS:
            await self.app(scope, receive, send)
            return
        here = asyncio.get_running_loop()
        await _in(_uploads(), self.app(scope, lambda: _in(here, receive()), lambda message: _in(here, send(message))))


@cache
def _uploads() -> asyncio.AbstractEventLoop:
    """Start the loop when this process gets its first upload. It runs as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="uploads", daemon=True).start()
    return loop


def _in(loop: asyncio.AbstractEventLoop, work: Awaitable[Any]) -> asyncio.Future[Any]:
    """Run `work` in `loop`, which is another thread's. To cancel the future in this loop cancels the work."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(work), loop))


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work
