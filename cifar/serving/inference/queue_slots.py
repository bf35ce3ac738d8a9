"""The bounded queue in front of the models: how many images may wait, with how many bytes, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cifar.errors import CallerLeft, Overloaded, WaitedTooLong
from cifar.serving.process.metrics import REFUSED
from cifar.serving.process.shares import Shares

Disconnected = Callable[[], Awaitable[object]] | None
"""Returns when the client has disconnected. None: the channel cannot tell."""


_WATCH_AFTER_SECONDS = 0.02
"""Most images are answered sooner, and need neither a time limit nor a task that watches the connection."""


class QueueSlots:
    """A limited number of queue slots for the images of all channels. Use it from one event loop."""

    def __init__(self, *, max_images: int, max_seconds: float, waiting_bytes: Shares) -> None:
        """Let at most `max_images` hold a slot, each for `max_seconds`, whose files take `waiting_bytes` together."""
        self._slots = Shares(max_images)
        self._max_seconds = max_seconds
        self._bytes = waiting_bytes

    @property
    def taken(self) -> int:
        return self._slots.taken

    @asynccontextmanager
    async def slot(
        self, channel: str, disconnected: Disconnected = None, *, caller: str = "", size_bytes: int = 0
    ) -> AsyncIterator[None]:
        """Hold a slot for a file while the block runs. The block is cancelled at the time limit, and when the client disconnects.

        Raises:
            Overloaded: no slot is free, or the waiting files have too many bytes, in all or of this caller.
            WaitedTooLong: the block did not end in time.
            CallerLeft: the client disconnected.
        """
        if not self._slots.take(caller):
            REFUSED.labels(channel, Overloaded.code).inc()
            raise Overloaded(f"{self._slots.in_use(caller)} images are waiting already. Try again in a moment.")
        if not self._bytes.take(caller, size_bytes):
            self._slots.give(caller)
            REFUSED.labels(channel, Overloaded.code).inc()
            raise Overloaded(
                f"Files of {self._bytes.in_use(caller, size_bytes):,} bytes are waiting already. Try again in a moment."
            )
        watch: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._max_seconds

        def start_watching() -> None:
            nonlocal watch
            limit.reschedule(deadline)
            if disconnected:
                watch = asyncio.create_task(_expire_when(disconnected, limit))

        try:
            async with asyncio.timeout(None) as limit:
                timer = loop.call_later(min(_WATCH_AFTER_SECONDS, self._max_seconds), start_watching)
                try:
                    yield
                finally:
                    timer.cancel()
        except TimeoutError as error:
            if watch and watch.done():
                raise CallerLeft("The client disconnected before it was answered.") from error
            REFUSED.labels(channel, WaitedTooLong.code).inc()
            raise WaitedTooLong(
                f"The image was not answered within {self._max_seconds:g} seconds. Try again later."
            ) from error
        finally:
            self._slots.give(caller)
            self._bytes.give(caller, size_bytes)
            if watch:
                watch.cancel()


async def _expire_when(disconnected: Callable[[], Awaitable[object]], limit: asyncio.Timeout) -> None:
    await disconnected()
    limit.reschedule(asyncio.get_running_loop().time())
