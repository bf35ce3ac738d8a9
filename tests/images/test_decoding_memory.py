"""Memory of decoding: the estimate is above the measured peak, and no file can hide how large its picture is."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from support.pictures import encoded, noise

from benchmarks.decoding_memory import images, measure
from cifar.errors import ImageTooLarge, UnreadableImage
from cifar.images.avif import coded_pixels
from cifar.images.decode import decoding_bytes, open_image, open_picture, preprocess, to_picture
from cifar.images.screening import decodes_row_by_row
from cifar.images.spec import ImageSpec
from cifar.settings import Settings

SPEC = ImageSpec(height=32, width=32, channels=3)
DEFAULT = Settings().max_image_pixels


@pytest.mark.slow
def test_no_format_takes_more_memory_than_it_is_weighed_with():
    """The budget of a server is only kept if the estimate is an upper bound."""
    for (name, payload), small in zip(images(1_500).items(), images(64).values(), strict=True):
        peak, allowed = measure(payload, small)
        assert peak < allowed + 1, (name, peak, allowed)  # a byte a pixel, for what any process allocates


@pytest.mark.parametrize("size", [(8192, 6144), pytest.param((12000, 9000), marks=pytest.mark.slow)])
def test_a_photo_of_a_phone_with_50_to_108_megapixels_is_decoded_by_default(size):
    """Phones call it 50 megapixels, and it has 50.3 million. A baseline JPEG is decoded at an eighth of its size."""
    photo = encoded(Image.new("RGB", size, (200, 100, 50)), "JPEG")
    assert np.abs(preprocess(photo, SPEC, max_pixels=DEFAULT).astype(int) - [200, 100, 50]).max() < 4
    opened = open_picture(photo, longest_side=480, max_pixels=DEFAULT)
    assert max(to_picture(opened, longest_side=480).shape) == 480
    image = open_image(photo, SPEC, max_pixels=DEFAULT)
    assert decoding_bytes(image, photo) < 16 * 1024**2


def test_heif_may_have_twice_as_many_pixels_as_the_limit():
    """Phones store 48 and 50 megapixels so, of which half are under the default. Files of that size take too long to make here."""
    assert DEFAULT > 8192 * 6144 // 2
    preprocess(encoded(Image.new("RGB", (700, 700)), "HEIF"), SPEC, max_pixels=250_000)
    with pytest.raises(ImageTooLarge):
        preprocess(encoded(Image.new("RGB", (720, 700)), "HEIF"), SPEC, max_pixels=250_000)


@pytest.mark.parametrize(
    ("file_format", "options", "side", "accepted"),
    [
        ("PNG", {}, 4_999, True),
        ("PNG", {}, 5_050, False),
        ("WEBP", {"lossless": True, "method": 0}, 5_050, False),
        ("GIF", {}, 5_050, False),
        ("BMP", {}, 5_050, False),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 5_050, False),
        ("JPEG", {"progressive": True}, 7_100, True),
        pytest.param("JPEG", {"progressive": True}, 7_150, False, marks=pytest.mark.slow),
        pytest.param("JPEG", {}, 14_200, False, marks=pytest.mark.slow),
    ],
)
def test_the_default_limit_follows_what_a_format_costs(file_format, options, side, accepted):
    """25.5 million decoded pixels; a progressive JPEG and HEIF cost half as much a pixel, and a baseline JPEG next to nothing."""
    payload = encoded(Image.new("L", (side, side)), file_format, **options)
    if accepted:
        open_image(payload, SPEC, max_pixels=DEFAULT)
    else:
        with pytest.raises(ImageTooLarge, match=f"{side} x {side} pixels"):
            open_image(payload, SPEC, max_pixels=DEFAULT)


def in_separate_scans(jpeg: bytes) -> bytes:
    """Return the head of a baseline JPEG whose first scan has only one of three colours."""
    at = jpeg.index(b"\xff\xda")
    return jpeg[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + jpeg[at + 14 :]


def test_a_jpeg_whose_decoder_keeps_the_whole_image_is_weighed_with_it():
    """A progressive JPEG, and a baseline one with a scan for each colour: decoding at a reduced scale saves nothing there."""
    plain = encoded(noise(640, 480), "JPEG", subsampling=0)
    for jpeg, by_row in (
        (plain, True),
        (encoded(noise(640, 480, "L"), "JPEG"), True),
        (encoded(noise(640, 480), "JPEG", progressive=True), False),
        (in_separate_scans(plain), False),
    ):
        assert decodes_row_by_row(jpeg) is by_row
        weight = decoding_bytes(open_image(jpeg, ImageSpec(height=4, width=4, channels=3), max_pixels=DEFAULT), jpeg)
        assert (weight > 2 * 640 * 480) is not by_row


def tiled_tiff(side: int) -> bytes:
    """Return a 16x16 TIFF with one tile of `side` x `side` pixels."""
    data = zlib.compress(bytes(3 * side) * side, 1)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 2, 277: 3, 322: side, 323: side, 324: 0, 325: len(data)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def test_a_tiff_tile_that_is_much_larger_than_its_image_is_refused():
    """The decoder keeps a whole tile in memory: one of 16,384 pixels a side took 805 MB for an image of 16x16 pixels."""
    assert preprocess(tiled_tiff(256), SPEC, max_pixels=DEFAULT).shape == (32, 32, 3)
    with pytest.raises(UnreadableImage, match=r"tile with more than 2,048 pixels"):
        preprocess(tiled_tiff(4096), SPEC, max_pixels=DEFAULT)


def announcing(avif: bytes, width: int, height: int) -> bytes:
    at = avif.index(b"ispe")
    return avif.replace(avif[at : at + 16], avif[at : at + 8] + struct.pack(">II", width, height))


def test_an_avif_whose_picture_is_larger_than_it_announces_is_refused():
    """The decoder needs memory for the coded size: 3 kB that announced 64x64 pixels took 1 GB, in the event loop."""
    large = encoded(Image.new("RGB", (2000, 2000)), "AVIF", speed=10)
    assert coded_pixels(large) == 2000 * 2000
    with pytest.raises(UnreadableImage, match="larger than it announces"):
        preprocess(announcing(large, 64, 64), SPEC, max_pixels=DEFAULT)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(33, 17), (640, 480)])
def test_the_coded_size_of_an_ordinary_avif_is_its_size(mode, size):
    """Otherwise good photos would be refused."""
    for options in ({}, {"subsampling": "4:4:4"}, {"quality": 100}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}):
        payload = encoded(noise(*size, mode), "AVIF", speed=10, **options)
        assert size[0] * size[1] <= coded_pixels(payload) <= (size[0] + 1) * (size[1] + 1), "encoders pad to even sides"
        assert preprocess(payload, SPEC, max_pixels=DEFAULT).shape == (32, 32, 3)


def test_a_damaged_avif_is_refused_whatever_was_damaged():
    """The walk through its boxes ends, and raises nothing else."""
    payload = encoded(noise(64, 64), "AVIF", speed=10)
    for place in range(min(400, len(payload))):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = payload[:place] + bytes([value]) + payload[place + 1 :]
            with suppress(ValueError):
                assert coded_pixels(damaged) >= 0
