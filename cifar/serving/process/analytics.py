"""A/B report and drift from this process's records, for the page and the metrics."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from cachetools import TTLCache
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cifar.analytics.ab import ABReport, ab_report
from cifar.analytics.drift_report import VersionDrift, drift_report
from cifar.errors import RecordsUnavailable
from cifar.models.registry import Registry
from cifar.serving.process.lifespan import cancelled_in_the_end, while_serving
from cifar.serving.process.metrics import DRIFT_LEVEL, DRIFT_PSI
from cifar.settings import Settings

log = logging.getLogger(__name__)

_KEPT_SECONDS = 5
DRIFT_SECONDS = 300.0
"""Interval at which one worker of each host updates the drift metrics."""
_UNASKED: Any = object()
_LEVELS = {"none": 0, "warn": 1, "alert": 2}
Told = TypeVar("Told")


class Analytics:
    """Asks the database, from a thread: that takes up to a second, so all who ask within a few share one answer."""

    def __init__(self, engine: Engine, registry: Registry, settings: Settings) -> None:
        self._engine = engine
        self._registry = registry
        self._settings = settings
        self._kept: TTLCache[str, Any] = TTLCache(2, _KEPT_SECONDS)
        self._asking = Lock()
        self._shown: set[tuple[int, str]] = set()

    def report(self) -> ABReport:
        """The A/B report of the settings.

        Raises:
            RecordsUnavailable: the database does not answer.
        """
        return self._asked("report", lambda: ab_report(self._engine, self._settings))

    def drift(self, number: int) -> VersionDrift:
        """Drift of one version.

        Raises:
            RecordsUnavailable: the database does not answer.
        """
        found = [version for version in self._asked("drift", self._drift) if version.version == number]
        if found:
            return found[0]
        known = self._registry.get(number).manifest.reference
        return VersionDrift(number, "few" if known else "no_reference", 0, known.images if known else None, [])

    def _drift(self) -> list[VersionDrift]:
        return drift_report(self._engine, self._registry)

    def _asked(self, name: str, ask: Callable[[], Told]) -> Told:
        """What was told a moment ago, or what the database says now; it is asked by one at a time.

        That it did not answer is remembered as long: else each who asks would wait in turn for it not to answer again.
        """
        with self._asking:
            told: Told | None = self._kept.get(name, _UNASKED)
            if told is _UNASKED:
                try:
                    told = ask()
                except SQLAlchemyError as error:
                    log.warning("the records cannot be read: %s", type(error).__name__)
                    told = None
                self._kept[name] = told
        if told is None:
            raise RecordsUnavailable("The records cannot be read now. Try again later.")
        return told

    def measure(self) -> None:
        """Set the metrics. What can no longer be told is no number, and no alert."""
        told = {(version.version, one.feature): one for version in self._drift() for one in version.features}
        for version, feature in self._shown - told.keys():
            DRIFT_PSI.labels(version, feature).set(math.nan)
            DRIFT_LEVEL.labels(version, feature).set(math.nan)
        for (version, feature), one in told.items():
            DRIFT_PSI.labels(version, feature).set(one.psi)
            DRIFT_LEVEL.labels(version, feature).set(_LEVELS[one.level])
        self._shown |= told.keys()

    def measure_while_serving(self, api: FastAPI) -> None:
        """Set the metrics now and then, in one worker of the host: all read the same database."""

        async def measure_forever() -> None:
            while True:
                await asyncio.sleep(DRIFT_SECONDS)
                try:
                    await asyncio.to_thread(self.measure)
                except SQLAlchemyError as error:
                    log.warning("drift could not be measured: %s", type(error).__name__)
                except Exception:
                    log.exception("drift could not be measured")

        while_serving(api, lambda: cancelled_in_the_end(measure_forever()))
