"""Views of one model input (test-time augmentation): the image, its mirror image, and both moved by one pixel.

A version that answers with the mean of several views is right more often, and takes as many times longer.
"""

from __future__ import annotations

import numpy as np

from cifar.errors import BadParameter

ALLOWED_VIEWS = (1, 2, 6)
"""The numbers of views that can be asked for."""
_ONE_PIXEL = ((1, 1), (1, 1), (0, 0))
_MIN_PROBABILITY = 1e-30
"""Replaces a probability of zero before its logarithm is taken; close to the smallest float32."""


def checked_views(views: int | None) -> int:
    """Return a valid number of views; None for the default, 1.

    Raises:
        BadParameter: another number than 1, 2 or 6.
    """
    if views is None:
        return 1
    if views not in ALLOWED_VIEWS:
        raise BadParameter(f"views must be 1, 2 or 6; got {views}.")
    return views


def views_of(image: np.ndarray, views: int) -> np.ndarray:
    """Return the views of one image.

    Args:
        image: `(height, width, channels)` of any size.
        views: 1 for the image; 2 for the image and its mirror image; 6 for both, each also moved by one pixel to the lower right
            and to the upper left. The gap is filled by reflection at the border. Source: KellerJordan/cifar10-airbench, `tta_level=2`.

    Returns:
        `(views, height, width, channels)`. The first is the image itself.
    """
    if views == 1:
        return image[None]
    sides = [image]
    if views == 6:
        around = np.pad(image, _ONE_PIXEL, "reflect")
        sides += [around[:-2, :-2], around[2:, 2:]]
    one_side = np.stack(sides)
    return np.concatenate([one_side, one_side[:, :, ::-1]])


def mean_of_views(rows: np.ndarray, classes: int, *, multi_label: bool = False) -> np.ndarray:
    """Return the mean of the answers to the views of an image: the mean of the logits, and of the out-of-distribution score.

    The mean of the probabilities is right as often, but underconfident (docs/decisions.md has the figures).

    Args:
        rows: `(..., views, columns)` `float32`, rows of `Predictor.answers`.
        classes: number of columns with probabilities.
        multi_label: whether each class has a probability of its own. Otherwise the result's probabilities add up to 1.

    Returns:
        `(..., columns)` `float32`.
    """
    if rows.shape[-2] == 1:
        return rows[..., 0, :]
    probabilities = rows[..., :classes]
    likely = _geometric_mean(probabilities)
    total = likely + _geometric_mean(1 - probabilities) if multi_label else likely.sum(axis=-1, keepdims=True)
    return np.concatenate([likely / total, rows[..., classes:].mean(axis=-2)], axis=-1)


def _geometric_mean(probabilities: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.exp(np.log(np.maximum(probabilities, _MIN_PROBABILITY)).mean(axis=-2))
    return mean
