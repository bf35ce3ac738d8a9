"""Image files for tests. The hostile ones are named by their property."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 48, height: int = 40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture in which every pixel differs from its neighbours."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return (
        Image.fromarray(pixels.squeeze())
        if mode in {"L", "RGB", "RGBA", "LA"}
        else Image.fromarray(pixels).convert(mode)
    )


def corners() -> Image.Image:
    """A 64x64 picture with another colour in each quarter, to see which way is up."""
    image = Image.new("RGB", (64, 64))
    for x, y, colour in ((0, 0, "red"), (32, 0, "lime"), (0, 32, "blue"), (32, 32, "white")):
        image.paste(colour, (x, y, x + 32, y + 32))
    return image


def png_of_100_megapixels() -> bytes:
    """A complete, valid PNG of 10,000 x 10,000 black pixels in some 300 kB or less."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    compressor = zlib.compressobj(9)
    row = bytes(1 + 3 * 10_000)
    data = b"".join(compressor.compress(row) for _ in range(10_000)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated_jpeg() -> bytes:
    """A JPEG whose second half is missing."""
    whole = encoded(noise(256, 256), "JPEG")
    return whole[: len(whole) // 2]
