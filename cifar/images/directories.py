"""Limits how much Pillow reads of a TIFF directory: EXIF data of every format, the index of pictures in a JPEG, nested directories of a TIFF.

Pillow copies the bytes of each tag when it reads a directory, sometimes already when it opens the file. All tags may refer to the same bytes:
a JPEG of 260 kB took 1.3 GB, and one of 4 MB would take 260 GB.
"""

from __future__ import annotations

import io
import struct
from typing import IO

from PIL import PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

MAX_TAGS = 1_000
MAX_PNG_TEXT_BYTES = 8 * 1024**2
"""Largest size of the unpacked texts of a PNG. Pillow's own limit is eight times as high, and several images are decoded at once."""
_ENTRY_BYTES = 12

_load = ImageFileDirectory_v2.load


def _load_if_bounded(directory: ImageFileDirectory_v2, file: IO[bytes]) -> None:
    """Read a directory as Pillow does. One that announces too many bytes stays empty, like one that is cut off."""
    start = file.tell()
    bounded = not directory._bigtiff and _announced_bytes(directory, file) <= file.seek(0, io.SEEK_END)  # noqa: SLF001
    file.seek(start)
    if bounded:
        _load(directory, file)
    else:
        directory.reset()
        directory.next = 0


def _announced_bytes(directory: ImageFileDirectory_v2, file: IO[bytes]) -> float:
    """Return how many bytes the tags have together; infinity if there are too many tags."""
    order = directory._endian  # noqa: SLF001 - Pillow's own name for "<" or ">"
    head = file.read(2)
    tags = struct.unpack(f"{order}H", head)[0] if len(head) == 2 else 0
    if tags > MAX_TAGS:
        return float("inf")
    entries = file.read(tags * _ENTRY_BYTES)
    complete = len(entries) // _ENTRY_BYTES * _ENTRY_BYTES
    units = {kind: unit for kind, (unit, _) in directory._load_dispatch.items()}  # noqa: SLF001
    found = struct.iter_unpack(f"{order}HHII", entries[:complete])
    return float(sum(count * units.get(kind, 0) for _, kind, count, _ in found))


def bound_directories() -> None:
    """Make Pillow skip every directory whose tags announce more bytes than the file has."""
    ImageFileDirectory_v2.load = _load_if_bounded  # type: ignore[method-assign, assignment]
    PngImagePlugin.MAX_TEXT_MEMORY = MAX_PNG_TEXT_BYTES
