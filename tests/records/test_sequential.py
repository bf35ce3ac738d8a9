"""The statistics of A/B tests: compared with formulas, with SciPy, and with thousands of simulated tests."""

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


def one_answer_per_user(feedback: int, right: int) -> Accuracy:
    return Accuracy.of(np.arange(feedback), np.arange(feedback) < right)


def test_the_interval_of_an_accuracy_is_the_wilson_interval():
    """For 80 right answers of 100 it is 0.7112 to 0.8666, by the formula with SciPy's quantile."""
    low, high = one_answer_per_user(100, 80).interval()
    z = norm.ppf(0.975)
    middle = (0.8 + z**2 / 200) / (1 + z**2 / 100)
    half = z * math.sqrt(0.8 * 0.2 / 100 + z**2 / 40_000) / (1 + z**2 / 100)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert (round(low, 4), round(high, 4)) == (0.7112, 0.8666)


def test_repeated_answers_of_one_user_count_for_less():
    """Ten users with ten equal answers each are worth about ten independent answers, not a hundred."""
    users, right = np.repeat(np.arange(10), 10), np.repeat(np.arange(10) < 8, 10)
    found = Accuracy.of(users, right)
    assert (found.users, found.feedback, found.right) == (10, 100, 80)
    assert found.design_effect == pytest.approx(11, abs=0.5)
    of_ten = binomtest(7, 9).proportion_ci(method="wilson")
    assert found.interval() == pytest.approx((of_ten.low, of_ten.high), abs=1e-9)


def test_independent_answers_of_one_user_count_in_full():
    """If each answer is right independently, 200 users with ten answers each are worth almost 2,000 answers."""
    random = np.random.default_rng(0)
    assert Accuracy.of(np.repeat(np.arange(200), 10), random.random(2000) < 0.8).design_effect < 1.25


@pytest.mark.parametrize(("users", "right", "worth"), [([], [], 0), ([7] * 50, [True] * 50, 1)])
def test_no_user_or_one_user_gives_almost_no_information(users, right, worth):
    """Fifty answers of one user count as one answer."""
    found = Accuracy.of(np.array(users, int), np.array(right, bool))
    expected = [0.0, 1.0] if not worth else list(binomtest(1, 1).proportion_ci(method="wilson"))
    assert found.interval() == pytest.approx(expected)
    assert difference(found, one_answer_per_user(1000, 800), mixture=0.02) is None


def test_the_p_value_is_the_inverse_of_the_mixture_of_likelihood_ratios():
    """The mixture is integrated numerically over the differences that the test is designed for."""
    value, variance, mixture = 0.06, 2.5e-4, 0.03
    differences = np.linspace(-0.5, 0.5, 200_001)
    ratios = norm.pdf(value, differences, math.sqrt(variance)) / norm.pdf(value, 0, math.sqrt(variance))
    mixed = np.trapezoid(ratios * norm.pdf(differences, 0, mixture), differences)
    assert p_value(value, variance, mixture) == pytest.approx(1 / mixed, rel=1e-6)
    assert p_value(0.0, variance, mixture) == 1.0


def test_the_interval_ends_where_the_p_value_is_five_percent():
    """The test and the interval agree."""
    for variance in (1e-6, 1e-4, 1e-2):
        half = half_width(variance, 0.02)
        assert p_value(half, variance, 0.02) == pytest.approx(ALPHA)
    first, second = one_answer_per_user(3000, 2400), one_answer_per_user(3000, 2600)
    found = difference(first, second, mixture=0.02)
    assert found.value == pytest.approx(200 / 3000)
    assert (found.low + found.high) / 2 == pytest.approx(found.value)
    assert found.low > 0
    assert found.p_value < ALPHA
    mirrored = difference(second, first, mixture=0.02)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_the_variance_is_the_larger_of_the_unpooled_and_the_pooled_estimate():
    """For 800 of 1,000 and 850 of 1,000 right answers, with one right and one wrong answer added to each."""
    p, q, r = 801 / 1002, 851 / 1002, 1651 / 2002
    unpooled = p * (1 - p) / 1000 + q * (1 - q) / 1000
    pooled = r * (1 - r) * 2 / 1000
    assert variance_of(Counts(1000, 800, 1.0), Counts(1000, 850, 1.0)) == pytest.approx(max(unpooled, pooled))


def test_a_version_with_few_answers_that_were_all_right_is_not_yet_better():
    """With so few answers, the pooled estimate of the variance applies."""
    assert variance_of(Counts(1000, 800, 1.0), Counts(20, 20, 1.0)) > 0.8 * 0.2 / 21
    assert difference(one_answer_per_user(1000, 800), one_answer_per_user(MIN_USERS, MIN_USERS), mixture=0.02).low < 0


def test_an_interval_stays_within_the_possible_differences():
    """A difference cannot exceed 100 points."""
    found = difference(one_answer_per_user(MIN_USERS, 0), one_answer_per_user(MIN_USERS, MIN_USERS), mixture=0.02)
    assert found.high == 1.0


def test_feedback_needed_gives_one_look_a_power_of_80_percent():
    """With that much feedback, the test detects the effect in 80 % of the cases."""
    known = one_answer_per_user(100_000, 80_000)
    count = feedback_needed(known, known, effect=0.05, mixture=0.02, share=0.5)
    variance = 0.8 * 0.2 * 4 / count
    power = norm.cdf((0.05 - half_width(variance, 0.02)) / math.sqrt(variance))
    assert power == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(("effect", "share"), [(0.01, 0.5), (0.02, 0.1)])
def test_a_smaller_effect_or_less_traffic_needs_more_feedback(effect, share):
    """A version without feedback is assumed to have the accuracy that needs most feedback."""
    known, unknown = one_answer_per_user(1000, 800), Accuracy.of(np.array([], int), np.array([], bool))
    usual = feedback_needed(known, known, effect=0.02, mixture=0.02, share=0.5)
    assert feedback_needed(known, known, effect=effect, mixture=0.02, share=share) > 2 * usual
    assert feedback_needed(known, unknown, effect=0.02, mixture=0.02, share=0.5) > usual


@pytest.mark.slow
@pytest.mark.parametrize(("accuracy", "share"), [(0.5, 0.5), (0.8, 0.5), (0.95, 0.5), (0.8, 0.1), (0.95, 0.1)])
def test_looking_after_every_answer_raises_a_false_alarm_in_at_most_5_percent(accuracy, share):
    """The versions are equal. The sequential test stays below 5 % within the error of 1,000 runs; the textbook test is far above."""
    for mixture in (0.02, 0.1):
        found = simulate(accuracy, accuracy, share=share, answers=3000, runs=1000, mixture=mixture, seed=1)
        error = math.sqrt(ALPHA * (1 - ALPHA) / 1000)
        assert found.sequential <= ALPHA + 2 * error
        assert found.covered >= 1 - ALPHA - 2 * error
        assert found.textbook > 0.2
        assert found.once < ALPHA + 3 * error, "the textbook test is only wrong if it is repeated"


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "share"), [((0.8, 0.85), 0.5), ((0.9, 0.95), 0.1)])
def test_the_feedback_that_the_report_asks_for_detects_the_effect_in_four_of_five_cases(pair, share):
    """The interval also contains the true difference at all looks."""
    found = simulate(*pair, share=share, answers=needed(*pair, share=share), runs=300, seed=2)
    assert 0.8 - 2 * math.sqrt(0.8 * 0.2 / 300) < found.sequential < 0.95
    assert found.covered >= 1 - ALPHA - 2 * math.sqrt(ALPHA * (1 - ALPHA) / 300)


@pytest.mark.slow
def test_users_with_many_similar_photos_raise_no_false_alarm():
    """The versions are equal, but each user's photos are alike. Counting requests shows a difference, counting users does not."""
    random, by_users, by_requests, runs = np.random.default_rng(3), 0, 0, 150
    for _ in range(runs):
        repeats = random.geometric(1 / 12, 160)
        right = random.random(repeats.sum()) < np.repeat(random.beta(1.2, 0.3, 160), repeats)
        users, second = np.repeat(np.arange(160), repeats), np.repeat(random.random(160) < 0.5, repeats)
        looks = range(200, len(right), 100)
        by_users += any(_differs(users[:end], right[:end], second[:end]) for end in looks)
        by_requests += any(_differs(np.arange(end), right[:end], second[:end]) for end in looks)
    assert by_users <= runs * ALPHA
    assert by_requests > 2 * runs * ALPHA


def _differs(users: np.ndarray, right: np.ndarray, second: np.ndarray) -> bool:
    parts = [Accuracy.of(users[chosen], right[chosen]) for chosen in (~second, second)]
    found = difference(*parts, mixture=0.1)
    return found is not None and found.p_value <= ALPHA
