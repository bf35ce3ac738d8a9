"""Nothing is kept for ever: what is older than the settings allow goes, once a day, whichever process finds that it is time."""

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
_AT_ONCE = 1000
"""Rows in one statement."""


class Swept(NamedTuple):
    """How much went."""

    predictions: int
    comparisons: int
    images: int


def sweep(engine: Engine, settings: Settings) -> Swept:
    """Delete the records that are too old, feedback with its prediction, and kept images that nobody asked for since."""
    oldest = time.time() - settings.records_retention_days * _DAY_SECONDS
    predictions_gone, comparisons_gone = (_delete(engine, table, oldest) for table in (predictions, comparisons))
    old = [path for path, _, asked_for in kept_images(settings) if asked_for < oldest]
    for path in old:
        path.unlink(missing_ok=True)
    return Swept(predictions_gone, comparisons_gone, len(old))


def _delete(engine: Engine, table: Table, oldest: float) -> int:
    """Some rows at a time: a day's at once may take longer than a statement may, and would never go then."""
    (key,) = table.primary_key.columns
    some, count = select(key).where(table.c.at < oldest).limit(_AT_ONCE), 0
    while True:
        with engine.begin() as connection:
            gone = connection.execute(delete(table).where(key.in_(some))).rowcount
        count += gone
        if gone < _AT_ONCE:
            return count


def sweep_daily(engine: Engine, settings: Settings) -> None:
    """Sweep, if nobody on this host has within a day or is at it."""
    path = settings.records_folder / "swept"
    if not path.exists():
        path.touch()
        os.utime(path, (0, 0))
    if time.time() - path.stat().st_mtime < _DAY_SECONDS:
        return
    with path.open("a") as mark, suppress(BlockingIOError):
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep(engine, settings)
        os.utime(path)
