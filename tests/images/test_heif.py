"""HEIF files made of several pictures, which can be larger than the file announces."""

from __future__ import annotations

import struct

import pytest
from support.pictures import encoded, noise

from cifar.errors import UnreadableImage
from cifar.images.avif import boxes
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec

SPEC = ImageSpec(height=32, width=32, channels=3)
ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def full(kind: bytes, content: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24) + content)


def item(number: int, kind: bytes) -> bytes:
    return full(b"infe", struct.pack(">HH4sx", number, 0, kind), 2)


def coded(side: int, mode: str = "RGB") -> tuple[bytes, bytes]:
    """Return the decoder's configuration and the data of one coded picture."""
    content = encoded(noise(side, side, mode), "HEIF", quality=1)
    configuration = content.index(b"hvcC") - 4
    size = int.from_bytes(content[configuration : configuration + 4])
    ((start, stop),) = [place for kind, place in boxes(content, 0, len(content)) if kind == b"mdat"]
    return content[configuration : configuration + size], content[start:stop]


def of_pictures(side: int, kind: bytes, data: bytes, times: int, announced: int) -> bytes:
    """Return a file whose image, of `announced` pixels a side, is made by `data` of a coded picture, `times` times."""
    configuration, picture = coded(side)
    properties = configuration + b"".join(full(b"ispe", struct.pack(">II", *(each,) * 2)) for each in (side, announced))
    associations = full(b"ipma", struct.pack(">IHBBBHBB", 2, 1, 2, 0x81, 2, 2, 1, 3))
    references = full(b"iref", box(b"dimg", struct.pack(f">HH{times}H", 2, times, *[1] * times)))
    items = full(b"iinf", struct.pack(">H", 2) + item(1, b"hvc1") + item(2, kind))
    places = struct.pack(">HHHHII", 2, 1, 0, 1, 0, len(data))  # item 2 is in `idat`
    return file_of(items + references + box(b"idat", data), properties, associations, picture, places, primary=2)


def with_transparency(side: int, of_alpha: int) -> bytes:
    """Return a file whose image has a transparency of another size."""
    (configuration, picture), (of_gray, gray) = coded(side), coded(of_alpha, "L")
    sizes = [full(b"ispe", struct.pack(">II", each, each)) for each in (side, of_alpha)]
    properties = configuration + sizes[0] + of_gray + sizes[1] + full(b"auxC", ALPHA)
    associations = full(b"ipma", struct.pack(">IHBBBHBBBB", 2, 1, 2, 0x81, 2, 2, 3, 0x83, 4, 5))
    items = full(b"iinf", struct.pack(">H", 2) + item(1, b"hvc1") + item(2, b"hvc1"))
    references = full(b"iref", box(b"auxl", struct.pack(">HHH", 2, 1, 1)))
    return file_of(items + references, properties, associations, picture, b"", primary=1, second=gray)


def file_of(
    described: bytes,
    properties: bytes,
    associations: bytes,
    picture: bytes,
    places: bytes,
    primary: int,
    second: bytes = b"",
) -> bytes:
    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")

    def meta(offset: int) -> bytes:
        first = struct.pack(">HHHHII", 1, 0, 0, 1, offset, len(picture))
        other = struct.pack(">HHHHII", 2, 0, 0, 1, offset + len(picture), len(second)) if second else places
        located = full(b"iloc", b"\x44\0" + struct.pack(">H", 2) + first + other, 1)
        known = full(b"hdlr", b"\0\0\0\0pict" + bytes(13)) + full(b"pitm", struct.pack(">H", primary))
        return full(b"meta", known + described + located + box(b"iprp", box(b"ipco", properties) + associations))

    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", picture + second)


def grid(rows: int, side: int) -> bytes:
    return struct.pack(">BBBBII", 0, 1, rows - 1, rows - 1, side, side)


def overlay(side: int) -> bytes:
    return struct.pack(">BBHHHHIIii", 0, 1, 0, 0, 0, 0xFFFF, side, side, 0, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (of_pictures(64, b"iovl", overlay(20_000), 1, announced=64), "lays pictures over each other"),
        (of_pictures(512, b"grid", grid(5, 2560), 25, announced=64), "larger than it announces"),
        (with_transparency(64, 2000), "larger than it announces"),
    ],
    ids=["overlay", "grid", "transparency"],
)
def test_a_file_with_pictures_larger_than_it_announces_is_refused_before_decoding(content, words):
    """The decoder allocated memory for them first: 3.2 GB for 475 bytes, in the event loop, since 64 x 64 pixels are few."""
    with pytest.raises(UnreadableImage, match=words):
        preprocess(content, SPEC, max_pixels=25_500_000)


@pytest.mark.parametrize(
    "content",
    [of_pictures(512, b"grid", grid(2, 1000), 4, announced=1000), with_transparency(600, 300)],
    ids=["grid", "transparency"],
)
def test_photos_in_tiles_and_with_a_transparency_are_read(content):
    """Phones write such files."""
    assert preprocess(content, SPEC, max_pixels=25_500_000).shape == SPEC.shape
