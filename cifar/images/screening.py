"""Screening: refuses files that are built to cost far more to decode than their size suggests, before a decoder reads them.

Pillow reads a file's structure in Python without a limit on the number of steps, and the limit on pixels does not cover
that: a JPEG of 19 MB with 250,000 scans keeps a core busy for hours, and a TIFF of 18 MB whose tags all point at the same
bytes takes 6 GB. The functions below read the structure first and stop at a limit, which is far above what cameras and
editors write.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

from cifar.images.avif import boxes

MAX_JPEG_SCANS = 64
"""A progressive JPEG has about ten scans."""
MAX_JPEG_SEGMENTS = 2_000
MAX_JPEG_FILL_BYTES = 4_096
"""Bytes between two segments before the first scan, where there should be none."""
MAX_EXIF_PARTS = 64
"""EXIF data of more than 64 kB comes in parts. Pillow drops headers at its beginning one by one, and copies the rest each time."""
MAX_PNG_CHUNKS = 20_000
MAX_GIF_BLOCKS = 2_000
"""Extensions, their blocks of 255 bytes, and stray bytes before the first frame."""
MAX_BOXES = 5_000
"""Boxes, and entries of tables, of HEIF and AVIF files. A photo in 400 tiles has about 3,000. libavif holds up all threads while it
compares each entry with each other: for 3 seconds where there are 60,000, in 120 kB."""
MAX_TIFF_TAGS = 1_000
MAX_TIFF_TILE_SIDE = 2_048
"""A decoder keeps one tile in memory, and a tile can be larger than its image. Writers use 128 to 1,024."""

_NEXT_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In compressed data 0xFF is followed by 0 or a restart marker; anything else ends the scan."""
_SEARCHED_BYTES = 256 * 1024
"""Searched for a marker at once: at most about a millisecond."""
_JPEG_SCAN = 0xDA
_CONTAINERS: Mapping[bytes, Any] = {b"meta": {b"iprp": {b"ipco": {}}}}
"""Boxes of HEIF and AVIF in which others are."""
_ENTRY_BYTES = {b"iinf": 20, b"iloc": 8, b"iref": 2, b"ipma": 3, b"moov": 4}
"""Boxes that are tables, and the least bytes of an entry."""
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL_JPEG_FRAMES = frozenset({0xC0, 0xC1})
_EXIF_PREFIX = b"Exif\0\0"
_TIFF_TILE_SIDES = frozenset({322, 323})
_TIFF_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}
_TIFF_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def excess(payload: bytes) -> str:
    """Return what the file has too much of, for an error message; empty when the file may be decoded."""
    if payload.startswith(b"\xff\xd8"):
        return _jpeg_excess(payload)
    if payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return _counted(_png_chunks(payload), MAX_PNG_CHUNKS, "PNG chunks")
    if payload.startswith((b"GIF87a", b"GIF89a")):
        return _counted(_gif_blocks(payload), MAX_GIF_BLOCKS, "GIF blocks before the first frame")
    if payload[4:8] == b"ftyp":
        return _counted(_boxes(payload, 0, len(payload), _CONTAINERS), MAX_BOXES, "boxes and entries of tables")
    return tiff_excess(payload)


def tiff_excess(data: bytes) -> str:
    """Do the same as `excess` for a TIFF file, or for EXIF data, which has the same structure."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return ""
    version, directory = struct.unpack_from(f"{order}HI", data, 2)
    if version == 43:
        return "bytes allowed for: it is a BigTIFF, made for files over 4 GB"
    if version != 42 or directory + 2 > len(data):
        return ""
    (tags,) = struct.unpack_from(f"{order}H", data, directory)
    if tags > MAX_TIFF_TAGS:
        return f"more than {MAX_TIFF_TAGS} TIFF tags"
    complete = min(tags, (len(data) - directory - 2) // 12)
    entries = list(struct.iter_unpack(f"{order}HHI4s", data[directory + 2 : directory + 2 + 12 * complete]))
    for tag, kind, _, value in entries:
        if (
            tag in _TIFF_TILE_SIDES
            and struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", value)[0] > MAX_TIFF_TILE_SIDE
        ):
            return f"a TIFF tile with more than {MAX_TIFF_TILE_SIDE:,} pixels on a side"
    announced = sum(count * _TIFF_UNIT_BYTES.get(kind, 0) for _, kind, count, _ in entries)
    return "TIFF tags that announce more bytes than the file has" if announced > len(data) else ""


def short_tag(data: bytes, tag: int) -> int | None:
    """Return the value of a tag of one whole number in the first directory of EXIF data, read by itself; None without it.

    Whatever the other tags announce is neither read nor believed, so that this is quick for hostile data too.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return None
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    if directory + 2 > len(data):
        return None
    (tags,) = struct.unpack_from(f"{order}H", data, directory)
    complete = min(tags, MAX_TIFF_TAGS, (len(data) - directory - 2) // 12)
    entries = struct.iter_unpack(f"{order}HHI4s", data[directory + 2 : directory + 2 + 12 * complete])
    for number, kind, count, value in entries:
        if number == tag and count == 1 and kind in _TIFF_WHOLE_NUMBERS:
            return int(struct.unpack_from(f"{order}{_TIFF_WHOLE_NUMBERS[kind]}", value)[0])
    return None


def _counted(steps: Iterator[None], limit: int, unit: str) -> str:
    return next((f"more than {limit} {unit}" for count, _ in enumerate(steps, 1) if count > limit), "")


def _jpeg_excess(payload: bytes) -> str:
    """Walk from marker to marker to the end of the image. Decoders do not read the bytes after it."""
    at, scans, exif_parts = 2, 0, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _NEXT_JPEG_MARKER.search(payload, at, at + _SEARCHED_BYTES) or _marker_after(payload, at)
        if not scans and (marker.start() if marker else len(payload)) - at > MAX_JPEG_FILL_BYTES:
            return f"more than {MAX_JPEG_FILL_BYTES} JPEG fill bytes"
        if marker is None or marker[0] == b"\xff\xd9":
            return ""
        scans += marker[0] == b"\xff\xda"
        if marker[0] == b"\xff\xe1" and payload.startswith(_EXIF_PREFIX, marker.end() + 2):
            exif_parts += 1
            if exif_parts > MAX_EXIF_PARTS or payload.startswith(2 * _EXIF_PREFIX, marker.end() + 2):
                return "too many EXIF headers"
        if scans > MAX_JPEG_SCANS:
            return f"more than {MAX_JPEG_SCANS} JPEG scans"
        if marker.end() + 2 > len(payload):
            return ""
        at = marker.end() + int.from_bytes(payload[marker.end() : marker.end() + 2])
    return f"more than {MAX_JPEG_SEGMENTS} JPEG segments"


def _marker_after(payload: bytes, at: int) -> re.Match[bytes] | None:
    """Search what is left after the first `_SEARCHED_BYTES` from `at`, in parts. Between them, other threads can run."""
    starts = range(at + _SEARCHED_BYTES - 1, len(payload), _SEARCHED_BYTES)
    found = (_NEXT_JPEG_MARKER.search(payload, start, start + _SEARCHED_BYTES + 1) for start in starts)
    return next(filter(None, found), None)


def decodes_row_by_row(jpeg: bytes) -> bool:
    """Return whether a decoder can read a JPEG in rows: all colours are in one sequential scan.

    For any other JPEG it keeps the coefficients of the whole image in memory, at whatever scale it decodes.
    """
    at, colours = 2, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _NEXT_JPEG_MARKER.search(jpeg, at)
        if marker is None or marker.end() + 8 > len(jpeg):
            return False
        kind, at = marker[0][1], marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2])
        if kind in _JPEG_FRAMES:
            colours = jpeg[marker.end() + 7]
            if kind not in _SEQUENTIAL_JPEG_FRAMES:
                return False
        elif kind == _JPEG_SCAN:
            return jpeg[marker.end() + 2] == colours
    return False


def _png_chunks(payload: bytes) -> Iterator[None]:
    at = 8
    while at + 8 <= len(payload) and payload[at + 4 : at + 8] != b"IEND":
        yield
        at += 12 + int.from_bytes(payload[at : at + 4])


def _boxes(data: bytes, at: int, end: int, containers: Mapping[bytes, Any]) -> Iterator[None]:
    """Yield for each box, for those in the boxes that `containers` names, and for as many entries as a table may have."""
    for kind, (start, stop) in boxes(data, at, end):
        yield
        if kind in _ENTRY_BYTES:
            yield from repeat(None, (stop - start) // _ENTRY_BYTES[kind])
        if kind in containers:
            yield from _boxes(data, start, stop, containers[kind])


def _gif_blocks(payload: bytes) -> Iterator[None]:
    """Yield for each part that Pillow skips before the first frame: extension, block of an extension, stray byte."""
    if len(payload) < 13:
        return
    at = 13 + (3 << (payload[10] & 7) + 1 if payload[10] & 0x80 else 0)
    while at < len(payload) and payload[at] not in b",;":
        yield
        if payload[at] != ord("!"):
            at += 1
            continue
        at += 2
        while at < len(payload) and payload[at]:
            yield
            at += 1 + payload[at]
        at += 1
