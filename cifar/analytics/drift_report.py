"""Drift of all versions that answered recently."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import Engine, Select, select

from cifar.analytics.drift import FeatureDrift, drift
from cifar.analytics.rows import columns
from cifar.errors import CifarError
from cifar.models.manifest import Reference
from cifar.models.registry import Registry
from cifar.records.tables import predictions
from cifar.settings import Settings

_HOUR_SECONDS = 3600

Status = Literal["measured", "few", "no_reference"]


@dataclass(frozen=True)
class VersionDrift:
    """One version's recent images beside its reference."""

    version: int
    status: Status
    """`few`: fewer than `drift_min_images`. `no_reference`: its manifest has none."""
    images: int
    reference_images: int | None
    features: list[FeatureDrift]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def drift_report(
    engine: Engine, registry: Registry, settings: Settings, *, since_hours: float | None = None
) -> list[VersionDrift]:
    """Measure each version that answered in the window, ascending.

    Args:
        engine: the database.
        registry: the versions, for their references.
        settings: window, limits and thresholds.
        since_hours: hours up to now; None for the setting.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    hours = settings.drift_window_hours if since_hours is None else since_hours
    with engine.connect() as connection:
        query = _recent(registry.name, time.time() - hours * _HOUR_SECONDS)
        rows = columns(connection, query, settings.max_report_rows)
    numbers = sorted({int(number) for number in rows["version"]})
    return [_measured(number, _reference(registry, number), rows, settings) for number in numbers]


def _recent(model: str, since: float) -> Select[Any]:
    table = predictions.c
    named = (table.version, table.label, table.in_distribution, table.score.label("confidence"))
    query = select(*named, table.brightness, table.contrast)
    return query.where(table.model == model, table.at >= since).order_by(table.at.desc())


def _reference(registry: Registry, number: int) -> Reference | None:
    try:
        return registry.get(number).manifest.reference
    except CifarError:  # it has answered, and has been removed since
        return None


def _measured(number: int, known: Reference | None, rows: dict[str, np.ndarray], settings: Settings) -> VersionDrift:
    chosen = rows["version"] == number
    count = int(chosen.sum())
    if known is None:
        return VersionDrift(number, "no_reference", count, None, [])
    if count < settings.drift_min_images:
        return VersionDrift(number, "few", count, known.images, [])
    recent = {name: column[chosen] for name, column in rows.items()}
    return VersionDrift(number, "measured", count, known.images, drift(known, recent, settings))
