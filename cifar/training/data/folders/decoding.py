"""Decodes the pictures of a data set with all processors, and records damaged and converted ones."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cifar.cpus import available_cpus
from cifar.errors import CifarError
from cifar.images.decode import open_image, to_input
from cifar.images.spec import ImageSpec

_MAX_FILE_BYTES = 1 << 30
LFS_POINTER = b"version https://git-lfs.github.com/spec"
_BITS_PER_SAMPLE = 258
_ADVICE = re.compile(r"(?:\.|, whatever its name says\.|; (?:scale|it may)[^.]*\.)(?: (?:Send|Save|Open|Scale)\b.*)?$")
"""The end of a decoder's message: advice for callers of the API, which is cut off here."""


@dataclass(frozen=True)
class Picture:
    """One file after decoding."""

    problem: str = ""
    """Why it could not be decoded; empty if it could."""
    format: str = ""
    conversions: tuple[str, ...] = ()
    content: bytes = b""
    """Digest of the file."""


def decode(
    files: Sequence[Path], image_shape: tuple[int, int, int], max_pixels: int
) -> tuple[np.ndarray, list[Picture]]:
    """Decode pictures to the size of the model's input.

    Returns:
        `(n, height, width, channels)` `uint8` of the pictures that could be decoded, in order; and an entry for every file.
    """
    images = np.empty((len(files), *image_shape), np.uint8)
    spec = ImageSpec.from_shape(image_shape)
    pool = ThreadPoolExecutor(available_cpus(), "decoding")
    try:
        found = pool.map(lambda number: _decode(files[number], images[number], spec, max_pixels), range(len(files)))
        pictures = list(tqdm(found, total=len(files), desc="reading", unit=" images", disable=None, leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the remaining files
    good = [number for number, picture in enumerate(pictures) if not picture.problem]
    return images if len(good) == len(files) else images[good], pictures


def count(pictures: Sequence[Picture]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the number of pictures of each format, and of each kind of conversion."""
    formats = Counter(picture.format for picture in pictures if not picture.problem)
    conversions = Counter(kind for picture in pictures for kind in picture.conversions)
    return dict(formats.most_common()), dict(conversions.most_common())


def _decode(file: Path, target: np.ndarray, spec: ImageSpec, max_pixels: int) -> Picture:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            return Picture("larger than 1 GiB")
        payload = file.read_bytes()
        if not payload:
            return Picture("empty file")
        if payload.startswith(LFS_POINTER):
            return Picture("a Git LFS pointer in place of the picture: run `git lfs pull`")
        image = open_image(payload, spec, max_pixels=max_pixels)
        target[:] = to_input(image, spec)
    except CifarError as error:
        return Picture(_ADVICE.sub("", str(error)).removeprefix("The ").removeprefix("file's content is "))
    except OSError as error:
        return Picture(error.strerror or str(error))
    digest = hashlib.blake2b(payload, digest_size=16).digest()
    return Picture(format=image.format or "", conversions=tuple(_conversions(image, payload)), content=digest)


def _conversions(image: Image.Image, payload: bytes) -> list[str]:
    """Return what a picture loses in the conversion to the model's input."""
    found = []
    if image.mode == "CMYK":
        found.append("CMYK, converted to RGB")
    if image.mode in {"P", "PA"}:
        found.append("palette, converted to RGB")
    if _bits(image, payload) > 8:
        found.append("16 bits a channel, reduced to 8")
    if image.has_transparency_data:
        found.append("transparent, put on white")
    if image.format != "MPO" and _has_more_frames(image):  # the further pictures of an MPO are previews of the photo
        found.append("animated or of several pages, first one read")
    return found


def _bits(image: Image.Image, payload: bytes) -> int:
    """Return the bits per channel in the file; Pillow reduces some pictures to 8 while it decodes them."""
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return payload[24]
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8)
        return int(max(bits) if isinstance(bits, tuple) else bits)
    return 8


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the frames behind the first may be damaged, which does not matter here
        return False
