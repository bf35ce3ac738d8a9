"""Uploaded files and archives as one list of image files, none of them on disk a second time.

What an archive says of itself is checked before anything is unpacked: how many files, how large, how much larger than packed.
What comes out can be no more than that: zipfile stops there, and the checksum tells. Names are shown and never opened,
so `../../etc/passwd` is a name like any other.
"""

from __future__ import annotations

import io
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
"""The others may ask for gigabytes to unpack a few bytes."""
_LISTED_BYTES = 1024
"""Of an archive's table of contents, for each file that may be in it."""
_SMALL_BYTES = 64 * 1024
"""A small file may unpack to this, whatever the ratio: a picture of one colour shrinks a thousandfold."""
_NAME_CHARACTERS = 200
_JUNK = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")
_ENCRYPTED = 1
_GONE = "The upload is no longer here. Choose it again."


class Upload(NamedTuple):
    """A file that somebody sent."""

    name: str
    """What they call it."""
    content: Path | bytes
    """Where it is, or all of it."""

    def open(self) -> BinaryIO:
        """The file, to be read."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")


class Entry(NamedTuple):
    """One file of a batch."""

    name: str
    read: Callable[[], bytes]
    """Gives its content; takes a while, and raises `CifarError` for a file that cannot be had."""


def entries_of(uploads: Sequence[Upload], settings: Settings, stack: ExitStack) -> list[Entry]:
    """The files to classify: those uploaded, and in the place of an archive those in it.

    An archive that cannot be read is one entry, whose `read` says why.

    Args:
        uploads: what came.
        settings: `max_batch_files`, `max_batch_bytes`, `max_body_bytes` and `max_zip_ratio`.
        stack: closes the archives at the end.

    Raises:
        BatchTooLarge: too many files, or too many bytes in them.
    """
    entries: list[Entry] = []
    total_bytes = 0
    for upload in uploads:
        for entry, size_bytes in _entries(upload, settings, stack):
            entries.append(entry)
            total_bytes += size_bytes
            if len(entries) > settings.max_batch_files:
                raise _too_many(settings)
            if total_bytes > settings.max_batch_bytes:
                raise BatchTooLarge(
                    f"The files have more than {settings.max_batch_bytes:,} bytes together, unpacked. Send fewer at once."
                )
    return entries


def _too_many(settings: Settings) -> BatchTooLarge:
    return BatchTooLarge(f"There are more than {settings.max_batch_files:,} files. Send fewer at once.")


def _entries(upload: Upload, settings: Settings, stack: ExitStack) -> Iterator[tuple[Entry, int]]:
    """What an upload holds, and how many bytes each has."""
    name = shown(upload.name)
    try:
        with upload.open() as file:
            is_archive = file.read(4) in _SIGNATURES
            size_bytes = file.seek(0, io.SEEK_END)
        if not is_archive:
            yield Entry(name, partial(_read_file, upload, size_bytes, settings)), size_bytes
            return
        bounded = _Bounded(stack.enter_context(upload.open()), settings)
        archive = stack.enter_context(zipfile.ZipFile(cast(IO[bytes], bounded)))
    except BatchTooLarge:
        raise
    except OSError:
        yield Entry(name, partial(_refuse, UnreadableArchive(_GONE))), 0
        return
    except Exception:  # a hostile archive raises struct.error, ValueError, RuntimeError, ...
        sentence = "The archive cannot be read: it is damaged or cut off. Pack it again and send the new one."
        yield Entry(name, partial(_refuse, UnreadableArchive(sentence))), 0
        return
    for info in archive.infolist():
        if not info.is_dir() and not info.filename.startswith(_JUNK) and not info.filename.endswith(_JUNK):
            yield Entry(shown(info.filename), partial(_read_packed, archive, info, settings)), info.file_size


class _Bounded:
    """A file of which no piece is read that is larger than any table of contents that we take: zipfile reads that whole."""

    def __init__(self, file: BinaryIO, settings: Settings) -> None:
        self._file = file
        self._settings = settings
        self._most_bytes = settings.max_batch_files * _LISTED_BYTES + 2 * 65536  # a comment, and a table's end
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """As any file does, or `BatchTooLarge`."""
        content = self._file.read(size if 0 <= size <= self._most_bytes else self._most_bytes + 1)
        if len(content) > self._most_bytes:
            raise _too_many(self._settings)
        return content


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
        raise UnreadableArchive(_GONE) from error


def _read_packed(archive: zipfile.ZipFile, info: zipfile.ZipInfo, settings: Settings) -> bytes:
    """One file of an archive, after all that is known of it was checked."""
    if info.flag_bits & _ENCRYPTED:
        raise UnreadableArchive("The file is encrypted in its archive. Pack it without a password.")
    if info.compress_type not in _METHODS:
        raise UnreadableArchive("The file is packed in a way that is not read here. Pack it as an ordinary zip.")
    _check_size(info.file_size, settings)
    if info.file_size > max(_SMALL_BYTES, settings.max_zip_ratio * info.compress_size):
        raise UnreadableArchive(
            f"The file would unpack to more than {settings.max_zip_ratio:g} times its size. Send it as it is."
        )
    try:
        with archive.open(info) as file:
            content = file.read(info.file_size)
            whole = not file.read(1)  # this makes zipfile compare the checksum
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UnreadableArchive("The file is damaged in its archive. Pack it again.") from error
    if not whole or len(content) != info.file_size:
        raise UnreadableArchive("The file is not as large as its archive says. Pack it again.")
    if content.startswith(_SIGNATURES):
        raise UnreadableArchive("An archive within an archive is not opened. Unpack it first.")
    return content


def shown(name: str) -> str:
    """A file's name as it may be shown: on one line, and not endless. The end says most."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return clean if len(clean) <= _NAME_CHARACTERS else "…" + clean[1 - _NAME_CHARACTERS :]
