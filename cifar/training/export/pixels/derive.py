"""Derive from a model's layers which pixel values it was trained on, where they leave no doubt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar.training.export.pixels.preparation import (
    BYTES,
    CAFFE,
    CAFFE_MEAN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SYMMETRIC,
    TORCH,
    UNIT,
    Preparation,
)
from cifar.training.export.pixels.walk import Step, walk
from cifar.training.export.reading.classifier import Classifier

_PROBES = (-1.0, 0.0, 0.5, 1.0, 127.5, 255.0)
"""Values of flat images: the ends and the middle of each range."""

_MOST_NUMBERS = 10_000
"""Of a large image's numbers, these many are looked at."""

_RANGES = {BYTES: (0.0, 127.5, 255.0), UNIT: (0.0, 0.5, 1.0), SYMMETRIC: (-1.0, 0.0, 1.0)}

_ENDS = {
    BYTES: ((0, 1), (-1, 1), (255, 0)),
    UNIT: ((-1, 1), (-0.5, 0.5), (0, 255), (-127.5, 127.5), (1, 0)),
    SYMMETRIC: ((0, 1), (0, 255)),
}
"""What black and white become in the conversions in common use. None of them makes sense for another range."""


@dataclass(frozen=True)
class Derived:
    """What the layers say of the range."""

    preparation: Preparation | None
    """None where the layers do not tell."""
    reason: str


@dataclass(frozen=True)
class _Mapping:
    """What a layer makes of flat images: for each number that it returns and that depends on the image."""

    layer: str
    normalises: bool
    """Whether it is a Normalization, whose numbers are statistics of images and not round."""
    results: dict[float, np.ndarray]
    """`(numbers,)` by value of the image."""
    channel: np.ndarray
    """`(numbers,)`, the channel of the image on which each depends most."""
    channels: int

    def at(self, preparation: Preparation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the results for black, the middle and white."""
        low, middle, high = _RANGES[preparation]
        return self.results[low], self.results[middle], self.results[high]


def derive(classifier: Classifier) -> Derived:
    """Return the range of the pixels that the first arithmetic on them shows, and the reason.

    The arithmetic must fit exactly one range: dividing by 255 makes sense for 0 to 255 only, and `2 * x - 1` for 0 to 1 only.
    """
    if classifier.integer:
        return Derived(BYTES, "the model takes integers")
    if not getattr(classifier.layers, "inputs", None):
        return Derived(None, "the layers of the model cannot be seen")
    try:
        mappings, stopped_at = _mappings(classifier)
    except Exception as error:  # a layer may raise and return anything; then the range is asked
        return Derived(None, f"its layers cannot be followed ({type(error).__name__})")
    if bgr := next((mapping.layer for mapping in mappings if _expects_bgr(mapping)), None):
        return Derived(
            None, f"{bgr} subtracts ImageNet's means in the order blue, green, red, as for --preprocessing=bgr:0,255"
        )
    found: dict[Preparation, str] = {}
    for mapping in mappings:
        fitting = [each for each in _RANGES if _fits(each, mapping)]
        if mapping.normalises and not fitting:
            fitting = [each for each in _RANGES if _is_plausible(each, mapping)]
        if len(fitting) == 1:
            found.setdefault(fitting[0], f"{mapping.layer} turns {fitting[0].name} into {_shown(mapping, fitting[0])}")
    if len(found) == 1:
        return Derived(*found.popitem())
    nothing = f"no layer before {stopped_at} shows it{_published(classifier.layers)}"
    return Derived(None, f"its layers contradict each other: {'; '.join(found.values())}" if found else nothing)


_PUBLISHED = {
    CAFFE: r"resnet(50|101|152)|vgg(16|19)",
    TORCH: r"densenet\d+",
    SYMMETRIC: r"mobilenet(v2)?_[\d.]+_.*|resnet\d+v2|xception|inception.*|nasnet.*",
}
"""Names that `keras.applications` gives its networks, by the preparation that they were published with."""


def _published(model: Any) -> str:
    """Return a hint if a model holds a network of `keras.applications`; whoever trained it may have prepared otherwise."""
    name = model.name.casefold()
    for preparation, names in _PUBLISHED.items():
        if re.fullmatch(names, name):
            return f" ({name} was published with {preparation.option})"
    return next(filter(None, (_published(each) for each in model.layers if hasattr(each, "layers"))), "")


def _mappings(classifier: Classifier) -> tuple[list[_Mapping], str]:
    """Return the mapping of each layer before the learned ones, and the name of the first learned one."""
    model = classifier.layers
    sizes = iter((classifier.image.height, classifier.image.width))
    shape = tuple(next(sizes) if size is None else size for size in model.inputs[0].shape[1:])
    flat = [walk(model, np.full(shape, value, np.float32)) for value in _PROBES]
    coloured = [walk(model, image) for image in _coloured(shape, classifier.image.channels)]
    same_layer = zip(*(walked.steps for walked in (*flat, *coloured)), strict=True)
    mappings = [_mapping(steps[: len(flat)], steps[len(flat) :]) for steps in same_layer]
    return [each for each in mappings if each], (flat[0].stopped_at or ["the output"])[0]


def _coloured(shape: tuple[int, ...], channels: int) -> list[np.ndarray]:
    """Return an image for each channel in which that channel alone is 255."""
    axis = next((axis for axis in (-1, 0) if shape[axis] in {channels, channels + 1}), None)
    if axis is None or channels == 1:
        return [np.full(shape, 255, np.float32)]
    images = np.zeros((channels, *shape), np.float32)
    for channel in range(channels):
        np.moveaxis(images[channel], axis, -1)[..., channel] = 255
    return list(images)


def _mapping(flat: Sequence[Step], coloured: Sequence[Step]) -> _Mapping | None:
    """Return the mapping of a layer from what it made of each image, or None if it returns constants or no numbers."""
    results = np.stack([step.values.ravel() for step in flat])
    depends = np.flatnonzero(~np.isclose(results[1], results[-1], rtol=1e-6, atol=1e-6))  # padding does not
    if not len(depends) or not np.isfinite(results).all():
        return None
    if len(depends) > _MOST_NUMBERS:
        depends = np.random.default_rng(0).choice(depends, _MOST_NUMBERS, replace=False)
    changes = np.abs(np.stack([step.values.ravel() for step in coloured]) - results[1])
    rows = np.unique(np.vstack([results, changes.argmax(axis=0)])[:, depends].round(7), axis=1)
    by_probe = dict(zip(_PROBES, rows[:-1], strict=True))
    return _Mapping(flat[0].layer, flat[0].normalises, by_probe, rows[-1].astype(int), len(coloured))


def _fits(preparation: Preparation, mapping: _Mapping) -> bool:
    """Whether a layer turns this range, and not by accident, into one that networks are trained on."""
    black, middle, white = mapping.at(preparation)
    span = np.abs(white - black)
    if not (np.abs(middle - (black + white) / 2) <= 0.01 * span).all():
        return False  # not linear there, such as a clip
    if any(_close(black, low, span) and _close(white, high, span) for low, high in _ENDS[preparation]):
        return True
    if preparation is UNIT and mapping.channels == 3 and _is_imagenet(black, white, mapping.channel):
        return True
    if mapping.normalises:
        return False  # its numbers are not round
    divided = (span >= 0.85) & (span <= 5.1) & (np.maximum(np.abs(black), np.abs(white)) <= 4)
    subtracted = np.isclose(span, 255, rtol=0.01) & (black <= -50) & (white >= 50)
    return preparation is BYTES and bool((divided | subtracted).all())


def _close(values: np.ndarray, expected: Any, span: np.ndarray) -> bool:
    return bool((np.abs(values - expected) <= 0.01 * span).all())


def _is_imagenet(black: np.ndarray, white: np.ndarray, channel: np.ndarray) -> bool:
    """Whether red, green and blue are shifted and scaled by ImageNet's means: alone ("caffe") or with deviations ("torch")."""
    means, stds = np.asarray(IMAGENET_MEAN)[channel], np.asarray(IMAGENET_STD)[channel]
    caffe = np.asarray(CAFFE_MEAN)[channel]
    span = np.abs(white - black)
    torch = _close(black, -means / stds, span) and _close(white, (1 - means) / stds, span)
    return torch or (_close(black, -caffe, span) and _close(white, 255 - caffe, span))


def _expects_bgr(mapping: _Mapping) -> bool:
    """Whether red is shifted by ImageNet's mean of blue, and blue by that of red: such a model was trained on BGR images."""
    if mapping.channels != 3:
        return False
    black, _, white = mapping.at(BYTES)
    mean = -black / (white - black) * 255  # in units of the input, so of 0..255 or of 0..1
    exchanged = np.select([mapping.channel == 0, mapping.channel == 2], [CAFFE_MEAN[2], CAFFE_MEAN[0]], np.nan)
    blue_or_red = ~np.isnan(exchanged)
    off = np.minimum(np.abs(mean - exchanged), np.abs(255 * mean - exchanged))[blue_or_red]
    return bool(off.size and (off < 0.5).all())


def _is_plausible(preparation: Preparation, mapping: _Mapping) -> bool:
    """Whether a Normalization's mean and deviation can be those of images in this range.

    No data in [low, high] with mean m has a variance above (high - m) * (m - low), and photographs stay well below.
    """
    black, _, white = mapping.at(BYTES)
    deviation = 255 / np.abs(white - black)
    mean = -black / (white - black) * 255
    low, _, high = _RANGES[preparation]
    mean, deviation = (mean - low) / (high - low), deviation / (high - low)
    return bool(
        ((mean > 0) & (mean < 1) & (deviation > 0.02) & (deviation < 0.45) & (deviation**2 < mean * (1 - mean))).all()
    )


def _shown(mapping: _Mapping, preparation: Preparation) -> str:
    black, _, white = mapping.at(preparation)
    return f"{black.min():.3g},{white.max():.3g}"
