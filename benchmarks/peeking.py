"""How often an A/B test says that versions differ when they do not, if somebody looks after every answer; and how often it finds what is there.

    python benchmarks/peeking.py [--runs 10000] [--answers 10000]

Each run is one stream of feedback. The sequential test (`cifar/analytics/sequential.py`) and the textbook one (two shares, z-test
at 5 %) look after each of its answers, once both versions have enough; a run counts if a test is below 0.05 at any look.
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

_AT_ONCE = 100
_CRITICAL = 1.959964
MIXTURE = 0.02


class Found(NamedTuple):
    """Shares of the runs."""

    sequential: float
    textbook: float
    """Says that the versions differ, at any look."""
    once: float
    """The same of the textbook test, looked at the end alone."""
    covered: float
    """The sequential interval held the true difference at all looks."""


def simulate(
    first: float, second: float, *, share: float, answers: int, runs: int, mixture: float = MIXTURE, seed: int = 0
) -> Found:
    """Play `runs` streams of `answers` answers with feedback.

    Args:
        first: accuracy of the version in use.
        second: of the one on trial.
        share: which part of the answers the second gives, at random.
        answers: in each run.
        runs: streams.
        mixture: see `cifar.analytics.sequential.difference`.
        seed: of the dice.
    """
    dice, sums = np.random.default_rng(seed), np.zeros(4)
    for start in range(0, runs, _AT_ONCE):
        sums += _looks(dice, (min(_AT_ONCE, runs - start), answers), (first, second), share, mixture)
    return Found(*(sums / runs))


def _looks(
    dice: np.random.Generator, shape: tuple[int, int], accuracies: tuple[float, float], share: float, mixture: float
) -> np.ndarray:
    on_trial = dice.random(shape) < share
    right = dice.random(shape) < np.where(on_trial, accuracies[1], accuracies[0])
    n2, right2 = on_trial.cumsum(axis=1), (right & on_trial).cumsum(axis=1)
    n1, right1 = np.arange(1, shape[1] + 1) - n2, right.cumsum(axis=1) - right2
    enough = (n1 >= MIN_USERS) & (n2 >= MIN_USERS)
    n1, n2 = np.maximum(n1, 1), np.maximum(n2, 1)
    value = right2 / n2 - right1 / n1
    variance = variance_of(Counts(n1, right1, 1.0), Counts(n2, right2, 1.0))
    found = (p_value(value, variance, mixture) <= ALPHA) & enough
    missed = (np.abs(value - (accuracies[1] - accuracies[0])) > half_width(variance, mixture)) & enough
    pooled = (right1 + right2) / (n1 + n2)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    textbook = (np.abs(value) > _CRITICAL * error) & enough
    return np.array(
        [found.any(axis=1).sum(), textbook.any(axis=1).sum(), textbook[:, -1].sum(), (~missed.any(axis=1)).sum()]
    )


def needed(first: float, second: float, *, share: float, mixture: float = MIXTURE) -> int:
    """Answers with feedback that the report would ask for, to find this difference."""
    known = [Accuracy(100_000, 100_000, round(100_000 * accuracy), 1.0) for accuracy in (first, second)]
    return feedback_needed(*known, effect=abs(second - first), mixture=mixture, share=share)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=10_000)
    options = parser.parse_args()
    started = time.monotonic()
    print(f"Nothing differs; {options.runs:,} runs of {options.answers:,} answers, looked at after each.\n")
    print("| accuracy of both | share of the second | sequential | textbook | textbook, one look | interval held |")
    print("|---|---|---|---|---|---|")
    for accuracy in (0.5, 0.8, 0.9, 0.97):
        for share in (0.5, 0.1):
            found = simulate(accuracy, accuracy, share=share, answers=options.answers, runs=options.runs)
            _row(accuracy, share, found.sequential, found.textbook, found.once, found.covered)
    print("\nOne is better; as many answers as the report asks for.\n")
    print("| accuracies | share of the second | answers asked for | found by the end | interval held |")
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
