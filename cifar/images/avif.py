"""The size of the pictures that are coded in an AVIF file, which can be much larger than the size that the file announces.

The decoder allocates memory for the coded size, up to 16,384 x 16,384 pixels, and scales afterwards: 3 kB took 1 GB. Sources: ISO/IEC 14496-12
(boxes, `iloc`) and the AV1 specification, 5.3 and 5.5 (OBUs, sequence header).
"""

from __future__ import annotations

from collections.abc import Container, Iterator

_MAX_STEPS = 2_000
"""Items or OBUs that are looked at. Files of cameras and editors have a few dozen."""
_VERSION_BYTES = 4
"""The version and flags of `meta`, which stand before the boxes in it."""
_SEQUENCE_HEADER = 1


def coded_pixels(avif: bytes) -> int:
    """Return width x height of the largest coded picture, from the sequence headers; 0 if there is none.

    Raises:
        ValueError: the file is built in a way that this function cannot follow, or that no still picture has.
    """
    if avif[8:12] == b"avis":
        raise ValueError("it is a sequence of pictures")
    try:
        inner = dict(boxes(avif, *dict(boxes(avif, 0, len(avif)))[b"meta"]))
        largest = 0
        for _, start, end in items(avif, inner[b"iloc"], inner.get(b"idat", (0, 0))[0]):
            largest = max([largest, *_sizes(avif[start:end])])
    except (KeyError, IndexError) as error:
        raise ValueError("its table of contents is damaged") from error
    return largest


def boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the type of each box and the place of its content. `screening.excess` limits their number."""
    while at + 8 <= end:
        size, kind, head = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        elif size == 0:
            size = end - at
        if size < head or at + size > end:
            return
        yield kind, (at + head + _VERSION_BYTES * (kind == b"meta"), at + size)
        at += size


def items(
    data: bytes, place: tuple[int, int], idat: int, wanted: Container[int] | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each item, from the box `iloc`.

    Raises:
        ValueError: an item is in pieces, or there are too many. Pieces of items that are not `wanted` are no error; None: all are.
    """
    at, _ = place
    version = data[at]
    offset_size, length_size = data[at + 4] >> 4, data[at + 4] & 15
    base_size, index_size = data[at + 5] >> 4, data[at + 5] & 15 if version else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at])

    wide = 4 if version == 2 else 2
    count = number(wide)
    if count > _MAX_STEPS:
        raise ValueError(f"it has more than {_MAX_STEPS} items")
    for _ in range(count):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base, extents = number(base_size), number(2)
        if method > 1 or extents != 1:
            if wanted is None or item in wanted:
                raise ValueError("its pictures are in pieces")
            at += extents * (index_size + offset_size + length_size)
            continue
        number(index_size)
        start = base + number(offset_size) + (idat if method else 0)
        yield item, start, start + number(length_size) if length_size else len(data)


def _sizes(obus: bytes) -> Iterator[int]:
    """Yield the pixels that each sequence header among the OBUs announces. Items of other kinds have none."""
    at = 0
    for _ in range(_MAX_STEPS):
        if at >= len(obus):
            return
        head = obus[at]
        at += 2 if head & 4 else 1
        size = len(obus) - at
        if head & 2:  # otherwise it reaches to the end
            size, at = _leb128(obus, at)
        if head & 0x81 or at + size > len(obus):  # no OBU: the item is something else
            return
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _pixels(obus[at : at + size])
        at += size
    raise ValueError(f"it has more than {_MAX_STEPS} OBUs")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        if at + place >= len(data):
            break
        value |= (data[at + place] & 0x7F) << (7 * place)
        if data[at + place] < 0x80:
            return value, at + place + 1
    return len(data), len(data)


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def __call__(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & ((1 << count) - 1)


def _pixels(header: bytes) -> int:
    bits = _Bits(header[:256])
    bits(4)
    if bits(1):  # the short header of a still picture
        bits(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    return (bits(width_bits) + 1) * (bits(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits(1):  # timing
        bits(64)
        if bits(1):
            zeros = 0
            while not bits(1):
                zeros += 1
            bits(zeros)
        if bits(1):  # decoder model
            delay_bits = bits(5) + 1
            bits(42)
    has_delay = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:
            bits(1)
        if delay_bits and bits(1):
            bits(2 * delay_bits + 1)
        if has_delay and bits(1):
            bits(4)
