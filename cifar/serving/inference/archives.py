"""Uploaded files and zip archives as one list of image files. Archives are read in place, without a copy on disk.

The number, size and compression ratio that an archive declares are checked before anything is unpacked. Unpacking stops at the declared
size, and the checksum is compared. Names inside an archive are only shown, never used as paths, so `../../etc/passwd` is harmless.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from cifar.errors import BatchTooLarge, CifarError, TooLarge, UnreadableArchive
from cifar.settings import Settings

_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The other methods can need gigabytes to unpack a few bytes."""
MAX_RATIO = 100
"""Largest size of an unpacked file, as a multiple of its packed size."""
_ANY_RATIO_BYTES = 64 * 1024
"""Up to this size any ratio is allowed: a picture of one colour compresses a thousandfold."""
_DIRECTORY_BYTES_PER_FILE = 1024
"""Allowed size of the central directories of all archives of a call, for each file. `zipfile` takes about 7 times as much memory."""
_END_BYTES = 2 * 65536
"""Bytes that are read of an archive beside its directory: its end and a comment."""
_MAX_ARCHIVES = 16
"""In a call. Each is open until all files have been read, and has a file descriptor."""
_NAME_CHARACTERS = 200
_HIDDEN = re.compile(r"(?:^|/)(?:\.(?!\.?/)|__MACOSX/|(?:thumbs\.db|desktop\.ini|icon\r)\Z)", re.IGNORECASE)
"""In the names of hidden files, and of those that operating systems add; `./cat.jpg` is neither. The page's zip.js has the same rule."""
_ENCRYPTED = 1
_NO_UTF8 = 0xFF ^ 0x08
"""Mask for the second byte of the flags. It clears the bit that says that the name is UTF-8."""
_DIRECTORY_ENTRY = b"PK\x01\x02"
_HEAD_BYTES = 30
"""Length of the header before each file in an archive, without the name."""
_EXPIRED = "The upload has expired. Choose the file again."


class Upload(NamedTuple):
    """One uploaded file."""

    name: str
    content: Path | bytes
    """The file on disk, or its content."""

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")


class Entry(NamedTuple):
    """One file of a batch."""

    name: str
    read: Callable[[], bytes]
    """Returns the content. Blocking. Raises `CifarError` when the file cannot be read."""
    size_bytes: int = 0
    """Size of the content that the file system or the archive declares."""


def entries_of(uploads: Sequence[Upload], settings: Settings, stack: ExitStack) -> list[Entry]:
    """List the files to classify. Each archive is replaced by the files in it.

    An archive that cannot be read becomes one entry, whose `read` raises the error. `stack` closes the archives.

    Raises:
        BatchTooLarge: there are too many files, or they have too many bytes in total.
    """
    entries: list[Entry] = []
    total_bytes = 0
    directories = _Directories(settings)
    for upload in uploads:
        for entry in _entries(upload, settings, stack, directories):
            entries.append(entry)
            total_bytes += entry.size_bytes
            if len(entries) > settings.max_batch_files:
                raise _too_many(settings)
            if total_bytes > settings.max_batch_bytes:
                raise BatchTooLarge(
                    f"The files have more than {settings.max_batch_bytes:,} bytes together, unpacked. Send fewer at once."
                )
    return entries


def _too_many(settings: Settings) -> BatchTooLarge:
    return BatchTooLarge(f"There are more than {settings.max_batch_files:,} files. Send fewer at once.")


class _Directories:
    """The bytes and archives that a call may still open: a count over the central directories of all its archives.

    Entries that are no images, such as folders, are not counted as files, and a call may name one archive 400 times.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._archives = _MAX_ARCHIVES
        self.bytes = settings.max_batch_files * _DIRECTORY_BYTES_PER_FILE + _MAX_ARCHIVES * _END_BYTES

    def open(self) -> None:
        self._archives -= 1
        if self._archives < 0:
            raise BatchTooLarge(f"There are more than {_MAX_ARCHIVES} archives. Send fewer at once.")

    def read(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise _too_many(self._settings)


def _entries(upload: Upload, settings: Settings, stack: ExitStack, directories: _Directories) -> Iterator[Entry]:
    """Yield the entries of one upload."""
    name = display_name(upload.name)
    try:
        with upload.open() as file:
            is_archive = file.read(4) in _SIGNATURES
            size_bytes = file.seek(0, io.SEEK_END)
        if not is_archive:
            yield Entry(name, partial(_read_file, upload, size_bytes, settings), size_bytes)
            return
        directories.open()
        bounded = _Bounded(stack.enter_context(upload.open()), directories)
        archive = stack.enter_context(zipfile.ZipFile(cast(IO[bytes], bounded)))
        bounded.is_open = True
    except BatchTooLarge:
        raise
    except OSError:
        yield Entry(name, partial(_refuse, UnreadableArchive(_EXPIRED)))
        return
    except Exception:  # a hostile archive raises struct.error, ValueError, RuntimeError, ...
        sentence = "The archive cannot be read: it is damaged or cut off. Pack it again and send the new one."
        yield Entry(name, partial(_refuse, UnreadableArchive(sentence)))
        return
    for info in archive.infolist():
        name = name_in_archive(info)
        if not name.endswith("/") and not _HIDDEN.search(name):
            yield Entry(display_name(name), partial(_read_packed, archive, info, settings), info.file_size)


class _Bounded:
    """An archive that refuses to read a larger central directory than is allowed. `zipfile` reads it in one piece.

    It `is_open` when the central directory has been read.
    """

    def __init__(self, file: BinaryIO, directories: _Directories) -> None:
        self._file = file
        self._directories = directories
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.is_open = False

    def read(self, size: int = -1) -> bytes:
        if self.is_open:
            content = self._file.read(size)
            is_head = size == _HEAD_BYTES and content.startswith(_SIGNATURES)
            return _without_utf8_flags(content) if is_head else content
        allowed = self._directories.bytes
        content = self._file.read(size if 0 <= size <= allowed else allowed + 1)
        self._directories.read(len(content))
        return _without_utf8_flags(content)


def _without_utf8_flags(heads: bytes) -> bytes:
    """Clear the flag "the name is UTF-8" in a central directory, or in the header of one file. `zipfile` refuses a wrong flag."""
    cleared, start = bytearray(heads), 0
    if len(heads) == _HEAD_BYTES:
        cleared[7] &= _NO_UTF8
    while cleared.startswith(_DIRECTORY_ENTRY, start) and start + 46 <= len(cleared):
        cleared[start + 9] &= _NO_UTF8
        start += 46 + sum(struct.unpack_from("<3H", cleared, start + 28))
    return bytes(cleared)


def _refuse(error: CifarError) -> bytes:
    raise error


def _check_size(size_bytes: int, settings: Settings) -> None:
    if size_bytes > settings.max_body_bytes:
        raise TooLarge(
            f"The file has {size_bytes:,} bytes; an image may have {settings.max_body_bytes:,}. Scale it down."
        )


def _read_file(upload: Upload, size_bytes: int, settings: Settings) -> bytes:
    _check_size(size_bytes, settings)
    try:
        with upload.open() as file:
            return file.read()
    except OSError as error:
        raise UnreadableArchive(_EXPIRED) from error


def _read_packed(archive: zipfile.ZipFile, info: zipfile.ZipInfo, settings: Settings) -> bytes:
    """Unpack one file of an archive, after checking everything that the archive declares about it."""
    if info.flag_bits & _ENCRYPTED:
        raise UnreadableArchive("The file is encrypted in its archive. Pack it without a password.")
    if info.compress_type not in _METHODS:
        raise UnreadableArchive("The file is packed with a method that is not supported. Pack it as an ordinary zip.")
    _check_size(info.file_size, settings)
    if info.file_size > max(_ANY_RATIO_BYTES, MAX_RATIO * info.compress_size):
        raise UnreadableArchive(
            f"The file would unpack to more than {MAX_RATIO} times its packed size. Send it without an archive."
        )
    try:
        with archive.open(info) as file:
            content = file.read(info.file_size)
            at_end = not file.read(1)  # this makes zipfile compare the checksum
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UnreadableArchive("The file is damaged in its archive. Pack it again.") from error
    if not at_end or len(content) != info.file_size:
        raise UnreadableArchive("The file has another size than its archive says. Pack it again.")
    if content.startswith(_SIGNATURES):
        raise UnreadableArchive("An archive inside an archive is not opened. Unpack it first.")
    return content


def name_in_archive(info: zipfile.ZipInfo) -> str:
    """Return the name of a file in an archive: as UTF-8 if it is valid UTF-8, otherwise as GB 18030, whatever its flag says.

    `zip.js` has the same rule. `zipfile` reads names without the flag as code page 437, which no program of today means.
    """
    name = info.orig_filename.encode("cp437")
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("gb18030", "replace")


def display_name(name: str) -> str:
    """Return a file name that is safe to display: printable, and at most 200 characters, of which the last ones are shown."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return clean if len(clean) <= _NAME_CHARACTERS else "…" + clean[1 - _NAME_CHARACTERS :]
