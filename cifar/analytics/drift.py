"""Drift of one version: recent images and answers compared with the reference distribution in the version's manifest.

The measure is the population stability index, see `cifar.statistics`. A difference that chance explains does not count as drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from cifar.models.manifest import Bins, Reference
from cifar.statistics import bin_counts, stability_index, stability_index_by_chance

WARN_PSI = 0.1
ALERT_PSI = 0.25
"""The two customary limits of the population stability index."""

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


def drift(reference: Reference, recent: Mapping[str, np.ndarray]) -> list[FeatureDrift]:
    """Compare each feature of the recent images with the reference.

    Args:
        reference: from the version's manifest.
        recent: `label`, `in_distribution`, `confidence`, `brightness` and `contrast` of `n >= 1` images, each `(n,)`.
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
