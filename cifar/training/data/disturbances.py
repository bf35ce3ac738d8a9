"""Image disturbances (often called corruptions) for measuring robustness: compression, blur, noise, brightness, shift.

Each comes with the strengths at which accuracy is measured. All take and return `(n, height, width, channels)` `uint8` in
[0, 255], and return the same result for the same input.
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
    unit: str
    """The meaning of a strength."""
    strengths: tuple[float, ...]
    apply: Callable[[np.ndarray, float], np.ndarray]
    """Takes images and a strength, returns disturbed images."""


def shift(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Shift images `(n, height, width, channels)` down and to the right by whole pixels; the other way with negative numbers.

    The border is repeated.
    """
    height, width = images.shape[1:3]
    around = ((0, 0), (abs(rows),) * 2, (abs(columns),) * 2, (0, 0))
    padded = np.pad(images, around, mode="edge")
    top, left = abs(rows) - rows, abs(columns) - columns
    moved: np.ndarray = padded[:, top : top + height, left : left + width]
    return moved


def _each_image(change: Callable[[Image.Image, float], Image.Image]) -> Callable[[np.ndarray, float], np.ndarray]:
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


def _shift_to_one_side(images: np.ndarray, pixels: float) -> np.ndarray:
    """Shift each image to one of the four sides, chosen at random."""
    sides = np.random.default_rng(_SEED).integers(0, len(_SIDES), len(images))
    moved = np.empty_like(images)
    for number, (rows, columns) in enumerate(_SIDES):
        chosen = sides == number
        moved[chosen] = shift(images[chosen], rows * int(pixels), columns * int(pixels))
    return moved


DISTURBANCES = {
    "JPEG": Disturbance("quality (4:2:0)", (95, 90, 75, 50, 30, 20, 10), _each_image(_jpeg)),
    "blur": Disturbance(
        "radius of Pillow's GaussianBlur, pixels",
        (0.5, 1, 1.5, 2, 3),
        _each_image(lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius))),
    ),
    "noise": Disturbance("standard deviation, levels of 255", (4, 8, 16, 32, 64), _noise),
    "brightness": Disturbance(
        "factor",
        (0.25, 0.5, 0.75, 1.25, 1.5, 2),
        _each_image(lambda image, factor: ImageEnhance.Brightness(image).enhance(factor)),
    ),
    "shift": Disturbance("pixels to one side, border repeated", (1, 2, 4, 8), _shift_to_one_side),
}
