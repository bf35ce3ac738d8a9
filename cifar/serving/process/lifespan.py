"""What goes on beside the requests: begun when the server starts, ended when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI


def while_serving(api: FastAPI, beside: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Enter `beside()` after what was added before it, and leave it before that."""
    inner = api.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[object]:
        async with inner(app) as state, beside():
            yield state

    api.router.lifespan_context = lifespan  # type: ignore[assignment]


@asynccontextmanager
async def cancelled_in_the_end(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` meanwhile; it need not come to an end by itself."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
