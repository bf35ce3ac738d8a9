"""Derives from a model's layers which pixel values it was trained on, if the layers leave no doubt."""

from __future__ import annotations

import logging
import re
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

log = logging.getLogger(__name__)

_PROBES = (-1.0, 0.0, 0.5, 1.0, 127.5, 255.0)
"""Values of the uniform images that are sent through the layers: the ends and the middle of each range."""

_RANGES = {BYTES: (0.0, 127.5, 255.0), UNIT: (0.0, 0.5, 1.0), SYMMETRIC: (-1.0, 0.0, 1.0)}

_ENDS = {
    BYTES: ((0, 1), (-1, 1), (255, 0)),
    UNIT: ((-1, 1), (-0.5, 0.5), (0, 255), (-127.5, 127.5), (1, 0)),
    SYMMETRIC: ((0, 1), (0, 255)),
}
"""The values of black and white after the usual conversions of each range. These conversions make no sense for other ranges."""

_PUBLISHED = {
    CAFFE: r"resnet(50|101|152)|vgg(16|19)",
    TORCH: r"densenet\d+",
    SYMMETRIC: r"mobilenet(v2)?_[\d.]+_.*|resnet\d+v2|xception|inception.*|nasnet.*",
}
"""Patterns of the names that `keras.applications` gives its networks, by the preparation that they were published with."""


@dataclass(frozen=True)
class Derived:
    """The preparation that the layers imply, and the reason."""

    preparation: Preparation | None
    """None if the layers do not tell."""
    reason: str


@dataclass(frozen=True)
class _Mapping:
    """The outputs of a layer for images of one colour. Outputs that do not depend on the image are left out."""

    layer: str
    results: dict[float, np.ndarray]
    """The outputs `(numbers,)` for each value of the image."""
    channel: np.ndarray
    """`(numbers,)`, the channel of the image on which each depends most."""
    channels: int

    def at(self, preparation: Preparation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the results for black, the middle and white."""
        low, middle, high = _RANGES[preparation]
        return self.results[low], self.results[middle], self.results[high]


def derive(classifier: Classifier) -> Derived:
    """Return the range of the pixels that the first arithmetic operations show, and the reason.

    The arithmetic must fit exactly one range: dividing by 255 makes sense for 0 to 255 only, and `2 * x - 1` for 0 to 1 only.
    """
    if classifier.integer:
        return Derived(BYTES, "the model takes integers")
    try:
        mappings, stopped_at = _mappings(classifier)
    except Exception as error:  # a layer may raise or return anything; without a result, the user is asked
        log.debug("The layers cannot be followed:", exc_info=error)
        return Derived(None, f"its layers cannot be followed ({type(error).__name__})")
    if bgr := next((mapping.layer for mapping in mappings if _expects_bgr(mapping)), None):
        return Derived(
            None, f"{bgr} subtracts ImageNet's means in the order blue, green, red, as for --preprocessing=bgr:0,255"
        )
    found: dict[Preparation, str] = {}
    for mapping in mappings:
        fitting = [each for each in _RANGES if _fits(each, mapping)]
        if len(fitting) == 1:
            found.setdefault(fitting[0], _shown(mapping, fitting[0]))
    if len(found) == 1:
        (only,) = found
        # The last operation has the final values: `/ 127.5` may be followed by `- 1`. An identity operation does not count.
        after = [_shown(each, only) for each in mappings if _is_linear(*each.at(only)) and not _keeps(each)]
        return Derived(only, after[-1] if after else found[only])
    before = f"before {stopped_at} " if stopped_at else ""
    nothing = f"no layer {before}shows it{_published(classifier.layers)}"
    return Derived(None, f"its layers contradict each other: {'; '.join(found.values())}" if found else nothing)


def _published(model: Any) -> str:
    """Return a hint if a model contains a network of `keras.applications`. Its author may have used another preparation."""
    name = getattr(model, "name", "").casefold()
    for preparation, names in _PUBLISHED.items():
        if re.fullmatch(names, name):
            return f" ({name} was published with {preparation.option})"
    return next(
        filter(None, (_published(each) for each in getattr(model, "layers", ()) if hasattr(each, "layers"))), ""
    )


def _mappings(classifier: Classifier) -> tuple[list[_Mapping], str]:
    """Return the mapping of each operation before the first one with learned weights, and the name of that one."""
    height, width, channels = classifier.image.shape
    shape = (height, width, channels + (classifier.alpha is not None))
    flat = [np.full(shape, value, np.float32) for value in _PROBES]
    coloured = list(255 * np.eye(shape[-1], dtype=np.float32)[:channels, None, None] * np.ones(shape, np.float32))
    steps, stopped_at = walk(classifier, [*flat, *coloured])
    mappings = [_mapping(step) for step in steps]
    return [each for each in mappings if each], stopped_at


def _mapping(step: Step) -> _Mapping | None:
    """Return the mapping of a layer from its outputs for the images, or None if they are constant or not finite."""
    results, coloured = np.split(step.results, [len(_PROBES)])
    depends = ~np.isclose(results[1], results[-1], rtol=1e-6, atol=1e-6)  # padding, for example, does not
    if not depends.any() or not np.isfinite(results).all():
        return None
    changes = np.abs(coloured - results[1])
    rows = np.unique(np.vstack([results, changes.argmax(axis=0)])[:, depends].round(7), axis=1)
    by_probe = dict(zip(_PROBES, rows[:-1], strict=True))
    return _Mapping(step.name, by_probe, rows[-1].astype(int), len(coloured))


def _fits(preparation: Preparation, mapping: _Mapping) -> bool:
    """Return whether a layer turns this range into one that networks are usually trained on."""
    black, middle, white = mapping.at(preparation)
    span = np.abs(white - black)
    if not _is_linear(black, middle, white):
        return False  # for example, a clip
    if any(_close(black, low, span) and _close(white, high, span) for low, high in _ENDS[preparation]):
        return True
    if preparation is UNIT and mapping.channels == 3 and _is_imagenet(black, white, mapping.channel):
        return True
    divided = (black == 0) & (np.isclose(span, 1, rtol=0.02) | np.isclose(span, 2, rtol=0.02))
    centred = (black < 0) & (white > 0)
    standardised = centred & (span >= 0.85) & (span <= 10) & (np.maximum(-black, white) <= 6)
    subtracted = centred & np.isclose(span, 255, rtol=0.01) & (black <= -50) & (white >= 50)
    return preparation is BYTES and bool((divided | standardised | subtracted).all())


def _is_linear(black: np.ndarray, middle: np.ndarray, white: np.ndarray) -> bool:
    return bool((np.abs(middle - (black + white) / 2) <= 0.01 * np.abs(white - black)).all())


def _keeps(mapping: _Mapping) -> bool:
    return all(np.array_equal(values, np.full_like(values, value)) for value, values in mapping.results.items())


def _close(values: np.ndarray, expected: Any, span: np.ndarray) -> bool:
    return bool((np.abs(values - expected) <= 0.01 * span).all())


def _is_imagenet(black: np.ndarray, white: np.ndarray, channel: np.ndarray) -> bool:
    """Return whether ImageNet's means are subtracted from red, green and blue, without ("caffe") or with scaling ("torch")."""
    means, stds = np.asarray(IMAGENET_MEAN)[channel], np.asarray(IMAGENET_STD)[channel]
    caffe = np.asarray(CAFFE_MEAN)[channel]
    span = np.abs(white - black)
    torch = _close(black, -means / stds, span) and _close(white, (1 - means) / stds, span)
    return torch or (_close(black, -caffe, span) and _close(white, 255 - caffe, span))


def _expects_bgr(mapping: _Mapping) -> bool:
    """Return whether ImageNet's mean of blue is subtracted from red and vice versa: the model was trained on BGR images."""
    if mapping.channels != 3:
        return False
    black, _, white = mapping.at(BYTES)
    mean = -black / (white - black) * 255  # in units of the input, so of 0..255 or of 0..1
    exchanged = np.select([mapping.channel == 0, mapping.channel == 2], [CAFFE_MEAN[2], CAFFE_MEAN[0]], np.nan)
    blue_or_red = ~np.isnan(exchanged)
    off = np.minimum(np.abs(mean - exchanged), np.abs(255 * mean - exchanged))[blue_or_red]
    return bool(off.size and (off < 0.5).all())


def _shown(mapping: _Mapping, preparation: Preparation) -> str:
    black, _, white = mapping.at(preparation)
    return f"{mapping.layer} turns {preparation.name} into {black.min():.3g},{white.max():.3g}"
