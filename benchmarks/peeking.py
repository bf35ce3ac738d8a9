"""Measure the false alarms and the power of A/B tests whose result is looked at after every answer.

    python benchmarks/peeking.py [--runs 10000] [--answers 10000]

Each run simulates one stream of feedback. The sequential test (`cifar/analytics/sequential.py`) and the textbook test (z-test of two
proportions at 5 %) are evaluated after each answer, as soon as both versions have enough feedback. A run counts as a detection if the
p-value is at most 0.05 at any look.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cifar.analytics.sequential import (
    ALPHA,
    MIN_USERS,
    Accuracy,
    Counts,
    feedback_needed,
    half_width,
    p_value,
    variance_of,
)

_BATCH_RUNS = 100
_CRITICAL = 1.959964
"""The two-sided 5 % quantile of the standard normal distribution."""
MIXTURE = 0.02


class Shares(NamedTuple):
    """The result of many runs, as shares of the runs."""

    sequential: float
    """The sequential test detected a difference at any look."""
    textbook: float
    """The textbook test detected a difference at any look."""
    once: float
    """The textbook test detected a difference at a single look at the end."""
    covered: float
    """The sequential interval contained the true difference at all looks."""


def simulate(
    first: float, second: float, *, share: float, answers: int, runs: int, mixture: float = MIXTURE, seed: int = 0
) -> Shares:
    """Simulate `runs` streams of `answers` answers with feedback.

    Args:
        first: accuracy of the version in use.
        second: accuracy of the version on trial.
        share: share of the answers that the second version gives, at random.
        answers: answers per run.
        runs: number of runs.
        mixture: see `cifar.analytics.sequential.difference`.
        seed: seed of the random numbers.
    """
    random, sums = np.random.default_rng(seed), np.zeros(4)
    for start in range(0, runs, _BATCH_RUNS):
        sums += _looks(random, (min(_BATCH_RUNS, runs - start), answers), (first, second), share, mixture)
    return Shares(*(sums / runs))


def _looks(
    random: np.random.Generator, shape: tuple[int, int], accuracies: tuple[float, float], share: float, mixture: float
) -> np.ndarray:
    on_trial = random.random(shape) < share
    right = random.random(shape) < np.where(on_trial, accuracies[1], accuracies[0])
    n2, right2 = on_trial.cumsum(axis=1), (right & on_trial).cumsum(axis=1)
    n1, right1 = np.arange(1, shape[1] + 1) - n2, right.cumsum(axis=1) - right2
    enough = (n1 >= MIN_USERS) & (n2 >= MIN_USERS)
    n1, n2 = np.maximum(n1, 1), np.maximum(n2, 1)
    value = right2 / n2 - right1 / n1
    variance = variance_of(Counts(n1, right1, 1.0), Counts(n2, right2, 1.0))
    detected = (p_value(value, variance, mixture) <= ALPHA) & enough
    missed = (np.abs(value - (accuracies[1] - accuracies[0])) > half_width(variance, mixture)) & enough
    pooled = (right1 + right2) / (n1 + n2)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    textbook = (np.abs(value) > _CRITICAL * error) & enough
    return np.array(
        [detected.any(axis=1).sum(), textbook.any(axis=1).sum(), textbook[:, -1].sum(), (~missed.any(axis=1)).sum()]
    )


def needed(first: float, second: float, *, share: float, mixture: float = MIXTURE) -> int:
    """Return how many answers with feedback the report asks for to detect this difference."""
    known = [Accuracy(100_000, 100_000, round(100_000 * accuracy), 1.0) for accuracy in (first, second)]
    return feedback_needed(*known, effect=abs(second - first), mixture=mixture, share=share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=10_000)
    options = parser.parse_args()
    started = time.monotonic()
    print(f"Equal versions: {options.runs:,} runs of {options.answers:,} answers, with a look after each.\n")
    print("| accuracy of both | share of the second | sequential | textbook | textbook, one look | interval correct |")
    print("|---|---|---|---|---|---|")
    for accuracy in (0.5, 0.8, 0.9, 0.97):
        for share in (0.5, 0.1):
            found = simulate(accuracy, accuracy, share=share, answers=options.answers, runs=options.runs)
            _row(accuracy, share, found.sequential, found.textbook, found.once, found.covered)
    print("\nOne version is better: as many answers as the report asks for.\n")
    print("| accuracies | share of the second | answers asked for | detected by the end | interval correct |")
    print("|---|---|---|---|---|")
    for pair in ((0.8, 0.82), (0.8, 0.85), (0.9, 0.95), (0.6, 0.7)):
        for share in (0.5, 0.1):
            answers = needed(*pair, share=share)
            runs = max(200, min(options.runs, 40_000_000 // answers))
            found = simulate(*pair, share=share, answers=answers, runs=runs)
            _row(f"{pair[0]}, {pair[1]}", share, f"{answers:,}", f"{found.sequential:.3f} of {runs:,}", found.covered)
    print(f"\n{time.monotonic() - started:.0f} s", file=sys.stderr)


def _row(*cells: object) -> None:
    print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
