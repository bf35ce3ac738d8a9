"""The preparation of an image's pixels, with which the model's author trained the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""For red, green and blue in [0, 1]: mode "torch" of `keras.applications`' `preprocess_input`."""

CAFFE_MEAN = (123.68, 116.779, 103.939)
"""For red, green and blue in [0, 255]: mode "caffe", which also exchanges red and blue."""


@dataclass(frozen=True)
class Preparation:
    """Turns pixels in [0, 1] into those that the network was trained on: exchanges red and blue if `bgr`, then scales and shifts."""

    name: str
    """As `--preprocessing` takes it, such as `0,255` or `caffe`."""
    scale: tuple[float, ...]
    """One factor, or one for each channel of the network's input."""
    offset: tuple[float, ...]
    bgr: bool = False
    """True if the network expects blue, green, red."""

    def __call__(self, images: Any) -> Any:
        """Prepare images in [0, 1], `(..., channels)` RGB or grey. Takes arrays and TensorFlow's tensors."""
        import numpy as np  # not above: the command line imports this module to parse an option

        if self.bgr:
            images = images[..., ::-1]
        return images * np.asarray(self.scale, np.float32) + np.asarray(self.offset, np.float32)

    @property
    def input_range(self) -> tuple[float, float] | None:
        """The values of a black and of a white pixel, or None if they differ between channels."""
        if len(self.scale) > 1:
            return None
        return self.offset[0], self.offset[0] + self.scale[0]

    @property
    def white(self) -> float:
        """The largest value that a white pixel has in any channel."""
        return max(offset + scale for scale, offset in zip(self.scale, self.offset, strict=True))

    @property
    def option(self) -> str:
        """The option of the command line that names this preparation."""
        plain = not self.bgr and self.input_range is not None
        return f"--input-range={self.name}" if plain else f"--preprocessing={self.name}"


def range_of(low: float, high: float, *, bgr: bool = False) -> Preparation:
    """Return the preparation that turns black into `low` and white into `high`."""
    return Preparation(f"{'bgr:' if bgr else ''}{low:g},{high:g}", (high - low,), (low,), bgr)


CAFFE = Preparation("caffe", (255.0,) * 3, tuple(-mean for mean in reversed(CAFFE_MEAN)), bgr=True)
TORCH = Preparation(
    "torch",
    tuple(1 / std for std in IMAGENET_STD),
    tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)),
)
BYTES = range_of(0, 255)
UNIT = range_of(0, 1)
SYMMETRIC = range_of(-1, 1)

_NAMED = {"caffe": CAFFE, "torch": TORCH, "tf": SYMMETRIC}


def candidates(channels: int) -> tuple[Preparation, ...]:
    """Return the common preparations for images with this number of channels."""
    return (BYTES, UNIT, SYMMETRIC, *((CAFFE, TORCH) if channels == 3 else ()))


def parse_preparation(text: str) -> Preparation:
    """Return the preparation that the option `--preprocessing` names.

    It is `caffe`, `tf`, `torch`, `LOW,HIGH`, `bgr:LOW,HIGH` or `MEANS/DEVIATIONS`.

    Raises:
        ValueError: `text` is none of these.
    """
    if text in _NAMED:
        return _NAMED[text]
    if "/" in text:
        return _standardised(text)
    numbers = text.removeprefix("bgr:")
    try:
        low, high = map(float, numbers.split(","))
    except ValueError:
        raise ValueError(
            f"expected caffe, tf, torch, LOW,HIGH, bgr:LOW,HIGH or MEANS/DEVIATIONS; got {text!r}"
        ) from None
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(f"LOW must be below HIGH; got {text!r}")
    return range_of(low, high, bgr=numbers != text)


def _standardised(text: str) -> Preparation:
    """Return the preparation that subtracts a mean from pixels 0 to 255 and divides by a deviation: one, or one per channel."""
    try:
        means, deviations = (tuple(map(float, numbers.split(","))) for numbers in text.split("/"))
    except ValueError:
        means, deviations = (), ()
    if len(means) not in {1, 3} or len(means) != len(deviations):
        raise ValueError(f"expected MEANS/DEVIATIONS such as 33.3/78.6 or 125.3,123,113.9/63,62.1,66.7; got {text!r}")
    if not all(map(math.isfinite, means)) or not all(0 < each < math.inf for each in deviations):
        raise ValueError(f"deviations must be above 0; got {text!r}")
    if max(map(abs, means)) <= 1:
        raise ValueError(f"means and deviations are those of pixels from 0 to 255: multiply them by 255; got {text!r}")
    pairs = list(zip(means, deviations, strict=True))
    return Preparation(text, tuple(255 / std for _, std in pairs), tuple(-mean / std for mean, std in pairs))
