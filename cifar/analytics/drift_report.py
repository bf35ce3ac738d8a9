"""The drift report: drift of each version that answered recently, from the records."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import Engine, Select, select

from cifar.analytics.drift import FeatureDrift, drift
from cifar.analytics.rows import read_columns
from cifar.errors import CifarError
from cifar.models.manifest import Reference
from cifar.models.registry import Registry
from cifar.records.tables import predictions

WINDOW_HOURS = 24.0
"""Default length of the window whose images count as recent."""
MIN_IMAGES = 500
"""Recent images of a version that are needed to measure its drift."""
_HOUR_SECONDS = 3600

Status = Literal["measured", "few", "no_reference"]


@dataclass(frozen=True)
class VersionDrift:
    version: int
    status: Status
    """`few`: fewer than `MIN_IMAGES` recent images. `no_reference`: its manifest holds no reference distribution."""
    images: int
    """Number of recent images."""
    reference_images: int | None
    features: list[FeatureDrift]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def drift_report(engine: Engine, registry: Registry, *, since_hours: float | None = None) -> list[VersionDrift]:
    """Measure the drift of each version that answered requests within the window, in ascending order of versions.

    Args:
        engine: the records' database.
        registry: the versions, whose manifests hold the reference distributions.
        since_hours: length of the window up to now, in hours. Default: `WINDOW_HOURS`.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the records' database does not answer.
    """
    since = time.time() - (WINDOW_HOURS if since_hours is None else since_hours) * _HOUR_SECONDS
    with engine.connect() as connection:
        rows = read_columns(connection, _recent(registry.name, since))
    numbers = sorted({int(number) for number in rows["version"]})
    return [_version_drift(number, _reference(registry, number), rows) for number in numbers]


def _recent(model: str, since: float) -> Select[Any]:
    table = predictions.c
    columns = (table.version, table.label, table.in_distribution, table.score.label("confidence"))
    query = select(*columns, table.brightness, table.contrast)
    return query.where(table.model == model, table.at >= since).order_by(table.at.desc())


def _reference(registry: Registry, number: int) -> Reference | None:
    try:
        return registry.get(number).manifest.reference
    except CifarError:  # the version answered requests and was removed later
        return None


def _version_drift(number: int, reference: Reference | None, rows: dict[str, np.ndarray]) -> VersionDrift:
    chosen = rows["version"] == number
    count = int(chosen.sum())
    if reference is None:
        return VersionDrift(number, "no_reference", count, None, [])
    if count < MIN_IMAGES:
        return VersionDrift(number, "few", count, reference.images, [])
    recent = {name: column[chosen] for name, column in rows.items()}
    return VersionDrift(number, "measured", count, reference.images, drift(reference, recent))
