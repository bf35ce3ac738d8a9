"""A sequential test of the difference between two accuracies: its result may be looked at any number of times.

The test is the mixture sequential probability ratio test with a normal mixture (Johari, Koomen, Pekelis and Walsh: "Always
Valid Inference: Continuous Monitoring of A/B Tests", Operations Research 70(3), 2022), with the variance estimated from the
data. If there is no difference, the probability that the p-value ever falls to 0.05 is at most 5 %. The probability that the
interval ever misses the true difference is at most 5 % too. Both are asymptotic and do not hold for the first few answers, so a
comparison requires `MIN_USERS` per version, and the variance is never smaller than if both versions had the same accuracy.
`benchmarks/peeking.py` measures the resulting error rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cifar.statistics import wilson_interval

ALPHA = 0.05
POWER = 0.8
MIN_USERS = 20
"""Users with feedback that each version needs before the two are compared."""


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one version by feedback.

    Feedback is given per request, but one user often sends similar images and always gets the same version. The sampling unit is
    therefore the user: the variance between users (linearized variance of a ratio) is used if it is larger than that of
    independent answers.
    """

    users: int
    feedback: int
    right: int
    design_effect: float
    """The variance divided by the variance of the same number of independent answers; at least 1."""

    @classmethod
    def of(cls, users: np.ndarray, right: np.ndarray) -> Accuracy:
        """Compute the accuracy from `n` answers with feedback: their users, as small non-negative integers, and whether they were right."""
        answers = np.bincount(users)
        active = answers > 0
        answers, hits = answers[active], np.bincount(users, weights=right)[active]
        feedback, total, count = len(right), int(hits.sum()), len(answers)
        if count < 2:
            return cls(count, feedback, total, float(max(1, feedback)))
        between = np.square(hits - total / feedback * answers).sum() * count / (count - 1) / feedback**2
        return cls(count, feedback, total, float(max(1.0, between / _variance(feedback, total))))

    @property
    def share(self) -> float:
        """Share of right answers; NaN without feedback."""
        return self.right / self.feedback if self.feedback else float("nan")

    def interval(self) -> list[float]:
        """Return the 95 % Wilson interval `[low, high]` for the equivalent number of independent answers."""
        independent = round(self.feedback / self.design_effect)
        return wilson_interval(round(independent * self.share) if independent else 0, independent)


class Difference(NamedTuple):
    """The second version's accuracy minus the first's, with its 95 % interval."""

    value: float
    low: float
    high: float
    p_value: float


def difference(first: Accuracy, second: Accuracy, *, mixture: float) -> Difference | None:
    """Compare two versions; the result is valid at any time. None if a version has feedback by fewer than `MIN_USERS` users.

    `mixture` is the standard deviation of the differences that the test is designed for. It must be chosen before the first look.
    """
    if min(first.users, second.users) < MIN_USERS:
        return None
    value = second.share - first.share
    variance = float(variance_of(first, second))
    half = float(half_width(variance, mixture))
    return Difference(value, max(-1.0, value - half), min(1.0, value + half), float(p_value(value, variance, mixture)))


class Counts(NamedTuple):
    """The fields of `Accuracy` that determine the variance, as numbers or as arrays over many looks."""

    feedback: Any
    right: Any
    design_effect: Any


def variance_of(first: Accuracy | Counts, second: Accuracy | Counts) -> Any:
    """Return the variance of the difference of two accuracies.

    This is the larger of the unpooled and the pooled estimate. With few answers in one of two unequal groups, the unpooled
    estimate alone is too small.
    """
    pooled_share = (first.right + second.right + 1) / (first.feedback + second.feedback + 2)
    unpooled = sum(_variance(each.feedback, each.right) * each.design_effect for each in (first, second))
    pooled = pooled_share * (1 - pooled_share) * sum(each.design_effect / each.feedback for each in (first, second))
    return np.maximum(unpooled, pooled)


def _variance(n: Any, right: Any) -> Any:
    """Return the variance of a share, with one right and one wrong answer added so that it is never zero."""
    share = (right + 1) / (n + 2)
    return share * (1 - share) / n


def p_value(value: Any, variance: Any, mixture: float) -> Any:
    """Return the inverse of the mixture likelihood ratio (section 4 of the paper), for numbers or arrays."""
    spread = mixture**2
    total = variance + spread
    ratio = np.log(variance / total) / 2 + spread * np.square(value) / (2 * variance * total)
    return np.exp(-np.maximum(ratio, 0))


def half_width(variance: Any, mixture: float) -> Any:
    """Return half the width of the 95 % interval: the set of differences with a p-value above `ALPHA`."""
    total = variance + mixture**2
    return np.sqrt(variance * total / mixture**2 * (np.log(total / variance) - 2 * np.log(ALPHA)))


def feedback_needed(first: Accuracy, second: Accuracy, *, effect: float, mixture: float, share: float) -> int:
    """Return how many answers with feedback, of both versions together, detect a difference of `effect` with probability `POWER`.

    The number is computed for a single look at the end; earlier looks find some differences sooner.

    Args:
        first: the accuracy of the first version so far.
        second: the accuracy of the second version so far. A version without feedback is assumed to have an accuracy of 0.5, for
            which most feedback is needed.
        effect: the difference, such as 0.02.
        mixture: see `difference`.
        share: share of the feedback that belongs to the second version.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    def excess_power(log_variance: float) -> float:
        variance = np.exp(log_variance)
        return float((effect - half_width(variance, mixture)) / np.sqrt(variance) - ndtri(POWER))

    variance = np.exp(brentq(excess_power, np.log(1e-12), np.log(1.0)))
    many = 1e9  # large enough that the variance is proportional to 1 / n
    shares = [(first, (1 - share) * many), (second, share * many)]
    counts = [Counts(n, n * (each.right + 1) / (each.feedback + 2), each.design_effect) for each, n in shares]
    return int(np.ceil(variance_of(*counts) * many / variance))
