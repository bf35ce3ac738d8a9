"""Synthetic outliers made from training images, to fit the out-of-distribution score without real outliers.

Each kind keeps some properties of photographs (colours, textures, edges, the spectrum) and destroys the objects in them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Transformation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def jigsaw(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Cut each image into 2x2 or 4x4 tiles and shuffle them."""
    made = np.empty_like(images)
    for start, parts in ((0, 2), (1, 4)):
        made[start::2] = _shuffled(images[start::2], parts, random)
    return made


def _shuffled(images: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    height, width = images.shape[1] // parts, images.shape[2] // parts
    made = images.copy()  # rows and columns that do not divide evenly keep their pixels
    order = random.permuted(np.tile(np.arange(parts**2), (len(images), 1)), axis=1)
    for position in range(parts**2):
        row, column = divmod(position, parts)
        for tile in range(parts**2):
            chosen = order[:, position] == tile
            from_row, from_column = divmod(tile, parts)
            made[chosen, row * height : (row + 1) * height, column * width : (column + 1) * width] = images[
                chosen, from_row * height : (from_row + 1) * height, from_column * width : (from_column + 1) * width
            ]
    return made


def mosaic(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Join quarters of four images."""
    made = images.copy()
    height, width = images.shape[1] // 2, images.shape[2] // 2
    for row in (0, height):
        for column in (0, width):
            piece = np.roll(images[random.permutation(len(images))], random.integers(0, 16, 2), axis=(1, 2))
            made[:, row : row + height, column : column + width] = piece[:, :height, :width]
    return made


def mixed(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Average two images."""
    made: np.ndarray = ((images.astype(np.uint16) + images[random.permutation(len(images))]) // 2).astype(np.uint8)
    return made


def spectrum(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Combine the amplitudes of an image's spectrum with random phases: the texture stays, the object disappears."""
    noise = np.fft.rfft2(random.standard_normal(images.shape[:3]))[..., None]
    amplitudes = np.abs(np.fft.rfft2(images, axes=(1, 2)))
    texture: np.ndarray = np.fft.irfft2(
        amplitudes * noise / np.maximum(np.abs(noise), 1e-9), s=images.shape[1:3], axes=(1, 2)
    )
    made: np.ndarray = np.clip(texture, 0, 255).astype(np.uint8)
    return made


def tiled(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Repeat one piece of each image by reflection."""
    height, width = images.shape[1:3]
    shift = random.integers(0, height // 2)
    piece = images[:, shift : shift + height // 2, shift : shift + width // 2]
    pad = ((0, 0), (0, height - piece.shape[1]), (0, width - piece.shape[2]), (0, 0))
    return np.pad(piece, pad, mode="symmetric")


def covered(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Cover the middle of each image with a magnified piece of another image."""
    height, width = images.shape[1:3]
    others = images[random.permutation(len(images))]
    top, left = random.integers(0, height // 2), random.integers(0, width // 2)
    piece = others[:, top : top + (height + 2) // 3, left : left + (width + 2) // 3].repeat(2, axis=1).repeat(2, axis=2)
    made = images.copy()
    row, column = (height - piece.shape[1]) // 2, (width - piece.shape[2]) // 2
    made[:, row : row + piece.shape[1], column : column + piece.shape[2]] = piece
    return made


def magnified(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Enlarge a small piece of each image to full size: texture without outlines."""
    height, width = images.shape[1:3]

    def magnify(image: np.ndarray) -> Image.Image:
        share = random.uniform(0.2, 0.4)
        left, top = random.uniform(0, 1 - share, 2) * (width, height)
        box = (left, top, left + share * width, top + share * height)
        return Image.fromarray(image.squeeze()).resize((width, height), Image.Resampling.BICUBIC, box)

    return _stack([magnify(image) for image in images], images)


def swirled(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rotate each image around a point; pixels near the point rotate most."""
    height, width = images.shape[1:3]
    rows, columns = np.mgrid[:height, :width]
    row, column = (random.uniform(0.3, 0.7, (2, len(images))) * np.array([[height], [width]]))[..., None, None]
    radius = np.hypot(rows - row, columns - column)
    turn = (random.uniform(2, 5, len(images)) * random.choice([-1, 1], len(images)))[:, None, None]
    angle = np.arctan2(rows - row, columns - column) + turn * np.exp(-radius / (0.3 * height))
    from_rows = np.clip(np.rint(row + radius * np.sin(angle)), 0, height - 1).astype(int)
    from_columns = np.clip(np.rint(column + radius * np.cos(angle)), 0, width - 1).astype(int)
    made: np.ndarray = images[np.arange(len(images))[:, None, None], from_rows, from_columns]
    return made


def shapes(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw discs, boxes and lines in the colours of an image on a blurred copy of it."""
    height, width = images.shape[1:3]
    canvas = np.array((4 * width, 4 * height))  # four times as large, so that the edges become smooth

    def draw(image: np.ndarray) -> Image.Image:
        picture = Image.fromarray(image.squeeze()).filter(ImageFilter.GaussianBlur(height / 8)).resize(canvas)
        pen = ImageDraw.Draw(picture)
        for _ in range(random.integers(1, 6)):
            ends = np.sort(random.uniform(-0.1, 1.1, (2, 2)), axis=0) * canvas
            pixel = image[random.integers(height), random.integers(width)]
            colour = tuple(pixel.tolist()) if len(pixel) > 1 else int(pixel[0])
            kind = random.integers(3)
            if kind == 0:
                pen.ellipse(ends.ravel().tolist(), fill=colour)
            elif kind == 1:
                pen.rectangle(ends.ravel().tolist(), fill=colour)
            else:
                pen.line(ends.ravel().tolist(), fill=colour, width=int(random.integers(1, height)))
        return picture.resize((width, height), Image.Resampling.BOX)

    return _stack([draw(image) for image in images], images)


def _stack(pictures: list[Image.Image], images: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).reshape(images.shape)


KINDS: tuple[Transformation, ...] = (jigsaw, mosaic, mixed, spectrum, tiled, covered, magnified, swirled, shapes)

_CHUNK = 32
"""Number of images made by one call. Images of one call are cut at the same positions."""


def make_outliers(images: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Make about `count` synthetic outliers from training images `(n, height, width, channels)` `uint8`, the same number of each kind."""
    chunks = max(1, round(count / len(KINDS) / _CHUNK))
    made = [make(images[random.integers(0, len(images), _CHUNK)], random) for make in KINDS for _ in range(chunks)]
    return np.concatenate(made)
