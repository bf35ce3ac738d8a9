"""Archives for tests. The hostile ones are named by their property."""

from __future__ import annotations

import io
import struct
import zipfile

from support.pictures import encoded, noise

PHOTO = encoded(noise(32, 32))


def packed(files: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An ordinary zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def bomb_of_100_megabytes_of_zeros() -> bytes:
    """About 100 kB that unpack to a thousand times as much."""
    return packed([("bomb.bmp", bytes(100_000_000))])


def one_file_listed_ten_thousand_times() -> bytes:
    """A table of contents whose entries all point at the same bytes: some 500 kB that promise 2 GB."""
    whole = packed([("a", encoded(noise(256, 256)))])
    end = whole.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<I", whole, end + 16)
    entry, local = whole[start:end], whole[:start]
    table = entry * 10_000
    return local + table + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 10_000, 10_000, len(table), start, 0)


def table_of_contents_of_40_megabytes() -> bytes:
    """Names of 60,000 characters, 700 times: zipfile would read them all before anybody could count."""
    return packed([(f"{place:03}" + "x" * 60_000, b"") for place in range(700)], zipfile.ZIP_STORED)


def size_that_lies(announced: int) -> bytes:
    """A file that is said to unpack to another size than it does."""
    content = PHOTO
    whole = bytearray(packed([("photo.png", content)]))
    central = whole.rindex(b"PK\x01\x02")
    struct.pack_into("<I", whole, 22, announced)  # in the file's own header, and in the table
    struct.pack_into("<I", whole, central + 24, announced)
    return bytes(whole)


def encrypted() -> bytes:
    """A file whose flags say that it needs a password."""
    whole = bytearray(packed([("photo.png", PHOTO)]))
    whole[6] |= 1
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(whole)


def damaged() -> bytes:
    """One byte of a file is another one."""
    whole = bytearray(packed([("photo.png", PHOTO)], zipfile.ZIP_STORED))
    whole[200] ^= 0xFF
    return bytes(whole)


def truncated() -> bytes:
    """The second half is missing, the table of contents with it."""
    whole = packed([("photo.png", PHOTO), ("more.png", PHOTO)])
    return whole[: len(whole) // 2]
