"""Work in the background while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

log = logging.getLogger(__name__)


def while_serving(api: FastAPI, context: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Enter a context when the server starts and exit it when the server stops.

    Contexts are entered in the order in which they were added, and exited in reverse.
    """
    inner = api.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[object]:
        async with inner(app) as state, context():
            yield state

    api.router.lifespan_context = lifespan  # type: ignore[assignment]


def repeat_while_serving(api: FastAPI, work: Callable[[], object], *, seconds: float, at_start: bool = False) -> None:
    """Call `work` in a thread every `seconds` while the server runs. Its exceptions are logged.

    Args:
        api: the app that is served.
        work: the function to call.
        seconds: time between two calls.
        at_start: make the first call at the start, not `seconds` later.
    """

    async def repeat() -> None:
        if at_start:
            await _call(work)
        while True:
            await asyncio.sleep(seconds)
            await _call(work)

    @asynccontextmanager
    async def repeating() -> AsyncIterator[None]:
        task = asyncio.create_task(repeat())
        try:
            yield
        finally:
            task.cancel()

    while_serving(api, repeating)


async def _call(work: Callable[[], object]) -> None:
    try:
        await asyncio.to_thread(work)
    except Exception:
        log.exception("background work failed")
