"""Decoding: turns one image file into one model input, for the page, the APIs, the command line and training alike.

The format is recognised by the file's content, never by its name, and the size in the header is checked before any pixel is
decoded. The module needs Pillow and NumPy, and no machine-learning library.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pillow_heif
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from cifar.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from cifar.images.avif import coded_pixels
from cifar.images.directories import bound_directories
from cifar.images.heif import largest_pixels
from cifar.images.screening import decodes_row_by_row, excess, short_tag, tiff_excess
from cifar.images.spec import ImageSpec, Views
from cifar.images.views import MAX_VIEWS, is_photograph, larger, views_of, with_crops

pillow_heif.register_heif_opener()
bound_directories()

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF")
"""The formats that uploads may have. Pillow has dozens of other decoders, which an attacker cannot reach."""

_RESAMPLE = Image.Resampling.BILINEAR
_DRAFT_MARGIN = 4
"""A JPEG is decoded at 1/2, 1/4 or 1/8 scale, which is faster, if it stays this many times larger than the model's input."""

_MAX_SIDE = 65_535
"""Longest side in pixels. Cameras produce less, and resampling an image of 50,000,000 x 1 pixels takes gigabytes."""

_ONES = np.ones(8192)
"""For sums as products. Longer products would use several threads, which wait for each other on busy processors."""

_MAX_JPEG_PIXELS = 200_000_000
"""Largest width x height of a JPEG, which is decoded at a reduced scale: phones have sensors of up to 200 megapixels."""
Image.MAX_IMAGE_PIXELS = None  # Pillow would warn of photos of 108 megapixels; `_open` has the limits

_PEAK_BYTES_PER_PIXEL = {"WEBP": 20, "AVIF": 20, "JPEG": 8, "MPO": 8}
_OTHER_PEAK_BYTES_PER_PIXEL = 12
"""Measured peaks: WebP 17, AVIF 13, PNG 12, GIF, TIFF and HEIF 9, BMP 4, a JPEG's decoded pixels 8. docs/operations.md says how."""
_COEFFICIENT_BYTES = 2

_EXIF_PREFIX = b"Exif\0\0"
_DATA_URL_HEAD = re.compile(r"\s{0,100}data:[^,]{0,200};\s{0,10}base64\s{0,10},", re.IGNORECASE)
_EXIF_PREFIXES = re.compile(rb"\A(?>(?:%b)+)" % _EXIF_PREFIX)
"""Pillow drops them one by one and copies the rest each time, which takes hours for a megabyte of them."""
_PIXELS_OF_PICTURES = {"AVIF": coded_pixels, "HEIF": largest_pixels}
_CODED_MARGIN_PIXELS = 512 * 512
"""Encoders pad a picture to full blocks."""

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})


def preprocess(payload: bytes, spec: ImageSpec, *, max_pixels: int) -> np.ndarray:
    """Turn one image file into one model input.

    The image is turned upright by its EXIF orientation, transparent parts become white, and it is resized to the size in
    `spec` without keeping its proportions. An image that already has that size is not resampled.

    Args:
        payload: the encoded file, as uploaded.
        spec: the size of the model's input; 3 channels for RGB, 1 for greyscale.
        max_pixels: largest width x height that may be decoded. A JPEG is decoded at a reduced scale, so it may have more.

    Returns:
        `uint8` of shape `spec.shape`, in [0, 255].

    Raises:
        UnsupportedImage: the content is not in one of `FORMATS`, whatever the file's name says.
        UnreadableImage: the file is empty, truncated or damaged, or has an excessive structure (`cifar.images.screening`).
        ImageTooLarge: the image has more pixels than may be decoded. This is checked before any pixel is.
    """
    return to_input(open_image(payload, spec, max_pixels=max_pixels), spec)


def preprocess_views(payload: bytes, spec: ImageSpec, views: Views, *, max_pixels: int) -> np.ndarray:
    """Turn one image file into the model's inputs for a number of views: see `preprocess` and `to_views`."""
    return to_views(open_image(payload, spec, max_pixels=max_pixels), spec, views)


def brightness_and_contrast(pixels: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of one `uint8` model input, each in [0, 1].

    Computed from two sums of whole numbers, which are exact. In a server, where the model empties the processor's caches between two calls,
    this takes a fifth of the time of `np.mean` and `np.std`.
    """
    values = pixels.ravel().astype(np.float64)
    count, total, squares = values.size, 0, 0
    for start in range(0, count, _ONES.size):
        part = values[start : start + _ONES.size]
        total += int(part.dot(_ONES[: part.size]))
        squares += int(part.dot(part))
    return total / count / 255, (count * squares - total * total) ** 0.5 / count / 255


def open_image(payload: bytes, spec: ImageSpec, *, max_pixels: int) -> Image.Image:
    """Read the header only: the first half of `preprocess`, with the same arguments and errors.

    Returns:
        The image, not decoded yet. Its `size` is the one that it will be decoded to: for a large JPEG a half, a quarter
        or an eighth of the size in the file.
    """
    return _open(payload, max_pixels, needed_side=_DRAFT_MARGIN * max(spec.height, spec.width))


def to_input(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Decode, turn upright and resize: the second half of `preprocess`."""
    with _decoding(image):
        image.load()
        orientation = _orientation(image)
        size = (spec.height, spec.width) if orientation in _SIDEWAYS else (spec.width, spec.height)
        small = _eight_bits_per_channel(image)
        if small.size != size:
            small = small.resize(size, _RESAMPLE)
        if orientation in _TRANSPOSE:
            small = small.transpose(_TRANSPOSE[orientation])
        mode = "RGB" if spec.channels == 3 else "L"
        opaque = _on_white(small)
        content = (opaque if opaque.mode == mode else opaque.convert(mode)).tobytes()
    return np.frombuffer(content, np.uint8).reshape(spec.shape)


def to_views(image: Image.Image, spec: ImageSpec, views: Views) -> np.ndarray:
    """Decode once, and return the views: `(n, height, width, channels)` `uint8`. The first is what `to_input` returns.

    Six views of a photograph are `with_crops`, any others `views_of`. The crops are made from what was decoded for the
    input: a JPEG that is decoded at a reduced scale keeps at least 3.2 times their pixels a side.
    """
    if views == 1:
        return to_input(image, spec)[None]
    width, height = image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size
    photograph = is_photograph(width, height, spec)
    whole = to_input(image, spec)
    count = (MAX_VIEWS if photograph else 1) if views == "auto" else views
    if count == MAX_VIEWS and photograph:
        return with_crops(whole, to_input(image, larger(spec)))
    return views_of(whole, count)


def open_picture(payload: bytes, *, longest_side: int, max_pixels: int) -> Image.Image:
    """Read the header of a file for `to_picture`, as `open_image` does for `to_input`, with the same errors."""
    return _open(payload, max_pixels, needed_side=longest_side)


def to_picture(image: Image.Image, *, longest_side: int) -> np.ndarray:
    """Decode an image for display: upright, on white, in its own proportions, as `(height, width, 3)` `uint8`.

    A larger image is scaled down to `longest_side` in pixels; a smaller one keeps its size.
    """
    with _decoding(image):
        image.load()
    width, height = image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size
    scale = min(1, longest_side / max(width, height))
    spec = ImageSpec(height=max(1, round(height * scale)), width=max(1, round(width * scale)), channels=3)
    return to_input(image, spec)


@contextmanager
def _decoding(image: Image.Image) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged files raise a dozen types of exceptions, which Pillow does not document
        raise UnreadableImage(
            f"The {image.format} image cannot be decoded ({_reason(error)}); it may be truncated or damaged. "
            "Save it again and send the new file."
        ) from error


def _open(payload: bytes, max_pixels: int, *, needed_side: int) -> Image.Image:
    """Read the header, and refuse a file that is not an image in one of `FORMATS` or that has too many pixels.

    A JPEG is set to be decoded at a reduced scale as long as both of its sides stay at least `needed_side` long.
    """
    if not payload:
        raise UnreadableImage("The file is empty (0 bytes). Send the image file itself.")
    if too_much := excess(payload):
        raise UnreadableImage(f"The file has {too_much}. Open the image in an editor, save it, and send the new file.")
    try:
        image = Image.open(io.BytesIO(payload), formats=FORMATS)
    except UnidentifiedImageError as error:
        if begins_like_an_image(payload):
            raise UnreadableImage(
                "The file begins like an image, but its header is damaged or cut off. Save it again and send the new file."
            ) from error
        if _is_base64_of_an_image(payload):
            raise UnsupportedImage(
                "The file's content is an image in base64. Decode it, and send the image itself."
            ) from error
        raise UnsupportedImage(
            f"The file's content is not an image in a supported format, whatever its name says. Send one of {', '.join(FORMATS)}."
        ) from error
    except Exception as error:  # a hostile header can raise nearly any exception
        raise UnreadableImage(
            f"The image's header is damaged or cut off ({_reason(error)}). Save it again and send the new file."
        ) from error
    width, height = image.size
    with _decoding(image):
        image.draft(None, (needed_side, needed_side))  # square, because EXIF may turn the image later
    if (
        _counted_pixels(image, payload) > max_pixels
        or width * height > _MAX_JPEG_PIXELS
        or max(width, height) > _MAX_SIDE
    ):
        raise ImageTooLarge(
            f"The {image.format} image has {width} x {height} pixels; at most {max_pixels / 1e6:g} megapixels can be decoded, and {_MAX_SIDE} a side. "
            "Scale it down."
        )
    if image.format in _PIXELS_OF_PICTURES:
        _check_coded_size(image, payload)
    return image


def _check_coded_size(image: Image.Image, payload: bytes) -> None:
    """Refuse a file with a picture that is larger than the image: the decoder would need memory for that one."""
    try:
        if _PIXELS_OF_PICTURES[str(image.format)](payload) > 2 * image.width * image.height + _CODED_MARGIN_PIXELS:
            raise ValueError("the picture in it is larger than it announces")
    except ValueError as error:
        raise UnreadableImage(
            f"The {image.format} file cannot be read: {error}. Save it again as one still picture."
        ) from error


def _counted_pixels(image: Image.Image, jpeg: bytes) -> int:
    """Return the number of pixels that the limit holds for: those that are decoded.

    Half of those in the file for a HEIF image, and for a JPEG that is not decoded in rows: they take up to 9 bytes a pixel, other formats
    up to 20. Both are how phones store their photos of 50 megapixels.
    """
    decoded = image.width * image.height
    if image.format == "HEIF":
        return decoded // 2
    in_file = pixels_in_file(image)
    return decoded if decoded == in_file or decodes_row_by_row(jpeg) else max(decoded, in_file // 2)


def pixels_in_file(image: Image.Image) -> int:
    """Return width x height before scaling, of an image that `open_image` returned. A JPEG's size is the scaled one."""
    scale = image.decoderconfig[0] if isinstance(image, JpegImageFile) and image.decoderconfig else 1
    return image.width * image.height * int(scale) ** 2


def decoding_bytes(image: Image.Image, payload: bytes) -> int:
    """Return how much memory decoding an image from `open_image` takes at its peak, at most, without the file itself."""
    peak = image.width * image.height * _PEAK_BYTES_PER_PIXEL.get(image.format or "", _OTHER_PEAK_BYTES_PER_PIXEL)
    if not isinstance(image, JpegImageFile) or decodes_row_by_row(payload):
        return peak
    sampled = [(across, down) for _, across, down, _ in image.layer]
    whole = max(across for across, _ in sampled) * max(down for _, down in sampled)
    share = sum(across * down for across, down in sampled) / max(1, whole)
    return peak + round(pixels_in_file(image) * share * _COEFFICIENT_BYTES)


def begins_like_an_image(payload: bytes) -> bool:
    """Return whether one of the decoders in `FORMATS` recognises the first bytes."""
    Image.init()
    return any(bool(accept and accept(payload[:16])) for _, accept in (Image.OPEN[name] for name in FORMATS))


def without_data_url_head(text: str) -> str:
    """Return what follows the head of a `data:` URL in base64, such as `data:image/png;base64,`; any other text as it is."""
    head = _DATA_URL_HEAD.match(text)
    return text[head.end() :] if head else text


def _is_base64_of_an_image(payload: bytes) -> bool:
    start = without_data_url_head(payload[:400].decode("latin-1"))[:64]
    try:
        return begins_like_an_image(base64.b64decode(start, validate=True))
    except ValueError:
        return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) without one. Damage elsewhere in the EXIF data does not matter."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        data = _EXIF_PREFIXES.sub(b"", exif, 1)
        if orientation := short_tag(data, _EXIF_ORIENTATION):
            return orientation
        if tiff_excess(data) or len(exif) - len(data) > len(_EXIF_PREFIX):
            return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # hostile EXIF raises struct.error, SyntaxError, OverflowError, ...
        return 1


def _eight_bits_per_channel(image: Image.Image) -> Image.Image:
    """Convert an image to mode L, LA, RGB or RGBA, so that it can be resampled."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError("32-bit pixels have no defined brightness range")
    if image.has_transparency_data:
        return image if image.mode in {"RGBA", "LA"} else image.convert("RGBA")
    return image if image.mode in {"RGB", "L"} else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in {"RGBA", "LA"}:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
