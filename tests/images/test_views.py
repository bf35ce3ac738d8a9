"""`cifar.images.views`: the views of an image and the mean of their answers."""

from __future__ import annotations

import numpy as np
import pytest

from cifar.errors import BadParameter
from cifar.images.views import ALLOWED_VIEWS, checked_views, mean_of_views, views_of


def moved(image: np.ndarray, by: int) -> np.ndarray:
    """Move an image pixel by pixel down and to the right, with reflection at the border."""

    def source(place: int, size: int) -> int:
        place -= by
        if size == 1:
            return 0
        return -place if place < 0 else 2 * (size - 1) - place if place >= size else place

    height, width = image.shape[:2]
    rows = [[image[source(row, height), source(column, width)] for column in range(width)] for row in range(height)]
    return np.array(rows, image.dtype)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (5, 9, 3), (1, 7, 1), (2, 2, 3), (1, 1, 3)])
def test_six_views_are_the_image_and_its_mirror_image_each_also_moved_to_two_sides(shape):
    """This holds for any size and number of channels; the first view is the image, and two views are those without movement."""
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    right = [image, moved(image, 1), moved(image, -1)]
    np.testing.assert_array_equal(views_of(image, 6), [*right, *(view[:, ::-1] for view in right)])
    np.testing.assert_array_equal(views_of(image, 2), [image, image[:, ::-1]])
    np.testing.assert_array_equal(views_of(image, 1), [image])
    assert {views_of(image, views).dtype for views in ALLOWED_VIEWS} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("views", [2, 6])
def test_the_mean_of_probabilities_is_that_of_their_logits(views):
    """The mean of the probabilities would be underconfident. The out-of-distribution score is averaged as it is."""
    logits = np.random.default_rng(views).normal(0, 3, (4, views, 3))
    exponentials = np.exp(logits)
    scores = np.random.default_rng(1).random((4, views, 1))
    softmax = exponentials / exponentials.sum(axis=-1, keepdims=True)
    mean = mean_of_views(np.concatenate([softmax, scores], axis=-1).astype(np.float32), 3)
    expected = np.exp(logits.mean(axis=1)) / np.exp(logits.mean(axis=1)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mean, np.concatenate([expected, scores.mean(axis=1)], axis=1), rtol=1e-4)
    sigmoid = (1 / (1 + np.exp(-logits))).astype(np.float32)
    expected = 1 / (1 + np.exp(-logits.mean(axis=1)))
    np.testing.assert_allclose(mean_of_views(sigmoid, 3, multi_label=True), expected, rtol=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_of_certain_answers_that_contradict_each_other_is_a_number(multi_label):
    """A network can give a probability of exactly zero or one."""
    rows = np.array([[1, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(mean_of_views(rows, 2, multi_label=multi_label), [0.5, 0.5])


@pytest.mark.parametrize("views", [0, 3, -2, 12])
def test_another_number_of_views_is_refused_with_a_sentence(views):
    """The message names the numbers that are allowed."""
    with pytest.raises(BadParameter, match=f"^views must be 1, 2 or 6; got {views}\\.$"):
        checked_views(views)
