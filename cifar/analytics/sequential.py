"""The difference of two accuracies, in a way that may be looked at after every answer.

The test is the mixture sequential probability ratio test with a normal mixture (Johari, Koomen, Pekelis and Walsh: "Always
Valid Inference: Continuous Monitoring of A/B Tests", Operations Research 70(3), 2022), with the variance estimated from the
data. The chance that its p-value ever falls to 0.05 while nothing differs is at most 5 %, and that its interval ever misses the
difference too, whenever and however often one looks. That holds for large numbers, and not for the first few; so `MIN_USERS`
comes first, and the variance never counts as less than with both versions alike. `benchmarks/peeking.py` shows what comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ALPHA = 0.05
POWER = 0.8
MIN_USERS = 20
"""Users with feedback that each version needs before anything is said of a difference."""


@dataclass(frozen=True)
class Accuracy:
    """What feedback says of one version.

    Feedback comes by request, but a user who has sent one photo often sends another like it, and stays with one version. So users
    are what is drawn at random: the variance is that between users (linearized, of a ratio), where that is more.
    """

    users: int
    feedback: int
    right: int
    design_effect: float
    """How many times the variance is that of as many answers to as many users; at least 1."""

    @classmethod
    def of(cls, users: np.ndarray, right: np.ndarray) -> Accuracy:
        """Count.

        Args:
            users: `(n,)`, who asked: whole numbers from 0 on, none of them far beyond the number of users.
            right: `(n,)` `bool`, whether the answer was right.
        """
        said = np.bincount(users)
        asked = said > 0
        said, hits = said[asked], np.bincount(users, weights=right)[asked]
        feedback, total, people = len(right), int(hits.sum()), len(said)
        if people < 2:
            return cls(people, feedback, total, float(max(1, feedback)))
        between = np.square(hits - total / feedback * said).sum() * people / (people - 1) / feedback**2
        return cls(people, feedback, total, float(max(1.0, between / _variance(feedback, total))))

    @property
    def share(self) -> float:
        """Right answers of those that were judged; NaN without any."""
        return self.right / self.feedback if self.feedback else float("nan")

    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95 %, of as many independent answers as these are worth; (0, 1) without any."""
        from scipy.stats import binomtest

        worth = round(self.feedback / self.design_effect)
        if not worth:
            return 0.0, 1.0
        found = binomtest(round(worth * self.share), worth).proportion_ci(1 - ALPHA, method="wilson")
        return float(found.low), float(found.high)


class Difference(NamedTuple):
    """The second version's accuracy less the first's."""

    value: float
    low: float
    high: float
    p_value: float


def difference(first: Accuracy, second: Accuracy, *, mixture: float) -> Difference | None:
    """Compare two versions; valid whenever one looks.

    Args:
        first: the one in use.
        second: the one on trial.
        mixture: standard deviation of the differences that the test looks for; chosen before the first look.

    Returns:
        None while either has too few users with feedback.
    """
    if min(first.users, second.users) < MIN_USERS:
        return None
    value = second.share - first.share
    variance = float(variance_of(*(Counts(part.feedback, part.right, part.design_effect) for part in (first, second))))
    half = float(half_width(variance, mixture))
    return Difference(value, max(-1.0, value - half), min(1.0, value + half), float(p_value(value, variance, mixture)))


class Counts(NamedTuple):
    """Of one version: numbers, or arrays over many looks."""

    feedback: Any
    right: Any
    design_effect: Any


def variance_of(first: Counts, second: Counts) -> Any:
    """Variance of the difference of two shares.

    The larger of two: with a rate for each version, and with one for both, which early on the smaller of two unequal ones needs.
    """
    both = (first, second)
    pooled = (first.right + second.right + 1) / (first.feedback + second.feedback + 2)
    apart = sum(_variance(one.feedback, one.right) * one.design_effect for one in both)
    alike = pooled * (1 - pooled) * sum(one.design_effect / one.feedback for one in both)
    return np.maximum(apart, alike)


def _variance(n: Any, right: Any) -> Any:
    """Of a share, as if one right and one wrong answer more had come: nothing is certain because it was always so."""
    share = (right + 1) / (n + 2)
    return share * (1 - share) / n


def p_value(value: Any, variance: Any, mixture: float) -> Any:
    """One over the mixture's likelihood ratio: section 4 of the paper. Numbers or arrays."""
    spread = mixture**2
    total = variance + spread
    ratio = np.log(variance / total) / 2 + spread * np.square(value) / (2 * variance * total)
    return np.exp(-np.maximum(ratio, 0))


def half_width(variance: Any, mixture: float) -> Any:
    """Half of the interval that holds the difference at all times, 95 %: the values whose p-value exceeds `ALPHA`."""
    total = variance + mixture**2
    return np.sqrt(variance * total / mixture**2 * (np.log(total / variance) - 2 * np.log(ALPHA)))


def feedback_needed(first: Accuracy, second: Accuracy, *, effect: float, mixture: float, share: float) -> int:
    """How much feedback the two need together, to find a difference of `effect` with a probability of `POWER`.

    What a single look at the end would find is counted; looking earlier finds some of it earlier.

    Args:
        first: what is known of the one.
        second: and of the other; a version without feedback counts as right half of the time, which needs most.
        effect: the difference, such as 0.02.
        mixture: see `difference`.
        share: which part of the feedback the second gets.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    def missing(log_variance: float) -> float:
        variance = np.exp(log_variance)
        return float((effect - half_width(variance, mixture)) / np.sqrt(variance) - ndtri(POWER))

    wanted = np.exp(brentq(missing, np.log(1e-12), np.log(1.0)))
    many = 1e9  # so many that the variance goes by their number alone
    known = [(first, (1 - share) * many), (second, share * many)]
    counts = [Counts(n, n * (one.right + 1) / (one.feedback + 2), one.design_effect) for one, n in known]
    return int(np.ceil(variance_of(*counts) * many / wanted))
