"""Files that attackers send: a thousand broken images, the same on each run, and archives named by their property."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache

from PIL import Image
from support.pictures import encoded, noise

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF")
_MAGIC = {
    "jpeg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x40\0\0\0WEBPVP8 ",
    "gif": b"GIF89a",
    "bmp": b"BM",
    "tiff": b"II*\0\x08\0\0\0",
    "heif": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
    "avif": b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",
}


@cache
def whole_files() -> dict[str, bytes]:
    """Return a valid image in each format, and in some less common variants."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    files = {kind.lower(): encoded(noise(24, 20), kind) for kind in FORMATS}
    frames = [noise(24, 20, seed=i) for i in range(5)]
    files["progressive"] = encoded(noise(24, 20), "JPEG", progressive=True)
    files["palette"] = encoded(noise(24, 20).convert("P"), "PNG")
    files["interlaced_alpha"] = encoded(noise(24, 20, "RGBA"), "PNG")
    files["cmyk"] = encoded(noise(24, 20).convert("CMYK"), "JPEG")
    files["sixteen_bit"] = encoded(noise(24, 20, "L").convert("I;16"), "PNG")
    files["lzw"] = encoded(noise(24, 20), "TIFF", compression="tiff_lzw")
    for kind in ("GIF", "WEBP", "PNG"):
        files[f"animated_{kind.lower()}"] = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], duration=10
        )
    return files


def hostile_files(seed: int = 0) -> Iterator[tuple[str, bytes]]:  # noqa: C901 - a list
    """Yield name and content of each file."""
    rng = random.Random(seed)
    whole = whole_files()
    for name, content in whole.items():
        yield name, content
        for i in range(1, 25):
            yield f"{name}_cut_at_{i * 4}_percent", content[: len(content) * i * 4 // 100]
        for i in range(25):
            yield f"{name}_damaged_{i}", _damaged(content, rng)
        yield f"{name}_with_tail", content + bytes(rng.randbytes(5_000))
        yield f"{name}_after_noise", rng.randbytes(8) + content
        for other, magic in _MAGIC.items():
            yield f"{name}_named_{other}", magic + content[len(magic) :]
    for name, magic in _MAGIC.items():
        yield f"{name}_magic_alone", magic
        yield f"{name}_magic_and_zeros", magic + bytes(100_000)
        yield f"{name}_magic_and_noise", magic + rng.randbytes(100_000)
        yield f"{name}_magic_and_ones", magic + b"\xff" * 100_000
    for width, height in ((1, 1), (1, 60_000), (60_000, 1), (1, 70_000), (7_000, 7_000)):
        yield f"png_{width}x{height}", encoded(Image.new("L", (width, height)), "PNG")
        if max(width, height) <= 65_500:
            yield f"jpeg_{width}x{height}", encoded(Image.new("L", (width, height)), "JPEG")
    for width, height in ((2**31 - 1, 1), (0, 0), (65_536, 65_536), (2**32 - 1, 2**32 - 1)):
        yield f"png_that_says_{width}x{height}", _png_that_says(width, height)
    for depth in (1, 10, 100, 1_000):
        yield f"jpeg_with_exif_{depth}_deep", _jpeg_with_exif(_chained_directories(depth))
    for name, text in (("empty", b""), ("text", b"hello"), ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")):
        yield name, text
    for prologue in (b"%PDF-1.7", b"PK\3\4", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x7fELF", b"MZ", b"GIMP", b"8BPS\0\1"):
        yield f"other_format_{prologue[:4].hex()}", prologue + rng.randbytes(2_000)


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with some bytes changed, removed, doubled or overwritten."""
    damaged = bytearray(content)
    at = rng.randrange(len(damaged))
    length = rng.choice((1, 1, 2, 4, 16, 64))
    match rng.randrange(4):
        case 0:
            for _ in range(length):
                damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 1:
            del damaged[at : at + length]
        case 2:
            damaged[at:at] = damaged[at : at + length] * rng.choice((1, 2, 100))
        case 3:
            damaged[at : at + length] = rng.choice((b"\0", b"\xff")) * length
    return bytes(damaged)


def _png_that_says(width: int, height: int) -> bytes:
    whole = encoded(noise())
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return whole[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


def _chained_directories(depth: int) -> bytes:
    """Return EXIF data whose directories form a cycle."""
    size = 2 + 12 + 4
    body = b"II*\0" + struct.pack("<I", 8)
    for i in range(depth):
        following = 8 + size * ((i + 1) % depth)
        body += struct.pack("<HHHII", 1, 0x8769, 4, 1, following) + struct.pack("<I", following)
    return body


def _jpeg_with_exif(exif: bytes) -> bytes:
    return encoded(noise(), "JPEG", exif=b"Exif\0\0" + exif[:65_000])


PHOTO = encoded(noise(32, 32))


def zipped(files: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a valid zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def bomb_of_100_megabytes_of_zeros() -> bytes:
    """Return about 100 kB that unpack to 100 MB."""
    return zipped([("bomb.bmp", bytes(100_000_000))])


def one_file_listed_ten_thousand_times() -> bytes:
    """Return 500 kB whose directory lists the same bytes 10,000 times, 2 GB in total."""
    whole = zipped([("a", encoded(noise(256, 256)))])
    end = whole.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<I", whole, end + 16)
    entry, local = whole[start:end], whole[:start]
    table = entry * 10_000
    return local + table + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 10_000, 10_000, len(table), start, 0)


def table_of_contents_of_40_megabytes() -> bytes:
    """Return 700 names of 60,000 characters, which zipfile would read before they can be counted."""
    return zipped([(f"{place:03}" + "x" * 60_000, b"") for place in range(700)], zipfile.ZIP_STORED)


def archive_of_24000_folders() -> bytes:
    """Return an archive of 1.1 MB whose table of contents is as large as that of a thousand files may be."""
    entry = b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"/"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 24_000, 24_000, 24_000 * len(entry), 4, 0)
    return b"PK\3\4" + 24_000 * entry + end


def size_that_lies(announced: int) -> bytes:
    """Return an archive that announces a wrong unpacked size."""
    content = PHOTO
    whole = bytearray(zipped([("photo.png", content)]))
    central = whole.rindex(b"PK\x01\x02")
    struct.pack_into("<I", whole, 22, announced)  # in the file's header and in the directory
    struct.pack_into("<I", whole, central + 24, announced)
    return bytes(whole)


def encrypted() -> bytes:
    """Return an archive whose flags say that it needs a password."""
    whole = bytearray(zipped([("photo.png", PHOTO)]))
    whole[6] |= 1
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(whole)


def damaged() -> bytes:
    """Return an archive with one changed byte."""
    whole = bytearray(zipped([("photo.png", PHOTO)], zipfile.ZIP_STORED))
    whole[200] ^= 0xFF
    return bytes(whole)


def truncated() -> bytes:
    """Return the first half of an archive, without its directory."""
    whole = zipped([("photo.png", PHOTO), ("more.png", PHOTO)])
    return whole[: len(whole) // 2]
