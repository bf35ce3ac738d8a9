"""The statistics of A/B tests: checked by hand, against SciPy, and by playing thousands of tests."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from cifar.analytics.sequential import (
    ALPHA,
    MIN_USERS,
    Accuracy,
    Counts,
    difference,
    feedback_needed,
    half_width,
    p_value,
    variance_of,
)
from cifar.settings import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from peeking import needed, simulate


def everybody_once(feedback: int, right: int) -> Accuracy:
    return Accuracy.of(np.arange(feedback), np.arange(feedback) < right)


def test_the_interval_of_a_share_is_wilsons():
    """80 of 100: 0.7112 to 0.8666, by the formula and by SciPy."""
    low, high = everybody_once(100, 80).interval()
    z = norm.ppf(0.975)
    middle = (0.8 + z**2 / 200) / (1 + z**2 / 100)
    half = z * math.sqrt(0.8 * 0.2 / 100 + z**2 / 40_000) / (1 + z**2 / 100)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert (round(low, 4), round(high, 4)) == (0.7112, 0.8666)


def test_a_user_who_repeats_is_counted_for_less():
    """Ten users who each say the same ten times are worth about ten answers, not a hundred."""
    users, right = np.repeat(np.arange(10), 10), np.repeat(np.arange(10) < 8, 10)
    found = Accuracy.of(users, right)
    assert (found.users, found.feedback, found.right) == (10, 100, 80)
    assert found.design_effect == pytest.approx(11, abs=0.5)
    of_ten = binomtest(7, 9).proportion_ci(method="wilson")
    assert found.interval() == pytest.approx((of_ten.low, of_ten.high), abs=1e-9)


def test_users_who_repeat_by_chance_cost_nothing():
    """Where each answer is right or not by itself, two hundred users with ten each are worth nearly two thousand."""
    dice = np.random.default_rng(0)
    assert Accuracy.of(np.repeat(np.arange(200), 10), dice.random(2000) < 0.8).design_effect < 1.25


@pytest.mark.parametrize(("users", "right", "worth"), [([], [], 0), ([7] * 50, [True] * 50, 1)])
def test_nobody_or_one_user_tells_next_to_nothing(users, right, worth):
    """However often the one says so."""
    found = Accuracy.of(np.array(users, int), np.array(right, bool))
    wanted = (0.0, 1.0) if not worth else tuple(binomtest(1, 1).proportion_ci(method="wilson"))
    assert found.interval() == pytest.approx(wanted)
    assert difference(found, everybody_once(1000, 800), mixture=0.02) is None


def test_the_p_value_is_one_over_the_mixture_of_likelihood_ratios():
    """By numerical integration over the differences that the test looks for."""
    value, variance, mixture = 0.06, 2.5e-4, 0.03
    differences = np.linspace(-0.5, 0.5, 200_001)
    ratios = norm.pdf(value, differences, math.sqrt(variance)) / norm.pdf(value, 0, math.sqrt(variance))
    mixed = np.trapezoid(ratios * norm.pdf(differences, 0, mixture), differences)
    assert p_value(value, variance, mixture) == pytest.approx(1 / mixed, rel=1e-6)
    assert p_value(0.0, variance, mixture) == 1.0


def test_the_interval_ends_where_the_p_value_is_five_percent():
    """Test and interval say the same."""
    for variance in (1e-6, 1e-4, 1e-2):
        half = half_width(variance, 0.02)
        assert p_value(half, variance, 0.02) == pytest.approx(ALPHA)
    first, second = everybody_once(3000, 2400), everybody_once(3000, 2600)
    found = difference(first, second, mixture=0.02)
    assert found.value == pytest.approx(200 / 3000)
    assert (found.low + found.high) / 2 == pytest.approx(found.value)
    assert found.low > 0
    assert found.p_value < ALPHA
    mirrored = difference(second, first, mixture=0.02)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_the_variance_is_that_of_two_shares():
    """Of 800 of 1,000 and 850 of 1,000, with one right and one wrong answer more each; the larger of apart and alike."""
    (p, q, r) = (801 / 1002, 851 / 1002, 1651 / 2002)
    apart = p * (1 - p) / 1000 + q * (1 - q) / 1000
    alike = r * (1 - r) * 2 / 1000
    assert variance_of(Counts(1000, 800, 1.0), Counts(1000, 850, 1.0)) == pytest.approx(max(apart, alike))


def test_a_small_new_version_that_was_always_right_is_not_yet_better():
    """Of so few, the variance counts as that of both together."""
    small = variance_of(Counts(1000, 800, 1.0), Counts(20, 20, 1.0))
    assert small > 0.8 * 0.2 / 21
    assert difference(everybody_once(1000, 800), everybody_once(MIN_USERS, MIN_USERS), mixture=0.02).low < 0


def test_an_interval_is_never_beyond_what_differences_can_be():
    """Nothing is better by 120 points."""
    found = difference(everybody_once(MIN_USERS, 0), everybody_once(MIN_USERS, MIN_USERS), mixture=0.02)
    assert found.high == 1.0


def test_feedback_needed_is_what_one_look_needs():
    """At that variance, the effect exceeds the interval by the quantile of 80 %."""
    known = everybody_once(100_000, 80_000)
    count = feedback_needed(known, known, effect=0.05, mixture=0.02, share=0.5)
    variance = 0.8 * 0.2 * 4 / count
    chance_to_find = norm.cdf((0.05 - half_width(variance, 0.02)) / math.sqrt(variance))
    assert chance_to_find == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(("effect", "share"), [(0.01, 0.5), (0.02, 0.1)])
def test_less_effect_and_less_traffic_need_more_feedback(effect, share):
    """And a version of which nothing is known counts as one of which everything may be."""
    known, nothing = everybody_once(1000, 800), Accuracy.of(np.array([], int), np.array([], bool))
    usual = feedback_needed(known, known, effect=0.02, mixture=0.02, share=0.5)
    assert feedback_needed(known, known, effect=effect, mixture=0.02, share=share) > 2 * usual
    assert feedback_needed(known, nothing, effect=0.02, mixture=0.02, share=0.5) > usual


@pytest.mark.slow
@pytest.mark.parametrize(("accuracy", "share"), [(0.5, 0.5), (0.8, 0.5), (0.95, 0.5), (0.8, 0.1), (0.95, 0.1)])
def test_whoever_looks_after_every_answer_is_wrong_in_at_most_one_of_twenty(accuracy, share):
    """Nothing differs: the sequential test is below 5 % within the error of a thousand runs, the textbook's far above."""
    for mixture in (0.02, 0.1):
        found = simulate(accuracy, accuracy, share=share, answers=3000, runs=1000, mixture=mixture, seed=1)
        error = math.sqrt(ALPHA * (1 - ALPHA) / 1000)
        assert found.sequential <= ALPHA + 2 * error
        assert found.covered >= 1 - ALPHA - 2 * error
        assert found.textbook > 0.2
        assert found.once < ALPHA + 3 * error, "it is the looking, not the test"


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "share"), [((0.8, 0.85), 0.5), ((0.9, 0.95), 0.1)])
def test_what_the_report_asks_for_finds_the_effect_in_four_of_five_cases(pair, share):
    """Power at a stated effect, of as much feedback as `feedback_needed` says; and the interval holds it at all looks."""
    found = simulate(*pair, share=share, answers=needed(*pair, share=share), runs=300, seed=2)
    assert 0.8 - 2 * math.sqrt(0.8 * 0.2 / 300) < found.sequential < 0.95
    assert found.covered >= 1 - ALPHA - 2 * math.sqrt(ALPHA * (1 - ALPHA) / 300)


@pytest.mark.slow
def test_users_who_repeat_themselves_raise_no_false_alarm():
    """Nothing differs, but each user's photos are of one kind: by requests that is a difference, by users it is none."""
    dice, by_users, by_requests, runs = np.random.default_rng(3), 0, 0, 150
    for _ in range(runs):
        often = dice.geometric(1 / 12, 160)
        right = dice.random(often.sum()) < np.repeat(dice.beta(1.2, 0.3, 160), often)
        users, second = np.repeat(np.arange(160), often), np.repeat(dice.random(160) < 0.5, often)
        looks = range(200, len(right), 100)
        by_users += any(_differs(users[:end], right[:end], second[:end]) for end in looks)
        by_requests += any(_differs(np.arange(end), right[:end], second[:end]) for end in looks)
    assert by_users <= runs * ALPHA
    assert by_requests > 2 * runs * ALPHA


def _differs(users: np.ndarray, right: np.ndarray, second: np.ndarray) -> bool:
    parts = [Accuracy.of(users[chosen], right[chosen]) for chosen in (~second, second)]
    found = difference(*parts, mixture=0.1)
    return found is not None and found.p_value <= ALPHA
