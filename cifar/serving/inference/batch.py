"""Classification of many files in one call: a table with one row for each image, also for those that fail.

Only a few images are processed at a time, so a batch of a thousand needs no more memory than a batch of ten, and the images of other
requests take turns with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from cifar.errors import (
    INTERNAL_ERROR,
    BadParameter,
    CifarError,
    MissingImage,
    NotReady,
    Overloaded,
    VersionNotFound,
    VersionUnusable,
    WaitedTooLong,
)
from cifar.records.values import NONE_LABEL
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.archives import Entry, Upload, entries_of
from cifar.serving.inference.classify import Classification
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.process.metrics import REFUSED
from cifar.serving.process.shares import Shares
from cifar.settings import Settings

log = logging.getLogger(__name__)

MAX_BATCHES = 4
"""Batches in progress at the same time in one process. Further ones are refused."""
_CONCURRENT_IMAGES = 8
_LARGE_BYTES = 1024**2
_CONCURRENT_LARGE_FILES = 4
"""Files of more than a megabyte that all batches together hold in memory."""
_ATTEMPTS = 5
"""Attempts to get a queue slot for an image."""
_CALL_ERRORS = (BadParameter, VersionNotFound, VersionUnusable, NotReady)
"""Errors of the whole call: every row would have the same one."""

Classify = Callable[[bytes], Awaitable[Classification]]


@dataclass(frozen=True)
class Row:
    """The result for one file: a classification or an error."""

    name: str
    answer: Classification | None = None
    error: CifarError | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row in the form that all APIs share. Every row has all keys."""
        answer = self.answer.as_json() if self.answer else None
        return {
            "name": self.name,
            "label": answer and answer["top_k"][0]["label"],
            "score": answer and answer["top_k"][0]["score"],
            "top_k": answer and answer["top_k"],
            "grade": answer and answer["grade"],
            "in_distribution": answer and answer["in_distribution"],
            "ood_score": answer and answer["ood_score"],
            "code": self.error and self.error.code,
            "error": self.error and str(self.error),
        }


class Batch:
    """The files of one call."""

    def __init__(self, classifier: RecordedClassifier, entries: list[Entry], large_files: asyncio.Semaphore) -> None:
        self.entries = entries
        self._classifier = classifier
        self._large_files = large_files

    async def rows(
        self,
        *,
        requester: Requester | None = None,
        top_k: int | None = None,
        version: int | None = None,
        views: object = None,
    ) -> AsyncIterator[Row]:
        """Yield a row for each file, in the order of the files. Closing the iterator cancels the remaining work.

        For the arguments see `RecordedClassifier.classify`.

        Raises:
            BadParameter, VersionNotFound, VersionUnusable, NotReady: the call itself is wrong or too early.
        """
        classify = partial(
            self._classifier.classify, channel="batch", requester=requester, top_k=top_k, version=version, views=views
        )
        tasks: deque[asyncio.Task[Row]] = deque()
        try:
            for entry in self.entries:
                tasks.append(asyncio.create_task(self._row(entry, classify)))
                if len(tasks) == _CONCURRENT_IMAGES:
                    yield await tasks.popleft()
            while tasks:
                yield await tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, entry: Entry, classify: Classify) -> Row:
        try:
            async with self._large_files if entry.size_bytes > _LARGE_BYTES else nullcontext():
                payload = await asyncio.to_thread(entry.read)
                return Row(entry.name, await _with_retries(payload, classify))
        except _CALL_ERRORS:
            raise
        except CifarError as error:
            error.__cause__ = error.__context__ = None  # their frames hold the file as long as the table lives
            return Row(entry.name, error=error.with_traceback(None))
        except Exception:
            log.exception("a file of a batch failed")
            return Row(entry.name, error=CifarError(INTERNAL_ERROR))


async def _with_retries(payload: bytes, classify: Classify) -> Classification:
    """Classify an image. A batch waits for a queue slot where a single image would be refused."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await classify(payload)
        except WaitedTooLong:
            raise
        except Overloaded as error:
            await asyncio.sleep(error.retry_after_seconds or 1)
    return await classify(payload)


class Batches:
    """Opens a limited number of batches. Use it from one event loop."""

    def __init__(self, classifier: RecordedClassifier, settings: Settings, *, max_batches: int = MAX_BATCHES) -> None:
        self._classifier = classifier
        self._settings = settings
        self._places = Shares(max_batches)
        self._large_files = asyncio.Semaphore(_CONCURRENT_LARGE_FILES)

    @property
    def open_batches(self) -> int:
        return self._places.taken

    @asynccontextmanager
    async def open(self, uploads: Sequence[Upload], caller: str = "") -> AsyncIterator[Batch]:
        """List the files of a call. Archives among them stay open until the context ends. For the `caller` see `Shares.take`.

        Raises:
            MissingImage: there is no file, or there are only archives without files.
            BatchTooLarge: see `entries_of`.
            Overloaded: too many batches are in progress, in all or of this caller.
        """
        if not self._places.take(caller):
            REFUSED.labels("batch", Overloaded.code).inc()
            raise Overloaded(f"{self._places.in_use(caller)} batches are in progress already. Try again in a moment.")
        try:
            with ExitStack() as stack:
                entries = await asyncio.to_thread(entries_of, uploads, self._settings, stack)
                if not entries:
                    raise MissingImage("No image came. Send image files, or a zip of them.")
                yield Batch(self._classifier, entries, self._large_files)
        finally:
            self._places.give(caller)


def count_by_label(rows: Iterable[Row]) -> dict[str, int]:
    """Return the number of images by answer, the most frequent one first: see `_counted_as`."""
    counts = Counter(_counted_as(row) for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _counted_as(row: Row) -> str:
    """Return the predicted label; `none` for an answer of that grade, and the empty label for an error."""
    if not row.answer:
        return ""
    prediction = row.answer.prediction
    return NONE_LABEL if prediction.grade == "none" else prediction.top_k[0][0]
