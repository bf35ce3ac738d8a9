"""The A/B report and drift, computed from the records for the page and for the metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cifar.analytics.ab import ABReport, ab_report
from cifar.analytics.drift_report import VersionDrift, drift_report
from cifar.errors import RecordsUnavailable
from cifar.models.registry import Registry
from cifar.serving.process.lifespan import repeat_while_serving
from cifar.serving.process.metrics import DRIFT_LEVEL, DRIFT_PSI
from cifar.settings import Settings

log = logging.getLogger(__name__)

CACHE_SECONDS = 5.0
"""Shortest time for which a result is remembered."""
_TIMES_AS_LONG = 20
"""A result is remembered for this many times what its query took, so that queries take at most a twentieth of one core."""
DRIFT_SECONDS = 300.0
"""Interval at which one worker of each host updates the drift metrics."""
_LEVELS = {"none": 0, "warn": 1, "alert": 2}
T = TypeVar("T")


class Analytics:
    """Queries the records. A query takes up to a second, so call it in a thread. One query serves all callers that ask while it runs and shortly after."""

    def __init__(
        self, engine: Engine, registry: Registry, settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._registry = registry
        self._settings = settings
        self._cache: dict[str, tuple[float, Any]] = {}
        """Results by name, each with the time until which it counts."""
        self._lock = Lock()
        self._measured: set[tuple[int, str]] = set()

    def report(self) -> ABReport:
        """Return the A/B report.

        Raises:
            RecordsUnavailable: the database does not answer.
        """
        return self._cached("report", lambda: ab_report(self._engine, self._settings))

    def drift(self, number: int) -> VersionDrift:
        """Return the drift of one version.

        Raises:
            RecordsUnavailable: the database does not answer.
        """
        found = [version for version in self._cached("drift", self._drift) if version.version == number]
        if found:
            return found[0]
        reference = self._registry.get(number).manifest.reference
        if reference is None:
            return VersionDrift(number, "no_reference", 0, None, [])
        return VersionDrift(number, "few", 0, reference.images, [])

    def _drift(self) -> list[VersionDrift]:
        return drift_report(self._engine, self._registry)

    def _cached(self, name: str, query: Callable[[], T]) -> T:
        """Return a cached result, or run the query. Concurrent callers wait for one query.

        A failure is cached too, for the shortest time. Otherwise each waiting caller would run into the same time-out, one after the other.
        """
        with self._lock:
            until, result = self._cache.get(name, (0.0, None))
            started = self._clock()
            if started >= until:
                try:
                    result = query()
                except SQLAlchemyError as error:
                    log.warning("the records cannot be read: %s", type(error).__name__)
                    result = None
                ended = self._clock()
                seconds = CACHE_SECONDS if result is None else max(CACHE_SECONDS, _TIMES_AS_LONG * (ended - started))
                self._cache[name] = ended + seconds, result
        if result is None:
            raise RecordsUnavailable("The records cannot be read now. Try again later.")
        found: T = result
        return found

    def measure(self) -> None:
        """Update the drift metrics. A feature that can no longer be measured becomes NaN, which raises no alert."""
        try:
            report = self._cached("drift", self._drift)
        except RecordsUnavailable:
            return  # logged already
        found = {(version.version, feature.feature): feature for version in report for feature in version.features}
        for labels in self._measured - found.keys():
            DRIFT_PSI.labels(*labels).set(math.nan)
            DRIFT_LEVEL.labels(*labels).set(math.nan)
        for labels, feature in found.items():
            DRIFT_PSI.labels(*labels).set(feature.psi)
            DRIFT_LEVEL.labels(*labels).set(_LEVELS[feature.level])
        self._measured |= found.keys()

    def measure_while_serving(self, api: FastAPI) -> None:
        """Update the drift metrics regularly. One worker of a host suffices, since all read the same database."""
        repeat_while_serving(api, self.measure, seconds=DRIFT_SECONDS)
