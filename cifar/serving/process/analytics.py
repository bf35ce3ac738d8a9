"""The A/B report and drift, computed from the records for the page and for the metrics."""

from __future__ import annotations

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
from cifar.serving.process.lifespan import repeat_while_serving
from cifar.serving.process.metrics import DRIFT_LEVEL, DRIFT_PSI
from cifar.settings import Settings

log = logging.getLogger(__name__)

CACHE_SECONDS = 5
"""Age up to which a cached result is returned."""
DRIFT_SECONDS = 300.0
"""Interval at which one worker of each host updates the drift metrics."""
_MISSING: Any = object()
_LEVELS = {"none": 0, "warn": 1, "alert": 2}
T = TypeVar("T")


class Analytics:
    """Queries the records. A query takes up to a second, so call it in a thread. Results are cached for `CACHE_SECONDS`."""

    def __init__(self, engine: Engine, registry: Registry, settings: Settings) -> None:
        self._engine = engine
        self._registry = registry
        self._settings = settings
        self._cache: TTLCache[str, Any] = TTLCache(2, CACHE_SECONDS)
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

        A failure is cached too. Otherwise each waiting caller would run into the same time-out, one after the other.
        """
        with self._lock:
            result: T | None = self._cache.get(name, _MISSING)
            if result is _MISSING:
                try:
                    result = query()
                except SQLAlchemyError as error:
                    log.warning("the records cannot be read: %s", type(error).__name__)
                    result = None
                self._cache[name] = result
        if result is None:
            raise RecordsUnavailable("The records cannot be read now. Try again later.")
        return result

    def measure(self) -> None:
        """Update the drift metrics. A feature that can no longer be measured becomes NaN, which raises no alert."""
        try:
            report = self._drift()
        except SQLAlchemyError as error:
            log.warning("drift cannot be measured: %s", type(error).__name__)
            return
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
