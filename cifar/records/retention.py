"""Retention: records and images that are older than the setting `records_retention_days` are deleted once a day."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from typing import NamedTuple

from sqlalchemy import Engine, Table, delete, select

from cifar.records.images import kept_images
from cifar.records.tables import comparisons, predictions
from cifar.settings import Settings

_DAY_SECONDS = 24 * 3600
_ROWS_PER_STATEMENT = 1000


class Swept(NamedTuple):
    """The numbers of deleted records and images."""

    predictions: int
    comparisons: int
    images: int

    @property
    def is_last(self) -> bool:
        """True if no old rows are left."""
        return max(self.predictions, self.comparisons) < _ROWS_PER_STATEMENT


def sweep(engine: Engine, settings: Settings) -> Swept:
    """Delete old predictions with their feedback, old comparisons, and images that were not uploaded again since."""
    total = Swept(0, 0, 0)
    while True:
        swept = _sweep_step(engine, settings)
        total = Swept(*(sum(both) for both in zip(total, swept, strict=True)))
        if swept.is_last:
            return total


def _sweep_step(engine: Engine, settings: Settings) -> Swept:
    """Delete at most `_ROWS_PER_STATEMENT` rows of each table: more could exceed the database's time limit, every day anew.

    Images are deleted with the last rows.
    """
    oldest = time.time() - settings.records_retention_days * _DAY_SECONDS
    swept = Swept(_delete(engine, predictions, oldest), _delete(engine, comparisons, oldest), 0)
    if not swept.is_last:
        return swept
    images = [path for path, _, used_at in kept_images(settings) if used_at < oldest]
    for path in images:
        path.unlink(missing_ok=True)
    return swept._replace(images=len(images))


def _delete(engine: Engine, table: Table, oldest: float) -> int:
    (key,) = table.primary_key.columns
    old = select(key).where(table.c.at < oldest).limit(_ROWS_PER_STATEMENT)
    with engine.begin() as connection:
        return connection.execute(delete(table).where(key.in_(old))).rowcount


def sweep_daily(engine: Engine, settings: Settings) -> None:
    """Make one step of the day's sweep, unless a process of this host has finished it within a day or is doing a step.

    The steps of a long sweep are made in as many calls, between which journals are moved and the server can stop.
    """
    path = settings.records_folder / "swept"
    if not path.exists():
        path.touch()
        os.utime(path, (0, 0))
    if 0 <= time.time() - path.stat().st_mtime < _DAY_SECONDS:  # below 0: the clock was wrong when it was made
        return
    with path.open("a") as mark, suppress(BlockingIOError):
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # without waiting: another process does the work
        if _sweep_step(engine, settings).is_last:
            os.utime(path)
