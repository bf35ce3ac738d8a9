"""What happens to pictures on their way to a model: compression, blur, noise, light, a subject off the centre.

Ordinary transformations with Pillow and NumPy, each with the strengths it is measured at. All take and give
`(n, height, width, channels)` `uint8` in [0, 255], and give the same for the same input.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

_SEED = 0
_SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Disturbance:
    """One way to make pictures worse."""

    unit: str
    """What a strength is, in words."""
    strengths: tuple[float, ...]
    apply: Callable[[np.ndarray, float], np.ndarray]
    """Images and a strength, to images."""


def shift(images: np.ndarray, rows: int, columns: int, *, mode: str = "edge") -> np.ndarray:
    """Move images down and to the right by whole pixels (negative: up, left).

    Args:
        images: `(n, height, width, channels)`.
        rows: down.
        columns: to the right.
        mode: how the gap is filled, as for `numpy.pad`: `edge` repeats the border, `reflect` mirrors what is inside it.
    """
    height, width = images.shape[1:3]
    around = ((0, 0), (abs(rows),) * 2, (abs(columns),) * 2, (0, 0))
    padded = np.pad(images, around, mode=mode)  # type: ignore[call-overload] # NumPy lists the modes as literals
    top, left = abs(rows) - rows, abs(columns) - columns
    moved: np.ndarray = padded[:, top : top + height, left : left + width]
    return moved


def _one_by_one(change: Callable[[Image.Image, float], Image.Image]) -> Callable[[np.ndarray, float], np.ndarray]:
    def apply(images: np.ndarray, strength: float) -> np.ndarray:
        grey = images.shape[3] == 1
        changed = [change(Image.fromarray(image.squeeze(2) if grey else image), strength) for image in images]
        return np.stack([np.asarray(image) for image in changed]).reshape(images.shape)

    return apply


def _jpeg(image: Image.Image, quality: float) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality), subsampling="4:2:0")
    return Image.open(buffer)


def _noise(images: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(_SEED).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def _off_centre(images: np.ndarray, pixels: float) -> np.ndarray:
    """Each image to one of the four sides, drawn anew for each."""
    sides = np.random.default_rng(_SEED).integers(0, len(_SIDES), len(images))
    moved = np.empty_like(images)
    for number, (rows, columns) in enumerate(_SIDES):
        there = sides == number
        moved[there] = shift(images[there], rows * int(pixels), columns * int(pixels))
    return moved


DISTURBANCES = {
    "JPEG": Disturbance("quality (4:2:0)", (95, 90, 75, 50, 30, 20, 10), _one_by_one(_jpeg)),
    "blur": Disturbance(
        "radius of Pillow's GaussianBlur, pixels",
        (0.5, 1, 1.5, 2, 3),
        _one_by_one(lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius))),
    ),
    "noise": Disturbance("standard deviation, levels of 255", (4, 8, 16, 32, 64), _noise),
    "brightness": Disturbance(
        "factor",
        (0.25, 0.5, 0.75, 1.25, 1.5, 2),
        _one_by_one(lambda image, factor: ImageEnhance.Brightness(image).enhance(factor)),
    ),
    "shift": Disturbance("pixels to one side, border repeated", (1, 2, 4, 8), _off_centre),
}
