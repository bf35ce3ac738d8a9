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


def sweep(engine: Engine, settings: Settings) -> Swept:
    """Delete old predictions with their feedback, old comparisons, and images that were not uploaded again since."""
    oldest = time.time() - settings.records_retention_days * _DAY_SECONDS
    deleted_predictions, deleted_comparisons = (_delete(engine, table, oldest) for table in (predictions, comparisons))
    images = [path for path, _, used_at in kept_images(settings) if used_at < oldest]
    for path in images:
        path.unlink(missing_ok=True)
    return Swept(deleted_predictions, deleted_comparisons, len(images))


def _delete(engine: Engine, table: Table, oldest: float) -> int:
    """Delete in steps: one statement for all rows of a day could exceed the database's time limit, every day anew."""
    (key,) = table.primary_key.columns
    old, count = select(key).where(table.c.at < oldest).limit(_ROWS_PER_STATEMENT), 0
    while True:
        with engine.begin() as connection:
            deleted = connection.execute(delete(table).where(key.in_(old))).rowcount
        count += deleted
        if deleted < _ROWS_PER_STATEMENT:
            return count


def sweep_daily(engine: Engine, settings: Settings) -> None:
    """Sweep, unless a process of this host has done so within a day or is doing it."""
    path = settings.records_folder / "swept"
    if not path.exists():
        path.touch()
        os.utime(path, (0, 0))
    if time.time() - path.stat().st_mtime < _DAY_SECONDS:
        return
    with path.open("a") as mark, suppress(BlockingIOError):
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # without waiting: another process does the work
        sweep(engine, settings)
        os.utime(path)
