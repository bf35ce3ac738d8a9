"""The drift report: recent images and answers of each version, compared with the reference distribution in its manifest.

The measure is the population stability index, see `cifar.statistics`. A difference that chance explains does not count as drift.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from sqlalchemy import Engine, Select, select

from cifar.analytics.rows import read_columns
from cifar.errors import CifarError
from cifar.models.manifest import Bins, Reference
from cifar.models.registry import Registry
from cifar.records.tables import predictions
from cifar.statistics import bin_counts, stability_index, stability_index_by_chance

WINDOW_HOURS = 24.0
"""Default length of the window whose images count as recent."""
MIN_IMAGES = 500
"""Recent images of a version that are needed to measure its drift."""
_HOUR_SECONDS = 3600
WARN_PSI = 0.1
ALERT_PSI = 0.25
"""The two customary limits of the population stability index."""

Status = Literal["measured", "few", "no_reference"]
Level = Literal["none", "warn", "alert"]


@dataclass(frozen=True)
class FeatureDrift:
    """The drift of one feature. The lists have one entry per bin, in the same order."""

    feature: str
    psi: float
    chance: float
    """The index that is exceeded once in a hundred times without drift."""
    level: Level
    names: list[str]
    """Names of the bins."""
    then: list[int]
    """Images of the reference in each bin."""
    recent: list[int]


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
    """Measure the drift of each version that answered requests in the last `since_hours` (`WINDOW_HOURS`), in ascending order of versions.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the records' database does not answer.
    """
    now = time.time()
    since = now - (WINDOW_HOURS if since_hours is None else since_hours) * _HOUR_SECONDS
    with engine.connect() as connection:
        rows = read_columns(connection, _recent(registry.name, since, now))
    numbers = sorted({int(number) for number in rows["version"]})
    return [_version_drift(number, _reference(registry, number), rows) for number in numbers]


def _recent(model: str, since: float, until: float) -> Select[Any]:
    table = predictions.c
    columns = (table.version, table.label, table.in_distribution, table.score.label("confidence"))
    query = select(*columns, table.brightness, table.contrast)
    return query.where(table.model == model, table.at.between(since, until)).order_by(table.at.desc())


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


def drift(reference: Reference, recent: Mapping[str, np.ndarray]) -> list[FeatureDrift]:
    """Compare each feature of the recent images with the reference.

    `recent` has `label`, `in_distribution`, `confidence`, `brightness` and `contrast` of `n >= 1` images, each `(n,)`.
    """
    found = []
    for feature, names, then, now in _features(reference, recent):
        psi, chance = stability_index(then, now), stability_index_by_chance(then, now)
        found.append(FeatureDrift(feature, psi, chance, _level(psi, chance), names, then, now))
    return found


def _features(
    reference: Reference, recent: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, list[str], list[int], list[int]]]:
    """Yield each feature with the names of its bins, the counts in the reference, and the recent counts."""
    names = list(reference.labels)
    yield "labels", names, list(reference.labels.values()), [int((recent["label"] == name).sum()) for name in names]
    for feature in ("confidence", "brightness", "contrast"):
        bins: Bins = getattr(reference, feature)
        yield feature, _ranges(bins), bins.counts, bin_counts(recent[feature], bins.edges)
    scored = [value for value in recent["in_distribution"].tolist() if value is not None]
    if reference.in_distribution is not None and scored:
        then, now = reference.in_distribution, sum(scored)
        yield "in_distribution", ["yes", "no"], [then, reference.images - then], [now, len(scored) - now]


def _ranges(bins: Bins) -> list[str]:
    edges = [f"{edge:g}" for edge in bins.edges]
    between = [f"{low} - {high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *between, f">= {edges[-1]}"] if edges else ["all"]


def _level(psi: float, chance: float) -> Level:
    if psi <= chance or psi < WARN_PSI:
        return "none"
    return "alert" if psi >= ALERT_PSI else "warn"
