"""Views of one picture (test-time augmentation), and the mean of a version's answers to them.

A version that answers with the mean of several views is right more often, and takes as many times longer.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cifar.errors import BadParameter
from cifar.images.spec import ImageSpec, Views

ALLOWED_VIEWS: tuple[Views, ...] = (1, 2, 6, "auto")
MAX_VIEWS: Literal[6] = 6
_BY_TEXT = {str(views): views for views in ALLOWED_VIEWS}
_PHOTOGRAPH = 2
"""A picture is treated as a photograph if both sides have at least this many times the pixels of the model's input."""
_LARGER = 1.25
"""The crops are cut from the picture at this many times the input's size: each shows 80 % of its width and height."""
_ONE_PIXEL = ((1, 1), (1, 1), (0, 0))
_MIN_PROBABILITY = 1e-30
"""Replaces a probability of zero before its logarithm is taken; close to the smallest float32."""


def checked_views(views: object) -> Views:
    """Parse a parameter of a form, a JSON body, a query or the page; None and "" stand for the default, 1.

    Raises:
        BadParameter: it is none of `ALLOWED_VIEWS`, as a number or as text.
    """
    if views is None or views == "":
        return 1
    if (found := _BY_TEXT.get(str(views))) is None:
        raise BadParameter(f"views must be 1, 2, 6 or auto; got {str(views)[:40]}.")
    return found


def is_photograph(width: int, height: int, spec: ImageSpec) -> bool:
    """Return whether a picture of this size in pixels is large enough for crops: from 64 x 64 for an input of 32 x 32."""
    return width >= _PHOTOGRAPH * spec.width and height >= _PHOTOGRAPH * spec.height


def larger(spec: ImageSpec) -> ImageSpec:
    """Return the size of the picture that `with_crops` needs."""
    return ImageSpec(height=round(_LARGER * spec.height), width=round(_LARGER * spec.width), channels=spec.channels)


def with_crops(image: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Return six views of a photograph: the image, its mirror image, and the four corners of the photograph.

    Args:
        image: the model's input, `(height, width, channels)`.
        scaled: the same photograph at the size that `larger` returns.

    Returns:
        `(6, height, width, channels)`. The first is the image itself.
    """
    height, width = image.shape[:2]
    corners = [
        rows[:, part] for rows in (scaled[:height], scaled[-height:]) for part in (slice(width), slice(-width, None))
    ]
    return np.stack([image, image[:, ::-1], *corners])


def views_of(image: np.ndarray, views: int) -> np.ndarray:
    """Return views of a small picture, of which the model's input shows all there is.

    Args:
        image: `(height, width, channels)` of any size.
        views: 1 for the image; 2 for the image and its mirror image; 6 for both, each also moved by one pixel to the lower right
            and to the upper left. The gap is filled by reflection at the border. Source: KellerJordan/cifar10-airbench, `tta_level=2`.

    Returns:
        `(views, height, width, channels)`. The first is the image itself, the second its mirror image.
    """
    if views == 1:
        return image[None]
    sides = [image]
    if views == MAX_VIEWS:
        around = np.pad(image, _ONE_PIXEL, "reflect")
        sides += [around[:-2, :-2], around[2:, 2:]]
    return np.stack([view for side in sides for view in (side, side[:, ::-1])])


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
