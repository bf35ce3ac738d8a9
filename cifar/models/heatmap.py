"""Occlusion sensitivity: a heat map of the image regions that a label's score depends on.

A window slides over the image and blurs the part beneath it. The more this lowers the label's score, the hotter the map is
there. The method needs only answers of the model, no gradients and no layers, so it works for every exported model on every
engine. This module makes the occluded images and turns the answers into a map;
`cifar.serving.inference.heatmaps.heat_map` asks the model. docs/explain.md compares the method with others.

Source: M. Zeiler and R. Fergus, Visualizing and Understanding Convolutional Networks, 2013, section 4.2
(https://arxiv.org/abs/1311.2901). They cover the window's part of the image with grey instead of blurring it.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from PIL import Image, ImageFilter

from cifar.format import png

STEPS = 8
"""The window moves in steps of an eighth of the image's side, from edge to edge: nine positions by nine."""
_WINDOW_STEPS = 3
"""Side of the window, in steps."""
_BLUR_STEPS = 1
"""Radius of the blur, in steps. The blurred part keeps its colours and loses its shapes."""
_MIN_PROBABILITY = 1e-12
_MIN_RESIDUAL = 1e-6
"""Smallest `1 - p` of a multi-label version. In `float32`, smaller differences from 1 are rounding."""
_OPACITY = 0.6
# every 16th colour of Matplotlib's "inferno", whose lightness rises evenly from black to yellow
_COLOURS = np.frombuffer(
    bytes.fromhex(
        "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4"
    ),
    np.uint8,
).reshape(-1, 3)


def occlusions(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the image, followed by a copy for each position of the window, blurred beneath the window.

    These are `1 + (STEPS + 1) ** 2` images like `pixels`, the model's input, `(height, width, channels)` `uint8`.
    """
    height, width = pixels.shape[:2]
    radius = min(height, width) * _BLUR_STEPS / STEPS
    blurred = np.asarray(Image.fromarray(pixels.squeeze()).filter(ImageFilter.GaussianBlur(radius)))
    blurred = blurred.reshape(pixels.shape)
    images = [pixels]
    for rows, columns in product(_windows(height), _windows(width)):
        image = pixels.copy()
        image[rows, columns] = blurred[rows, columns]
        images.append(image)
    return images


def _windows(side: int) -> list[slice]:
    """Return the window's positions along one side of the image. At the edges the window is cut off."""
    reach = side * _WINDOW_STEPS / STEPS / 2
    return [slice(max(0, round(at - reach)), round(at + reach)) for at in _centres(side)]


def _centres(side: int) -> np.ndarray:
    return np.linspace(0, side, STEPS + 1)


def heat(
    probabilities: np.ndarray, label_index: int, height: int, width: int, *, multi_label: bool = False
) -> np.ndarray:
    """Compute the map from the model's answers.

    The fall of the label's log-odds is measured, not of its probability: a probability of 0.9999 hardly moves, its odds do.
    A pixel's heat is a weighted mean over all windows, in which windows near the pixel weigh more.

    Args:
        probabilities: `(1 + (STEPS + 1) ** 2, classes)`, the answers to `occlusions`.
        label_index: position of the label among the classes.
        height: rows of the image.
        width: columns of the image.
        multi_label: whether each class has a probability of its own. Its odds then do not depend on the other classes.

    Returns:
        `(height, width)` `float32` in [0, 1]. The hottest pixel is 1. Where occlusion does not lower the score, or raises
        it, the map is 0; it is 0 everywhere when no occlusion lowers the score.
    """
    of_label = probabilities[:, label_index].astype(np.float64)
    if multi_label:
        of_label = np.minimum(of_label, 1 - _MIN_RESIDUAL)
        of_others = 1 - of_label
    else:
        of_others = np.delete(probabilities, label_index, axis=1).sum(axis=1, dtype=np.float64)
    log_odds = np.log(np.maximum(of_label, _MIN_PROBABILITY)) - np.log(np.maximum(of_others, _MIN_PROBABILITY))
    falls = (log_odds[0] - log_odds[1:]).reshape(STEPS + 1, STEPS + 1)
    map_ = np.maximum(_weights(height) @ falls @ _weights(width).T, 0)
    return np.asarray(map_ / (map_.max() or 1), np.float32)


def _weights(side: int) -> np.ndarray:
    """Return the weight of each window position for each pixel of a side: `(side, STEPS + 1)`; each row sums to 1."""
    distance = (np.arange(side) + 0.5)[:, None] - _centres(side)
    weights = np.exp(-0.5 * (distance * STEPS / side) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def overlay(picture: np.ndarray, heat: np.ndarray) -> bytes:
    """Draw a heat map over the picture that it explains.

    Args:
        picture: `(rows, columns, 3)` `uint8`, of any size. The map is stretched to its size, which reverses the squashing
            for the model. The picture is turned to grey, so that all colours come from the map.
        heat: as `heat` returns it.

    Returns:
        A PNG of the picture's size. Hot regions are light, cold ones dark; lightness rises evenly with heat.
    """
    rows, columns = picture.shape[:2]
    level = np.asarray(Image.fromarray(heat).resize((columns, rows), Image.Resampling.BICUBIC)).clip(0, 1)
    anchors = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(level, anchors, channel) for channel in _COLOURS.T], axis=2)
    grey = np.asarray(Image.fromarray(picture).convert("L"))[..., None]
    return png(np.rint(_OPACITY * colours + (1 - _OPACITY) * grey).astype(np.uint8))
