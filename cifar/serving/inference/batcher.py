"""Adaptive batching: joins the images that wait for one model.

There is no batching delay. An idle model takes whatever is queued, up to its limit, and batches grow under load. A quick model
can also answer in the event loop. Everything here runs in the event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from cifar.models.engines import Infer
from cifar.serving.process.metrics import BATCH_SIZE, WAIT_SECONDS


class Answer(NamedTuple):
    """The model's output for one picture."""

    rows: np.ndarray
    """`(views, columns)` `float32`, rows of `Predictor.answers`."""
    seconds: float
    """Time that the model took for the whole batch."""

    @property
    def row(self) -> np.ndarray:
        """The answer to the image itself, which is the first view."""
        first: np.ndarray = self.rows[0]
        return first


class _Waiting(NamedTuple):
    views: np.ndarray
    answer: asyncio.Future[Answer]
    since: float


class Batcher:
    """The queue of images in front of one model. Use it from one event loop."""

    def __init__(self, infer: Infer, *, max_images: int, parallel: int = 1, max_in_loop: int = 0) -> None:
        """Make an empty queue.

        Args:
            infer: see `cifar.models.engines`; called in the batcher's own threads and, by `at_once`, in the event loop.
            max_images: largest batch. The views of one image stay together, even if they are more.
            parallel: number of batches that may be computed at the same time.
            max_in_loop: number of views that the model answers so quickly that a thread would cost more than it gains.
        """
        self._max_in_loop = max_in_loop
        self._infer = infer
        self._max_images = max_images
        self._idle = parallel
        self._threads = ThreadPoolExecutor(parallel, "model")
        self._queues: dict[str, deque[_Waiting]] = {}

    def at_once(self, views: np.ndarray, *, channel: str) -> Answer | None:
        """Answer one picture before returning, if the model is quick enough for the event loop; otherwise return None."""
        if len(views) > self._max_in_loop:
            return None
        rows, seconds = self._timed(views)
        WAIT_SECONDS.labels(channel).observe(0)
        BATCH_SIZE.observe(len(views))
        return Answer(rows, seconds)

    def submit(self, views: np.ndarray, *, channel: str) -> asyncio.Future[Answer]:
        """Queue one picture. Cancel the future to take it back.

        Args:
            views: the picture's views, which are answered in one batch: `(n, height, width, channels)` `uint8`, of the model's size.
            channel: the way in which the request came. Each channel has its own queue, and the queues take turns.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(channel, deque()).append(_Waiting(views, answer, time.perf_counter()))
        if self._idle:
            self._start()
        return answer

    def _start(self) -> None:
        """Compute the next batch, if images are waiting."""
        batch = self._next_batch()
        if not batch:
            return
        self._idle -= 1
        images = np.concatenate([waiting.views for waiting in batch])
        job = asyncio.get_running_loop().run_in_executor(self._threads, self._timed, images)
        job.add_done_callback(partial(self._finish, batch))

    def _next_batch(self) -> list[_Waiting]:
        """Take one image from each queue in turn, and skip those that were taken back."""
        batch: list[_Waiting] = []
        images = 0
        now = time.perf_counter()
        while self._queues:
            channel, queue = next(iter(self._queues.items()))
            if batch and images + len(queue[0].views) > self._max_images:
                break
            del self._queues[channel]
            waiting = queue.popleft()
            if queue:
                self._queues[channel] = queue  # now the last one
            if not waiting.answer.done():
                batch.append(waiting)
                images += len(waiting.views)
                WAIT_SECONDS.labels(channel).observe(now - waiting.since)
        if batch:
            BATCH_SIZE.observe(images)
        return batch

    def _timed(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        return self._infer(images), time.perf_counter() - started

    def _finish(self, batch: list[_Waiting], job: asyncio.Future[tuple[np.ndarray, float]]) -> None:
        self._idle += 1
        self._start()  # before the answers are handed out, so that the model is not idle meanwhile
        starts = accumulate((len(waiting.views) for waiting in batch), initial=0)
        for waiting, start in zip(batch, starts, strict=False):
            if waiting.answer.done():
                continue
            if job.cancelled():
                waiting.answer.cancel()
            elif error := job.exception():
                waiting.answer.set_exception(error)
            else:
                rows, seconds = job.result()
                waiting.answer.set_result(Answer(rows[start : start + len(waiting.views)], seconds))
