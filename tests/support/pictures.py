"""Images and image files for tests. The hostile ones are named by their property."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cifar.settings import ROOT


def example_pixels(name: str) -> np.ndarray:
    """Return an example of the page as `(32, 32, 3)` `uint8`."""
    with Image.open(ROOT / "examples" / f"{name}.jpg") as image:
        return np.asarray(image.convert("RGB"))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """Return the file that Pillow writes for an image."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 48, height: int = 40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image of random pixels."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return (
        Image.fromarray(pixels.squeeze())
        if mode in {"L", "RGB", "RGBA", "LA"}
        else Image.fromarray(pixels).convert(mode)
    )


def corners() -> Image.Image:
    """Return a 64x64 image with another colour in each quarter, which shows its orientation."""
    image = Image.new("RGB", (64, 64))
    for x, y, colour in ((0, 0, "red"), (32, 0, "lime"), (0, 32, "blue"), (32, 32, "white")):
        image.paste(colour, (x, y, x + 32, y + 32))
    return image


def png_of_100_megapixels() -> bytes:
    """Return a valid PNG of 10,000 x 10,000 black pixels, at most 300 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    compressor = zlib.compressobj(9)
    row = bytes(1 + 3 * 10_000)
    data = b"".join(compressor.compress(row) for _ in range(10_000)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated_jpeg() -> bytes:
    """Return the first half of a JPEG."""
    whole = encoded(noise(256, 256), "JPEG")
    return whole[: len(whole) // 2]


def shape(kind: str, random: np.random.Generator) -> Image.Image:
    """Return a disc, a square or a star of random size, place, rotation and colour, on a noisy background."""
    width, height = (int(side) for side in random.integers(40, 200, 2))
    ground = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    radius = min(width, height) * random.uniform(0.25, 0.45)
    across, down = (random.uniform(radius, side - radius) for side in (width, height))
    corners = {"disc": 40, "square": 4, "star": 10}[kind]
    angles = random.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    radii = radius * np.where((kind == "star") & (np.arange(corners) % 2 == 1), 0.4, 1)
    points = [(across + r * np.cos(a), down + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]
    colour = tuple((int(value) + 128) % 256 for value in ground.getpixel((int(across), int(down))))
    ImageDraw.Draw(ground).polygon(points, fill=colour)
    noisy = np.asarray(ground) + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def shapes_folder(root: Path, *, train: int, test: int) -> Path:
    """Write an image folder with `train` and `test` images of each shape, as JPEG and PNG, and return it."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for kind in ("disc", "square", "star"):
            (folder := root / part / kind).mkdir(parents=True)
            for i in range(count):
                suffix = "png" if i % 2 else "jpeg"
                (folder / f"{i}.{suffix}").write_bytes(encoded(shape(kind, random), suffix))
    return root
