"""Joins the images that wait for one model.

A model that is free takes what waits, at once, up to its limit; while it computes, the next batch gathers. So nobody
waits for company, and the fuller the house, the larger the batches. It lives in the event loop: no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from cifar.models.engines import Infer
from cifar.serving.process.metrics import BATCH_SIZE, WAIT_SECONDS


class Answer(NamedTuple):
    """What the model says of one image."""

    row: np.ndarray
    """`float32`, a row of `Predictor.answers`."""
    seconds: float
    """Time in the model, of the whole batch."""


class _Waiting(NamedTuple):
    image: np.ndarray
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """One model's waiting room. Use it from one event loop."""

    def __init__(self, infer: Infer, *, largest: int, parallel: int = 1) -> None:
        """Wait for `infer`.

        Args:
            infer: see `cifar.models.engines`; called in threads of the batcher's own.
            largest: most images in one batch.
            parallel: how many batches may be computed at once.
        """
        self._infer = infer
        self._largest = largest
        self._free = parallel
        self._threads = ThreadPoolExecutor(parallel, "model")
        self._lines: dict[str, deque[_Waiting]] = {}

    def submit(self, image: np.ndarray, *, channel: str) -> asyncio.Future[Answer]:
        """Line up one image; cancelling the future leaves the line.

        Args:
            image: `(height, width, channels)` `uint8`, of the model's size.
            channel: whose it is; each route has a line of its own, and the lines take turns.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(channel, deque()).append(_Waiting(image, answer, time.perf_counter()))
        if self._free:
            self._start()
        return answer

    def _start(self) -> None:
        """Compute what waits, if anything does."""
        batch = self._next_batch()
        if not batch:
            return
        self._free -= 1
        images = np.stack([waiting.image for waiting in batch])
        job = asyncio.get_running_loop().run_in_executor(self._threads, self._timed, images)
        job.add_done_callback(partial(self._finish, batch))

    def _next_batch(self) -> list[_Waiting]:
        """Take one image of each line in turn; who has left takes no place."""
        batch: list[_Waiting] = []
        now = time.perf_counter()
        while self._lines and len(batch) < self._largest:
            channel = next(iter(self._lines))
            line = self._lines.pop(channel)
            waiting = line.popleft()
            if line:
                self._lines[channel] = line  # behind the others
            if not waiting.answer.done():
                batch.append(waiting)
                WAIT_SECONDS.labels(channel).observe(now - waiting.since)
        if batch:
            BATCH_SIZE.observe(len(batch))
        return batch

    def _timed(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        return self._infer(images), time.perf_counter() - started

    def _finish(self, batch: list[_Waiting], job: asyncio.Future[tuple[np.ndarray, float]]) -> None:
        self._free += 1
        self._start()  # first the model, then those who are done with it
        for position, waiting in enumerate(batch):
            if waiting.answer.done():
                continue
            if job.cancelled():
                waiting.answer.cancel()
            elif error := job.exception():
                waiting.answer.set_exception(error)
            else:
                rows, seconds = job.result()
                waiting.answer.set_result(Answer(rows[position], seconds))
