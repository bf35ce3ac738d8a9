"""Decoding within one budget of memory, which predictions, heat maps, batches and tensor calls share.

The memory that an image needs is estimated from its pixels and its format (`decoding_bytes`). Several threads decode images as long as
their sum is within the budget of the process. An image that exceeds this budget is decoded alone: one at a time in all workers of a host.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cifar.cpus import available_cpus
from cifar.errors import CifarError
from cifar.images.decode import decoding_bytes, open_image, open_picture, to_picture, to_views
from cifar.images.spec import ImageSpec, Views
from cifar.settings import Settings

Finish = Callable[[Image.Image], np.ndarray]


class Decoder:
    """Decodes image files in threads of its own. It can be used from any thread."""

    def __init__(self, settings: Settings, *, host_lock: Path | None = None) -> None:
        """Set the limits. The workers of a host lock the file `host_lock` to decode a large image. None: this is the only process."""
        self._max_pixels = settings.max_image_pixels
        self._max_bytes = self._free_bytes = settings.max_decoding_bytes
        self._freed = threading.Condition()
        self._threads = ThreadPoolExecutor(max(2, available_cpus() // settings.workers), "decode")
        self._alone_thread = ThreadPoolExecutor(1, "decode-alone")
        self._host_lock = host_lock.open("ab") if host_lock else None

    async def preprocess(self, payload: bytes, spec: ImageSpec, views: Views) -> np.ndarray:
        """Return what `cifar.images.decode.preprocess_views` returns."""
        opened = partial(open_image, payload, spec, max_pixels=self._max_pixels)
        return await self._run(opened, payload, partial(to_views, spec=spec, views=views))

    async def picture(self, payload: bytes, *, longest_side: int) -> np.ndarray:
        """Return what `cifar.images.decode.to_picture` returns."""
        opened = partial(open_picture, payload, longest_side=longest_side, max_pixels=self._max_pixels)
        return await self._run(opened, payload, partial(to_picture, longest_side=longest_side))

    def finish(self, box: list[Image.Image], payload: bytes, finish: Finish) -> np.ndarray:
        """Decode the opened image in `box`, which is the only reference to it, and wait for that. Not for the event loop."""
        if (pixels := self._if_ordinary(box[0], payload, finish)) is not None:
            return pixels
        return self._alone_thread.submit(self._alone, box, finish).result()

    async def _run(self, opened: Callable[[], Image.Image], payload: bytes, finish: Finish) -> np.ndarray:
        def begin() -> tuple[Image.Image, np.ndarray | None]:
            image = opened()
            return image, self._if_ordinary(image, payload, finish)

        loop = asyncio.get_running_loop()
        opened_image, pixels = await loop.run_in_executor(self._threads, begin)
        if pixels is None:
            box = [opened_image]
            del opened_image
            pixels = await loop.run_in_executor(self._alone_thread, self._alone, box, finish)
        return pixels

    def _if_ordinary(self, image: Image.Image, payload: bytes, finish: Finish) -> np.ndarray | None:
        """Decode an image as soon as the budget allows it; return None for one that exceeds the whole budget."""
        needed = decoding_bytes(image, payload)
        if needed > self._max_bytes:
            return None
        with self._freed:
            self._freed.wait_for(lambda: self._free_bytes >= needed)
            self._free_bytes -= needed
        try:
            return finish(image)
        finally:
            with self._freed:
                self._free_bytes += needed
                self._freed.notify_all()

    def _alone(self, box: list[Image.Image], finish: Finish) -> np.ndarray:
        """Decode the image in `box`, and leave nothing of it in memory when the lock is released, also if it fails."""
        with self._locked():
            try:
                return finish(box.pop())
            except CifarError as error:
                error.__cause__ = error.__context__ = None  # their frames refer to the image
                raise error.with_traceback(None) from None
            finally:
                return_freed_memory()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._host_lock is None:
            yield
            return
        fcntl.flock(self._host_lock, fcntl.LOCK_EX)  # the system frees it when the process dies
        try:
            yield
        finally:
            fcntl.flock(self._host_lock, fcntl.LOCK_UN)


def return_freed_memory() -> None:
    """Give freed memory back to the system, which glibc keeps otherwise: up to 13 bytes for each pixel of a WebP."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
