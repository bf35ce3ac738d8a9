"""Many files at once: a table with one row for each image, whatever becomes of the others.

A few images are under way at any time, so a batch of a thousand needs no more memory than a batch of ten, and other callers'
images take turns with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from cifar.errors import (
    OUR_FAULT,
    BadParameter,
    CifarError,
    MissingImage,
    NotReady,
    Overloaded,
    VersionNotFound,
    VersionUnusable,
    WaitedTooLong,
)
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.archives import Entry, Upload, entries_of
from cifar.serving.inference.classify import Classification, Classifier
from cifar.serving.process.metrics import REFUSED
from cifar.settings import Settings

log = logging.getLogger(__name__)

_UNDER_WAY = 8
_PATIENCE = 5
"""How often an image is offered again that found no place."""
_OF_THE_CALL = (BadParameter, VersionNotFound, VersionUnusable, NotReady)
"""Errors that every row would have."""
Ask = Callable[[bytes], Awaitable[Classification]]
COLUMNS = ("name", "label", "score", "top_k", "in_distribution", "ood_score", "code", "error")


@dataclass(frozen=True)
class Row:
    """What became of one file: a classification, or an error."""

    name: str
    answer: Classification | None = None
    error: CifarError | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as every API gives it: `COLUMNS`, null where there is nothing to say."""
        cells: dict[str, Any] = dict.fromkeys(COLUMNS)
        cells["name"] = self.name
        if self.answer:
            answer = self.answer.as_json()
            cells |= {**answer["top_k"][0], **{key: answer[key] for key in ("top_k", "in_distribution", "ood_score")}}
        if self.error:
            cells |= {"code": self.error.code, "error": str(self.error)}
        return cells


class Batch:
    """The files of one call, while it lasts."""

    def __init__(self, classifier: Classifier, entries: list[Entry]) -> None:
        self._classifier = classifier
        self._entries = entries

    def __len__(self) -> int:
        """How many rows there will be."""
        return len(self._entries)

    async def rows(
        self, *, requester: Requester | None = None, top_k: object = None, version: object = None
    ) -> AsyncIterator[Row]:
        """A row for each file, in the files' order, as they come. Whoever stops asking stops the work.

        Args:
            requester: as for `Classifier.classify`.
            top_k: the same.
            version: the same.

        Raises:
            BadParameter, VersionNotFound, VersionUnusable, NotReady: the call is wrong, or comes too early; no row says so.
        """
        ask = partial(self._classifier.classify, channel="batch", requester=requester, top_k=top_k, version=version)
        under_way: deque[asyncio.Task[Row]] = deque()
        try:
            for entry in self._entries:
                under_way.append(asyncio.create_task(self._row(entry, ask)))
                if len(under_way) == _UNDER_WAY:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _row(self, entry: Entry, ask: Ask) -> Row:
        try:
            payload = await asyncio.to_thread(entry.read)
            return Row(entry.name, await _patiently(payload, ask))
        except _OF_THE_CALL:
            raise
        except CifarError as error:
            return Row(entry.name, error=error)
        except Exception:
            log.exception("a file of a batch failed")
            return Row(entry.name, error=CifarError(OUR_FAULT))


async def _patiently(payload: bytes, ask: Ask) -> Classification:
    """The classification. A batch has time: it waits where a single image would be refused."""
    for attempt in range(_PATIENCE):
        try:
            return await ask(payload)
        except WaitedTooLong:
            raise
        except Overloaded as error:
            if attempt == _PATIENCE - 1:
                raise
            await asyncio.sleep(error.retry_after_seconds or 1)
    raise AssertionError  # the last attempt has returned or raised


class Batches:
    """Opens batches, so many at once. Use it from one event loop."""

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        self._classifier = classifier
        self._settings = settings
        self._under_way = 0

    @asynccontextmanager
    async def open(self, uploads: Sequence[Upload]) -> AsyncIterator[Batch]:
        """List what came, and hold the archives open for as long as the context lasts.

        Raises:
            MissingImage: no file came, or archives without any.
            BatchTooLarge: see `entries_of`.
            Overloaded: as many batches are under way as `max_batch_calls` allows.
        """
        most = self._settings.max_batch_calls
        if self._under_way >= most:
            REFUSED.labels("batch", Overloaded.code).inc()
            raise Overloaded(f"{most} batches are under way already. Try again in a moment.")
        self._under_way += 1
        try:
            with ExitStack() as stack:
                entries = await asyncio.to_thread(entries_of, uploads, self._settings, stack)
                if not entries:
                    raise MissingImage("No image came. Send image files, or a zip of them.")
                yield Batch(self._classifier, entries)
        finally:
            self._under_way -= 1


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many images each label was given, the most frequent first; errors are under the empty label."""
    labels = [row.answer.prediction.top_k[0][0] if row.answer else "" for row in rows]
    return {
        label: labels.count(label) for label in sorted(set(labels), key=lambda label: (-labels.count(label), label))
    }
