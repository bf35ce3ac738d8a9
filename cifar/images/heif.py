"""The size of the pictures in a HEIF file, which can be much larger than the size that the file announces for its image.

libheif puts an image together from others (`grid`, `iovl`), and decodes a transparency of any size. It allocates memory for them before it
compares sizes: 475 bytes that announced 64 x 64 pixels took 3.2 GB. Source: ISO/IEC 23008-12 (6.5.3, 6.6.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from cifar.images.avif import boxes, items

_OVERLAYS = frozenset({b"iovl", b"iden"})
"""Made of pictures with sizes of their own. Cameras write none."""


def largest_pixels(heif: bytes) -> int:
    """Return width x height of the largest picture or grid of pictures in a file.

    Raises:
        ValueError: the file is built in a way that this function cannot follow, or that no photo has.
    """
    largest = 0
    try:
        for place in _all(heif, b"meta", 0, len(heif)):
            grids = {number for table in _all(heif, b"iinf", *place) for number in _grids(heif, *table)}
            idat = next((start for start, _ in _all(heif, b"idat", *place)), 0)
            for table in _all(heif, b"iloc", *place):
                for number, start, _ in items(heif, table, idat, wanted=grids):
                    largest = max(largest, _grid_pixels(heif[start : start + 12]) if number in grids else 0)
            for properties in _all(heif, b"iprp", *place):
                for container in _all(heif, b"ipco", *properties):
                    for start, _ in _all(heif, b"ispe", *container):
                        largest = max(largest, _product(heif[start + 4 : start + 12]))
    except IndexError as error:
        raise ValueError("its table of contents is damaged") from error
    return largest


def _all(data: bytes, kind: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    return (place for name, place in boxes(data, at, end) if name == kind)


def _grids(data: bytes, at: int, end: int) -> Iterator[int]:
    """Yield the number of each grid among the items in the box `iinf`."""
    for start, _ in _all(data, b"infe", at + (8 if data[at] else 6), end):
        wide = 4 if data[start] == 3 else 2
        kind = data[start + 6 + wide : start + 10 + wide]
        if kind in _OVERLAYS:
            raise ValueError("it lays pictures over each other")
        if kind == b"grid":
            yield int.from_bytes(data[start + 4 : start + 4 + wide])


def _grid_pixels(grid: bytes) -> int:
    return _product(grid[4:12] if grid[1] & 1 else grid[4:8])


def _product(sizes: bytes) -> int:
    """Return the product of two numbers that follow each other, each in half of the bytes."""
    half = len(sizes) // 2
    return int.from_bytes(sizes[:half]) * int.from_bytes(sizes[half:])
