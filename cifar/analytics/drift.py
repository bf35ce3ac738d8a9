"""Whether photos and answers are still what they were: recent ones beside those that a version's manifest tells of.

The measure is the population stability index, a sum over bins of (share - share then) x log(share / share then). Without any drift
it is about (1/n + 1/n then) times a chi-square with as many degrees of freedom as bins less one (Yurdakul and Naranjo: "Statistical
properties of the population stability index", Journal of Risk Model Validation 14(4), 2020): what chance explains is no drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from cifar.images.decode import statistics
from cifar.models.manifest import Bins, Reference
from cifar.settings import Settings

_BINS = 10
_DIGITS = 4
_RECORDED_DIGITS = 6
"""Of a score in the records: 0.9999997 is 1 there, so it must be 1 in a reference too."""
_ADDED = 0.5
"""Added to each count, so that an empty bin is rare and not impossible."""
_CHANCE = 0.01
"""How often a version without drift exceeds what counts as chance, looked at once."""

NUMBERS = ("confidence", "brightness", "contrast")

Level = Literal["none", "warn", "alert"]


@dataclass(frozen=True)
class FeatureDrift:
    """One feature, recent beside then. The two tell counts by bin, in the same order."""

    feature: str
    psi: float
    chance: float
    """What chance alone exceeds once in a hundred times."""
    level: Level
    names: list[str]
    then: list[int]
    recent: list[int]


def reference(
    answers: np.ndarray, images: np.ndarray, class_names: Sequence[str], *, threshold: float | None, source: str
) -> Reference:
    """What a manifest keeps of images that the version was not fitted on.

    Args:
        answers: `(n, classes)`, or `(n, classes + 1)` with `ood_score` last, as `Predictor.answers` gives them.
        images: `(n, height, width, channels)` `uint8`, what the answers are of.
        class_names: in the order of the classes.
        threshold: the largest `ood_score` of an image like those of the training; None without scores.
        source: which images they are.
    """
    classes = len(class_names)
    probabilities = answers[:, :classes]
    looks = np.array([statistics(image) for image in images])
    inside = None if threshold is None else int((answers[:, classes] <= threshold).sum())
    return Reference(
        images=len(images),
        source=source,
        labels=dict(
            zip(class_names, np.bincount(probabilities.argmax(axis=1), minlength=classes).tolist(), strict=True)
        ),
        confidence=_bins(probabilities.max(axis=1).astype(np.float64).round(_RECORDED_DIGITS)),
        brightness=_bins(looks[:, 0]),
        contrast=_bins(looks[:, 1]),
        in_distribution=inside,
    )


def _bins(values: np.ndarray) -> Bins:
    """Tenths of the values; fewer where many are equal."""
    edges = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS).round(_DIGITS))
    edges = edges[(edges > values.min()) & (edges <= values.max())]
    return Bins(edges=edges.tolist(), counts=_counts(values, edges))


def _counts(values: np.ndarray, edges: Sequence[float] | np.ndarray) -> list[int]:
    at = np.searchsorted(np.asarray(edges), values, side="right")
    counts: list[int] = np.bincount(at, minlength=len(edges) + 1).tolist()
    return counts


def psi(then: Sequence[int], recent: Sequence[int]) -> float:
    """Population stability index of two rows of counts over the same bins; 0 for equal shares."""
    shares = [(np.add(counts, _ADDED)) / (np.sum(counts) + _ADDED * len(counts)) for counts in (then, recent)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def chance(then: Sequence[int], recent: Sequence[int]) -> float:
    """The index that two samples of these sizes from one source exceed once in a hundred times."""
    from scipy.special import chdtri  # scipy.stats would take three times the memory of it

    return float(chdtri(max(1, len(then) - 1), _CHANCE) * (1 / sum(then) + 1 / sum(recent)))


def drift(known: Reference, recent: Mapping[str, np.ndarray], settings: Settings) -> list[FeatureDrift]:
    """Compare each feature.

    Args:
        known: from the version's manifest.
        recent: `label`, `in_distribution`, `confidence`, `brightness` and `contrast` of at least one image, each `(n,)`.
        settings: from which index on a feature drifts.
    """
    found = []
    for feature, names, then, now in _features(known, recent):
        index, by_chance = psi(then, now), chance(then, now)
        found.append(FeatureDrift(feature, index, by_chance, _level(index, by_chance, settings), names, then, now))
    return found


def _features(
    known: Reference, recent: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, list[str], list[int], list[int]]]:
    """Each feature with its bins, and the counts in them then and now."""
    names = list(known.labels)
    yield "labels", names, list(known.labels.values()), [int((recent["label"] == name).sum()) for name in names]
    for feature in NUMBERS:
        bins: Bins = getattr(known, feature)
        yield feature, _ranges(bins), bins.counts, _counts(recent[feature], bins.edges)
    told = [value for value in recent["in_distribution"].tolist() if value is not None]
    if known.in_distribution is not None and told:
        then, now = known.in_distribution, sum(told)
        yield "in_distribution", ["yes", "no"], [then, known.images - then], [now, len(told) - now]


def _ranges(bins: Bins) -> list[str]:
    edges = [f"{edge:g}" for edge in bins.edges]
    between = [f"{low} - {high}" for low, high in pairwise(edges)]
    return [f"< {edges[0]}", *between, f">= {edges[-1]}"] if edges else ["all"]


def _level(index: float, by_chance: float, settings: Settings) -> Level:
    if index <= by_chance or index < settings.drift_warn_psi:
        return "none"
    return "alert" if index >= settings.drift_alert_psi else "warn"
