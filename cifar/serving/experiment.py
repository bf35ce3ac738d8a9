"""A/B report and drift from this process's records, for the page and the metrics."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cifar.errors import RecordsUnavailable
from cifar.experiment.reports import Report, ab_report
from cifar.experiment.watch import VersionDrift, drift_report
from cifar.registry import Registry
from cifar.serving.metrics import DRIFT_LEVEL, DRIFT_PSI
from cifar.settings import Settings

log = logging.getLogger(__name__)

_LEVELS = {"none": 0, "warn": 1, "alert": 2}


class Experiment:
    """Asks the database when it is asked; each takes up to a second, so use it from a thread."""

    def __init__(self, engine: Engine, registry: Registry, settings: Settings) -> None:
        self._engine = engine
        self._registry = registry
        self._settings = settings
        self._shown: set[tuple[int, str]] = set()

    def report(self) -> Report:
        """The A/B report of the settings.

        Raises:
            RecordsUnavailable: the database does not answer.
        """
        with _available():
            return ab_report(self._engine, self._settings)

    def drift(self, number: int) -> VersionDrift:
        """Drift of one version.

        Raises:
            RecordsUnavailable: the database does not answer.
        """
        found = [version for version in self._all() if version.version == number]
        if found:
            return found[0]
        known = self._registry.get(number).manifest.reference
        return VersionDrift(number, "few" if known else "no_reference", 0, known.images if known else None, [])

    def _all(self) -> list[VersionDrift]:
        with _available():
            return drift_report(self._engine, self._registry, self._settings)

    def measure(self) -> None:
        """Set the metrics. What can no longer be told is no number, and no alert."""
        told = {(version.version, one.feature): one for version in self._all() for one in version.features}
        for version, feature in self._shown - told.keys():
            DRIFT_PSI.labels(version, feature).set(math.nan)
            DRIFT_LEVEL.labels(version, feature).set(math.nan)
        for (version, feature), one in told.items():
            DRIFT_PSI.labels(version, feature).set(one.psi)
            DRIFT_LEVEL.labels(version, feature).set(_LEVELS[one.level])
        self._shown |= told.keys()

    def measure_while_serving(self, api: FastAPI) -> None:
        """Set the metrics now and then, in one worker of the host: all read the same database."""
        every, inner = self._settings.drift_refresh_seconds, api.router.lifespan_context
        if not every or self._settings.worker_slot:
            return

        async def measure_forever() -> None:
            while True:
                await asyncio.sleep(every)
                try:
                    await asyncio.to_thread(self.measure)
                except RecordsUnavailable as error:
                    log.warning("drift could not be measured: %s", error)
                except Exception:
                    log.exception("drift could not be measured")

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[object]:
            async with inner(app) as state:
                task = asyncio.create_task(measure_forever())
                try:
                    yield state
                finally:
                    task.cancel()

        api.router.lifespan_context = lifespan  # type: ignore[assignment]


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise RecordsUnavailable(
            f"The records cannot be read now ({type(error).__name__}). Try again later."
        ) from error
