"""`cifar.images.decode`: one image file becomes one model input."""

from __future__ import annotations

import re
import resource
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from support.pictures import corners, encoded, noise, png_of_100_megapixels, truncated_jpeg

from cifar.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from cifar.images.decode import FORMATS, preprocess, without_data_url_head
from cifar.images.spec import ImageSpec

pillow_heif.register_heif_opener()


def to_input(payload: bytes, *, size: int = 32, channels: int = 3, max_pixels: int = 50_000_000) -> np.ndarray:
    return preprocess(payload, ImageSpec(height=size, width=size, channels=channels), max_pixels=max_pixels)


def test_an_image_of_the_input_size_is_not_changed():
    """The server's model gets exactly the pixels that training used."""
    picture = noise(32, 32)
    pixels = to_input(encoded(picture))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(picture))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_on_the_list_is_read(format):
    """The error message for other formats lists them."""
    picture = Image.new("RGB", (64, 48), (200, 100, 50))
    pixels = to_input(encoded(picture, format))
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 8


def test_formats_that_are_not_on_the_list_are_refused():
    """Pillow can read PPM images, but they are not on the list. The format is recognised by the content."""
    with pytest.raises(UnsupportedImage, match="JPEG, PNG, WEBP"):
        to_input(encoded(noise(), "PPM"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_turns_the_image_upright(orientation, format):
    """A photo is classified upright, however the phone was held."""
    turned_by_the_camera = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners()
    if orientation > 1:
        stored = stored.transpose(turned_by_the_camera[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = to_input(encoded(stored, format, exif=exif), size=64).astype(int)
    for y, x, colour in ((8, 8, (254, 0, 0)), (8, 56, (0, 255, 0)), (56, 8, (0, 0, 254)), (56, 56, (255, 255, 255))):
        assert np.abs(pixels[y, x] - colour).max() < 40, (orientation, y, x, pixels[y, x])


def test_a_tall_photo_turned_by_exif_fills_a_model_that_is_not_square():
    """Height and width of the input are not swapped."""
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = encoded(noise(300, 100), "JPEG", exif=exif)
    assert preprocess(payload, ImageSpec(height=20, width=50, channels=3), max_pixels=10**6).shape == (20, 50, 3)


def test_a_photo_with_damaged_exif_is_accepted():
    """The image itself is complete."""
    payload = encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 50)
    assert to_input(payload).shape == (32, 32, 3)


def ifd(*entries: tuple[int, int, int, bytes], order: str = "<", announced: int | None = None) -> bytes:
    """Return EXIF data of one directory: tag, type, count and the four bytes of value or offset of each entry."""
    count = len(entries) if announced is None else announced
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, count)
    return b"Exif\0\0" + head + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")
TOO_LONG = (0x010E, 2, 1_000_000, b"\xff\0\0\0")
DAMAGED = {
    "a tag announces more than there is": ifd(TOO_LONG, TURNED),
    "big-endian": ifd((0x010E, 2, 10**6, b"\0\0\0\xff"), (0x0112, 3, 1, b"\0\x06\0\0"), order=">"),
    "after the orientation": ifd(TURNED, TOO_LONG),
    "unknown type": ifd((0x9999, 77, 9, b"\xff" * 4), TURNED),
    "a pointer to nowhere": ifd(TURNED, (0x8769, 4, 1, b"\xff\xff\xff\x7f")),
    "a sub-directory that is the directory": ifd(TURNED, (0x8769, 4, 1, b"\x08\0\0\0")),
    "more tags announced than there are": ifd(TURNED, announced=900),
    "type LONG": ifd(TOO_LONG, (0x0112, 4, 1, b"\x06\0\0\0")),
}


@pytest.mark.parametrize("exif", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_turns_the_image_as_long_as_its_orientation_can_be_read(exif, format):
    """Whole data sets have one broken tag. Browsers turn such photos, and the model would see them on their side."""
    exif_6 = Image.Exif()
    exif_6[0x0112] = 6
    expected = to_input(encoded(corners(), format, exif=exif_6))
    assert not (expected == to_input(encoded(corners(), format))).all()
    np.testing.assert_array_equal(to_input(encoded(corners(), format, exif=exif)), expected)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_does_not_exist_means_upright(value):
    """Some programs write 0."""
    exif = ifd((0x0112, 3, 1, struct.pack("<HH", value, 0)))
    np.testing.assert_array_equal(to_input(encoded(corners(), "JPEG", exif=exif)), to_input(encoded(corners(), "JPEG")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode):
    """The colour that is stored for transparent pixels is arbitrary."""
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    picture = clear.convert(mode) if mode != "P" else clear.quantize(4)
    assert (to_input(encoded(picture)) == 255).all()


def test_greyscale_and_cmyk_and_16_bit_keep_their_brightness():
    """Less common pixel formats give the same grey."""
    grey = 100
    for payload in (
        encoded(Image.new("L", (40, 40), grey)),
        encoded(Image.new("CMYK", (40, 40), (0, 0, 0, 255 - grey)), "JPEG"),
        encoded(Image.fromarray(np.full((40, 40), grey * 257, np.uint16))),
        encoded(Image.fromarray(np.full((40, 40), grey * 257, np.uint16)), "TIFF"),
    ):
        assert np.abs(to_input(payload).astype(int) - grey).max() <= 2


def test_pixels_without_a_defined_range_are_refused_with_a_reason():
    """In a 32-bit TIFF it is not known which value is white."""
    with pytest.raises(UnreadableImage, match="32-bit"):
        to_input(encoded(Image.new("F", (40, 40), 0.5), "TIFF"))


def test_the_first_frame_of_an_animation_is_classified():
    """An animated GIF is treated as its first image."""
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    payload = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert to_input(payload)[16, 16].tolist() == [255, 0, 0]


def test_a_greyscale_model_gets_one_channel():
    """The number of channels comes from the model."""
    assert to_input(encoded(noise()), size=28, channels=1).shape == (28, 28, 1)


def test_reduced_scale_decoding_stays_close_to_full_decoding(monkeypatch):
    """The fast way to read a large JPEG changes the input by less than 2 of 255 levels on average."""
    smooth = noise(24, 24).resize((1600, 1200), Image.Resampling.BICUBIC)
    payload = encoded(smooth, "JPEG", quality=92)
    reduced = to_input(payload).astype(int)
    monkeypatch.setattr(Image.Image, "draft", lambda *_: None)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None)
    assert np.abs(reduced - to_input(payload)).mean() < 2


def test_a_decompression_bomb_is_refused_by_its_header_without_cost():
    """100 megapixels in 300 kB are refused without allocating the pixels."""
    payload = png_of_100_megapixels()
    assert len(payload) < 400_000
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge, match="megapixels"):
        to_input(payload)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 20_000


def test_the_pixel_limit_is_exact():
    """An image with as many pixels as the limit is accepted, one with a pixel more is refused."""
    payload = encoded(noise(40, 30))
    assert to_input(payload, max_pixels=1200).shape == (32, 32, 3)
    with pytest.raises(ImageTooLarge, match="40 x 30"):
        to_input(payload, max_pixels=1199)


@pytest.mark.parametrize(
    ("payload", "error", "words"),
    [
        pytest.param(b"", UnreadableImage, "0 bytes", id="empty"),
        pytest.param(b"hello, I am no picture", UnsupportedImage, "whatever its name says", id="text"),
        pytest.param(truncated_jpeg(), UnreadableImage, "truncated", id="truncated_jpeg"),
        pytest.param(b"\x89PNG\r\n\x1a\n", UnreadableImage, "header is damaged", id="png_magic_only"),
        pytest.param(b"\xff\xd8\xff\xe0" + b"\0" * 40, UnreadableImage, "header", id="jpeg_magic_then_zeros"),
    ],
)
def test_a_file_that_is_not_a_complete_image_is_refused_with_a_reason(payload, error, words):
    """The message says what is wrong and what to send."""
    with pytest.raises(error, match=words):
        to_input(payload)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_or_damaged_file_is_read_or_refused_and_raises_no_other_error(format):
    """It is the client's error, so it must not end in a 500: truncated at every tenth byte, and with eight wrong bytes."""
    whole = encoded(noise(), format)
    files = [whole[:end] for end in range(0, len(whole), 10)]
    random = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 8):
            damaged[at] = random.integers(0, 256)
        files.append(bytes(damaged))
    for file in files:
        try:
            assert to_input(file).shape == (32, 32, 3)
        except (UnreadableImage, UnsupportedImage, ImageTooLarge) as error:
            assert str(error)  # noqa: PT017 - both outcomes are correct


def test_the_bundled_decoders_of_heic_are_those_in_which_the_known_holes_are_mended():
    """Uploads can reach the heap overflows of libheif before 1.23.6; pi-heif, the variant without GPL code, ended with 1.23.0."""
    libraries = pillow_heif.libheif_info()
    hevc = re.search(r"libde265 .* version ([\d.]+)", libraries["decoders"]["libde265"])
    assert hevc is not None
    assert tuple(map(int, libraries["libheif"].split("."))) >= (1, 23, 6)
    assert tuple(map(int, hevc[1].split("."))) >= (1, 1, 3)


def test_the_head_of_a_data_url_is_recognised_in_every_spelling_that_browsers_take():
    """REST, MCP and the hint at base64 in a file use one rule: capitals, parameters and spaces do not matter, other texts are left."""
    for head in (
        "data:image/jpeg;base64,",
        "data:;base64,",
        "DATA:image/JPEG;Base64,",
        '\n data:image/png;name="a (1) 猫.png";charset=utf-8; base64 ,',
    ):
        assert without_data_url_head(f"{head}/9j/4A==") == "/9j/4A==", head
    for other in ("/9j/4A==", "data:image/jpeg,/9j/", "data", f"data:{'x' * 300};base64,/9j/", "x data:;base64,/9j/"):
        assert without_data_url_head(other) == other
