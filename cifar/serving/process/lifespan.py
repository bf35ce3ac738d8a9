"""Work in the background while the server runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from cifar.serving.process.metrics import LOOP_LATENESS

_WATCH_SECONDS = 0.05
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
    """Call `work` in a thread every `seconds` while the server runs, first `at_start`, or else after `seconds`. Its exceptions are logged."""

    async def repeat() -> None:
        if at_start:
            await _call(work)
        while True:
            await asyncio.sleep(seconds)
            await _call(work)

    _run_while_serving(api, repeat)


def watch_loop_while_serving(api: FastAPI) -> None:
    """Measure how late the event loop runs a timer, in the metric `cifar_event_loop_lateness_seconds`."""

    async def measure() -> None:
        while True:
            due = time.perf_counter() + _WATCH_SECONDS
            await asyncio.sleep(_WATCH_SECONDS)
            LOOP_LATENESS.observe(max(0.0, time.perf_counter() - due))

    _run_while_serving(api, measure)


def _run_while_serving(api: FastAPI, work: Callable[[], Coroutine[object, object, None]]) -> None:
    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()

    while_serving(api, running)


async def _call(work: Callable[[], object]) -> None:
    try:
        await asyncio.to_thread(work)
    except Exception:
        log.exception("background work failed")
