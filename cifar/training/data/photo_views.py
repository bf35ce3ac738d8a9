"""Augmentation that makes training images look like photographs that were scaled down, so that a network learns such pictures too.

CIFAR's pictures are sharp, well lit and of one subject that fills the frame. Pictures that people send differ in all of this:
zoom and shape, scaling filter, light, blur, noise and compression (after Hendrycks and Dietterich 2019, arXiv:1903.12261, whose
measurements show how much accuracy each of them costs a network that was trained without).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

_Change = Callable[[Image.Image, np.random.Generator], Image.Image]

_FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_GREY_SHARE = 0.3
"""Share of the noisy images whose three channels have the same noise."""


def photo_views(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a changed copy of images `(n, height, width, 1 or 3)` `uint8`: with some probability each zoomed, lit, blurred, noisy, compressed, in this order."""
    changed = _some(images, 0.6, _zoom, random)
    changed = _light(changed, 0.45, random)
    changed = _some(changed, 0.3, _blur, random)
    changed = _some(changed, 0.1, _sharpen, random)
    changed = _noise(changed, 0.4, random)
    return _some(changed, 0.4, _compress, random)


def _some(images: np.ndarray, share: float, change: _Change, random: np.random.Generator) -> np.ndarray:
    """Let Pillow change a random share of the images."""
    changed = images.copy()
    grey = images.shape[3] == 1
    for position in np.flatnonzero(random.random(len(images)) < share):
        image = Image.fromarray(images[position, :, :, 0] if grey else images[position])
        changed[position] = np.asarray(change(image, random)).reshape(images.shape[1:])
    return changed


def _zoom(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Cut out half of the area or more, or a little more than there is (the border is mirrored), in another shape."""
    side, shape = np.sqrt(random.uniform(0.5, 1.1)), np.exp(random.uniform(-0.125, 0.125))
    edge = max(image.size) // 8
    padded = np.asarray(image)
    padded = np.pad(padded, ((edge, edge), (edge, edge), (0, 0))[: padded.ndim], "reflect")
    wide, high = (min(1 + edge / max(image.size), part) for part in (side * shape, side / shape))
    box = []
    for size, part in zip(image.size, (wide, high), strict=True):
        start = edge + size * ((1 - part) / 2 + random.uniform(-0.5, 0.5) * abs(1 - part))
        box.append((max(0.0, start), min(size + 2 * edge, max(0.0, start) + size * part)))
    (left, right), (top, bottom) = box
    return Image.fromarray(padded).resize(
        image.size, _FILTERS[random.integers(len(_FILTERS))], (left, top, right, bottom)
    )


def _blur(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.4) * image.height / 32))


def _sharpen(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(image.height / 32, int(random.uniform(30, 120)), 0))


def _compress(image: Image.Image, random: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(15, 96)))
    return Image.open(buffer)


def _light(images: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and the tint of the light."""
    chosen = np.flatnonzero(random.random(len(images)) < share)

    def factors(low: float, high: float, channels: int = 1) -> np.ndarray:
        return np.exp(random.uniform(low, high, (len(chosen), 1, 1, channels))).astype(np.float32)

    lit = images[chosen] * factors(np.log(0.35), np.log(1.6))
    mean = lit.mean((1, 2, 3), keepdims=True)
    lit = mean + (lit - mean) * factors(-0.5, 0.3)
    grey = lit.mean(3, keepdims=True)
    lit = (grey + (lit - grey) * factors(np.log(0.4), np.log(1.5))) * factors(-0.12, 0.12, images.shape[3])
    return _with(images, chosen, lit)


def _noise(images: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Add normal noise of up to 20 levels."""
    chosen = np.flatnonzero(random.random(len(images)) < share)
    noise = random.standard_normal((len(chosen), *images.shape[1:]), np.float32)
    grey = random.random(len(chosen)) < _GREY_SHARE
    noise[grey] = noise[grey][..., :1]
    return _with(
        images, chosen, images[chosen] + noise * random.uniform(0, 20, (len(chosen), 1, 1, 1)).astype(np.float32)
    )


def _with(images: np.ndarray, chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    changed = images.copy()
    changed[chosen] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return changed
