"""Intervals and histograms that training reports and the analysis of records share.

The drift measure is the population stability index: the sum over bins of `(observed share - expected share) x
log(observed share / expected share)`. Without drift it is distributed approximately as `1/n_expected + 1/n_observed` times
a chi-square variable with one degree of freedom less than there are bins (Yurdakul and Naranjo: "Statistical properties of the
population stability index", Journal of Risk Model Validation 14(4), 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054
"""The standard normal quantile of a two-sided 95 % interval."""
_BINS = 10
_EDGE_DIGITS = 4
_PSEUDO_COUNT = 0.5
"""Added to the count of each bin, so that an empty bin does not make the index infinite."""
_CHANCE = 0.01
"""Probability that the index exceeds `stability_index_by_chance` without drift."""


def wilson_interval(successes: int, trials: int) -> list[float]:
    """Return the 95 % confidence interval of a share (Wilson, 1927) as `[low, high]`; `[0, 1]` for no trials.

    The interval stays within [0, 1], also for no or only successes in few trials.
    """
    if not trials:
        return [0.0, 1.0]
    share, z2 = successes / trials, _Z**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * (share * (1 - share) / trials + z2 / (4 * trials)) ** 0.5 / (1 + z2)
    # Rounding errors must neither exclude the share nor exceed [0, 1].
    return [max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))]


def bin_edges(values: np.ndarray) -> list[float]:
    """Return edges that cut the values into ten bins of about equal count; fewer bins where many values are equal.

    The edges ascend. A value on an edge belongs to the bin above it.
    """
    edges = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS).round(_EDGE_DIGITS))
    chosen: list[float] = edges[(edges > values.min()) & (edges <= values.max())].tolist()
    return chosen


def bin_counts(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """Count the values in each bin; there is one bin more than there are edges."""
    counts: list[int] = np.bincount(
        np.searchsorted(np.asarray(edges), values, side="right"), minlength=len(edges) + 1
    ).tolist()
    return counts


def stability_index(expected: Sequence[int], observed: Sequence[int]) -> float:
    """Return the population stability index of two histograms over the same bins; 0 for equal shares."""
    then, now = (
        np.add(counts, _PSEUDO_COUNT) / (np.sum(counts) + _PSEUDO_COUNT * len(counts))
        for counts in (expected, observed)
    )
    return float(((now - then) * np.log(now / then)).sum())


def stability_index_by_chance(expected: Sequence[int], observed: Sequence[int]) -> float:
    """Return the index that two samples of these sizes from one distribution exceed once in a hundred times."""
    from scipy.special import chdtri  # scipy.stats takes three times as much memory

    return float(chdtri(max(1, len(expected) - 1), _CHANCE) * (1 / sum(expected) + 1 / sum(observed)))
