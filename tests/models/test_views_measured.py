"""`cifar.training.export.views`: whether photographs get several views where nobody chose a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.views import measure_views


def half(bright: str, count: int = 400) -> HeldOut:
    """Return noise of which one half, such as the left, is brighter: that half is the label."""
    random = np.random.default_rng(0)
    images = random.integers(0, 100, (count, 8, 8, 3)).astype(np.uint8)
    labels = random.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        side = slice(4) if label else slice(4, None)
        image[(slice(None), side) if bright == "left" else side] += 20
    return HeldOut(images, labels, "made images")


def network(bright: str) -> dict[str, Any]:
    """Return signatures of a network that compares the two halves."""

    def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
        grey = tf.reduce_mean(tf.cast(image, tf.float32), axis=3)
        halves = tf.split(grey, 2, axis=2 if bright == "left" else 1)
        first = tf.sigmoid(tf.reduce_mean(halves[0], axis=(1, 2)) - tf.reduce_mean(halves[1], axis=(1, 2)))
        return {"probabilities": tf.stack([1 - first, first], axis=1)}

    return {"serving_uint8": answer}


@pytest.mark.parametrize(("bright", "automatic"), [("top", 6), ("left", 1)])
def test_photographs_get_several_views_unless_mirror_images_are_another_class(bright, automatic):
    """A mirrored b is a d: with the mean of both, such a version would be right half of the time."""
    measured = measure_views(network(bright), half(bright))
    assert measured.accuracy > 0.9
    assert (measured.automatic, measured.images, measured.source) == (automatic, 400, "made images")
    assert (measured.accuracy_with_mirror > 0.9) is (automatic == 6)


def test_without_labels_or_with_few_images_nothing_is_measured():
    """`auto` is then a single view."""
    few, unlabelled = half("top", 49), HeldOut(half("top").images, None, "comparison images")
    assert [measure_views(network("top"), held_out) for held_out in (few, unlabelled)] == [None] * 2
