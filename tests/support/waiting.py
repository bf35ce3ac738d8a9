"""Wait for what another process or thread does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")


def until(happened: Callable[[], Result], what: object = "", seconds: float = 120) -> Result:
    """Return the first true result of `happened`. The time is long, because the tests share two cores.

    Args:
        happened: is called every 50 milliseconds.
        what: is expected, for the message of the failure. A function is called then, for the text of a log, for example.
        seconds: after these the test fails.
    """
    deadline = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)
    return result


async def until_async(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until `condition` returns something true, at most two minutes."""
    async with asyncio.timeout(120):
        while not await condition():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0.01)
