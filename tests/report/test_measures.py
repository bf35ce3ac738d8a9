"""`cifar.training.measures` and the Wilson interval: figures that can be checked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cifar.errors import BadParameter
from cifar.statistics import wilson_interval
from cifar.training.measures import measure

ANSWERS = np.array(
    [
        [0.7, 0.2, 0.1],  # predicted a, right
        [0.3, 0.5, 0.2],  # predicted b, is a
        [0.1, 0.8, 0.1],  # predicted b, right
        [0.6, 0.3, 0.1],  # predicted a, is c
    ]
)
LABELS = np.array([0, 0, 1, 2])
MEASURED = measure(ANSWERS, LABELS, "abc")


def test_counts_and_shares_are_those_counted_by_hand():
    """There are four images of three classes."""
    assert MEASURED["images"] == 4
    assert MEASURED["accuracy"] == 0.5
    assert MEASURED["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert {name: entry["images"] for name, entry in MEASURED["per_class"].items()} == {"a": 2, "b": 1, "c": 1}
    assert {name: entry["accuracy"] for name, entry in MEASURED["per_class"].items()} == {"a": 0.5, "b": 1, "c": 0}
    assert MEASURED["top_k"] == {"1": 0.5, "2": 0.75, "3": 1.0}


def test_the_loss_is_the_mean_negative_logarithm():
    """The logarithm is that of the true class's probability. The loss is finite even if that probability is zero."""
    assert MEASURED["loss"] == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.1]).mean())
    certain = measure(np.array([[1.0, 0.0]]), np.array([1]), "ab")
    assert certain["loss"] == pytest.approx(-np.log(1e-7))


def test_the_calibration_error_is_the_one_computed_by_hand():
    """The differences are |1 - 0.7|, |0 - 0.5|, |1 - 0.8| and |0 - 0.6|, each alone in its bin, with equal weights."""
    assert MEASURED["ece"] == pytest.approx((0.3 + 0.5 + 0.2 + 0.6) / 4)
    assert len(MEASURED["reliability"]) == 15
    empty = {"low": 0, "high": pytest.approx(1 / 15), "images": 0, "confidence": None, "accuracy": None}
    assert MEASURED["reliability"][0] == empty
    assert [entry["images"] for entry in MEASURED["reliability"]] == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0]


def test_a_right_and_a_wrong_prediction_in_one_bin_can_be_calibrated():
    """Of two predictions with confidence 0.5, one is right."""
    halves = measure(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([0, 1]), "ab")
    assert halves["ece"] == 0
    assert halves["accuracy"] == 0.5, "equal scores are ranked in class order, as the Predictor does"
    sure = measure(np.eye(2), np.array([0, 1]), "ab")
    assert (sure["ece"], sure["reliability"][14]["images"]) == (0, 2)


def test_a_calibrated_model_has_a_small_calibration_error():
    """Labels are drawn from the predicted probabilities. After sharpening, the same predictions are overconfident."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([0.5] * 4, 20_000)
    labels = np.array([random.choice(4, p=row) for row in probabilities])
    assert measure(probabilities, labels, "abcd")["ece"] < 0.015
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert measure(sharp, labels, "abcd")["ece"] > 0.1


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (6676, 10_000, 0.658304, 0.676767)],
)
def test_intervals_are_the_published_wilson_intervals(right, images, low, high):
    """The figures are those of R's `prop.test(correct=FALSE)` and of statsmodels."""
    assert wilson_interval(right, images) == pytest.approx([low, high], abs=1e-6)


def test_a_class_without_images_has_no_accuracy():
    """The accuracy is None, not zero, and there is no division by zero."""
    measured = measure(ANSWERS[:3], LABELS[:3], "abc")["per_class"]["c"]
    assert measured == {"images": 0, "accuracy": None, "interval": None}


def test_the_measures_go_through_json_unchanged():
    """Manifests and reports hold them as JSON, which has no float32."""
    measured = measure(ANSWERS.astype(np.float32), LABELS, ["a", "b", "c"])
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


@pytest.mark.parametrize(
    ("answers", "labels", "words"),
    [
        (ANSWERS[:, :2], LABELS, r"shape \(n, 3\)"),
        (ANSWERS, LABELS[:2], "for 2 labels"),
        (ANSWERS[:0], LABELS[:0], "n at least 1"),
        (ANSWERS, LABELS + 1, "from 0 to 2"),
        (ANSWERS, LABELS.astype(float), "whole numbers"),
        (ANSWERS * np.nan, LABELS, "NaN"),
        (ANSWERS * 2, LABELS, "add to 1"),
    ],
)
def test_invalid_probabilities_or_labels_are_refused(answers, labels, words):
    """Logits, or labels of another data set, would give wrong figures."""
    with pytest.raises(BadParameter, match=words):
        measure(answers, labels, "abc")


def test_the_balanced_accuracy_counts_a_small_class_like_a_large_one():
    """A model that says the larger class to everything is right for 98 % of 49:1, and has learned nothing."""
    labels = np.array([0] * 98 + [1] * 2)
    always = np.tile([0.9, 0.1, 0.0], (100, 1))
    measured = measure(always, labels, ["dog", "cat", "never seen"])
    assert (measured["accuracy"], measured["balanced_accuracy"]) == (0.98, 0.5)
    right = np.eye(3)[labels]
    assert measure(right, labels, "abc")["balanced_accuracy"] == 1
