"""Why the model says what it says: which part of an image the score of a label rests on.

A window slides over the image and takes out what is beneath it, by blurring. Where that lowers the label's score most, the
map is hottest. This needs answers only, no gradients and no layers, so it works for every exported model on every engine.
docs/explain.md compares it with other methods.

Source: M. Zeiler and R. Fergus, Visualizing and Understanding Convolutional Networks, 2013 (https://arxiv.org/abs/1311.2901).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from PIL import Image, ImageFilter

from cifar.cpus import available_cpus
from cifar.errors import BadParameter
from cifar.models.predictor import Predictor

STEPS = 8
"""The window moves by an eighth of the image's side, from edge to edge: nine places by nine."""
_WINDOW_STEPS = 3
"""Its side, in steps."""
_BLUR_STEPS = 1
"""The blur's radius, in steps: what is taken out keeps its colours and loses its shapes."""
_LEAST = 1e-12
_OPACITY = 0.6
# every 16th colour of Matplotlib's "inferno", which gets lighter evenly from black to yellow
_COLOURS = np.frombuffer(
    bytes.fromhex(
        "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4"
    ),
    np.uint8,
).reshape(-1, 3)


def explain(predictor: Predictor, pixels: np.ndarray, label_index: int) -> np.ndarray:
    """How much each pixel matters for one label, by asking the model `(STEPS + 1) ** 2 + 1` times.

    Args:
        predictor: the version to ask.
        pixels: the model's input, `(height, width, channels)` `uint8`, as `preprocess` yields.
        label_index: the label's place among the version's classes.

    Returns:
        `(height, width)` `float32` in [0, 1]: 1 at what the label's score rests on most, 0 at what speaks against the
        label or has no part in it. All 0 when nothing that is taken out lowers the score.

    Raises:
        BadParameter: there is no such label, or `pixels` is no input of the model's.
    """
    check_label(predictor, label_index)
    images = np.stack([pixels, *occluded(pixels)])
    shares = np.array_split(images, available_cpus())
    with ThreadPoolExecutor(len(shares)) as threads:
        rows = np.concatenate(list(threads.map(predictor.probabilities, shares)))
    return heat(rows, label_index, *pixels.shape[:2])


def check_label(predictor: Predictor, label_index: int) -> None:
    """Refuse a number that is no label's.

    Raises:
        BadParameter: says which there are.
    """
    classes = len(predictor.class_names)
    if not 0 <= label_index < classes:
        raise BadParameter(f"A label's index is from 0 to {classes - 1}; got {label_index}.")


def occluded(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """The image without what is beneath the window, at each of its places.

    Args:
        pixels: `(height, width, channels)` `uint8`.
    """
    height, width = pixels.shape[:2]
    radius = min(height, width) * _BLUR_STEPS / STEPS
    blurred = np.asarray(Image.fromarray(pixels.squeeze()).filter(ImageFilter.GaussianBlur(radius)))
    blurred = blurred.reshape(pixels.shape)
    for rows, columns in product(_spans(height), _spans(width)):
        image = pixels.copy()
        image[rows, columns] = blurred[rows, columns]
        yield image


def _spans(side: int) -> list[slice]:
    """The places of the window along one side; at the edges it is cut off."""
    reach = side * _WINDOW_STEPS / STEPS / 2
    return [slice(max(0, round(at - reach)), round(at + reach)) for at in _centres(side)]


def _centres(side: int) -> np.ndarray:
    return np.linspace(0, side, STEPS + 1)


def heat(probabilities: np.ndarray, label_index: int, height: int, width: int) -> np.ndarray:
    """The map, from the model's answers.

    What counts is the fall of the label's log-odds: of a score of 0.9999 the probability hardly moves, the odds do. A
    pixel's heat is the mean over all windows, the nearer ones counting for more.

    Args:
        probabilities: of the image, then of each of `occluded`.
        label_index: the label's place among the classes.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    of_label = probabilities[:, label_index].astype(np.float64)
    of_others = np.delete(probabilities, label_index, axis=1).sum(axis=1, dtype=np.float64)
    odds = np.log(np.maximum(of_label, _LEAST)) - np.log(np.maximum(of_others, _LEAST))
    falls = (odds[0] - odds[1:]).reshape(STEPS + 1, STEPS + 1)
    map_ = np.maximum(_nearness(height) @ falls @ _nearness(width).T, 0)
    return np.asarray(map_ / (map_.max() or 1), np.float32)


def _nearness(side: int) -> np.ndarray:
    """How much each place of the window counts for each pixel of a side: `(side, STEPS + 1)`; rows sum to 1."""
    distance = (np.arange(side) + 0.5)[:, None] - _centres(side)
    weights = np.exp(-0.5 * (distance * STEPS / side) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def overlay(picture: np.ndarray, heat: np.ndarray) -> bytes:
    """Lay a heat map over the picture that it explains.

    Args:
        picture: `(rows, columns, 3)` `uint8`, of any size: the heat is stretched to it, as the picture was squashed for
            the model. Its own colours become grey, so that those of the map are the only ones.
        heat: as `explain` gives it.

    Returns:
        A PNG of the picture's size. Dark is cold, light is hot, and in between lightness rises evenly.
    """
    rows, columns = picture.shape[:2]
    level = np.asarray(Image.fromarray(heat).resize((columns, rows), Image.Resampling.BICUBIC)).clip(0, 1)
    anchors = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(level, anchors, channel) for channel in _COLOURS.T], axis=2)
    grey = np.asarray(Image.fromarray(picture).convert("L"))[..., None]
    mixed = np.rint(_OPACITY * colours + (1 - _OPACITY) * grey).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(mixed).save(buffer, "PNG")
    return buffer.getvalue()
