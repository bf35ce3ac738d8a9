"""Unpacks a zip or tar archive of pictures into a temporary folder, without trusting its paths and sizes."""

from __future__ import annotations

import errno
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from cifar.errors import DataError
from cifar.training.data.folders.contents import BROKEN_LINKS, UNSAFE_MEMBERS, Contents

MAX_MEMBERS = 5_000_000
MAX_RATIO = 100
"""Largest size of the unpacked files, as a multiple of the archive's. Pictures hardly compress."""
ANY_RATIO_BYTES = 64 * 1024 * 1024
"""Up to this size in total any ratio is allowed."""
_PIECE = 1024 * 1024
_UTF8_NAME = 0x800
_ENCRYPTED = 1
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class _Member(NamedTuple):
    name: str
    stream: IO[bytes] | None
    """None for a link to a member that the archive lacks."""


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip or tar archive, by its content. An archive whose end is missing is one, too."""
    try:
        return _is_zip(path) or tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(path)


@contextmanager
def unpacked(archive: Path, contents: Contents) -> Iterator[Path]:
    """Unpack the files of an archive into a temporary folder, which is removed at the end.

    Files whose paths lead out of the folder or repeat another one are left out and recorded in `contents`. Links are never created.

    Raises:
        DataError: the archive is damaged, encrypted or too large: see `MAX_RATIO`; or the disk has too little space.
    """
    with tempfile.TemporaryDirectory(prefix="cifar-data-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        allowed = max(ANY_RATIO_BYTES, MAX_RATIO * archive.stat().st_size)
        space = shutil.disk_usage(folder).free * 9 // 10
        try:
            for count, member in enumerate(_members(archive, contents), 1):
                if count > MAX_MEMBERS:
                    raise DataError(
                        f"{archive} has more than {MAX_MEMBERS:,} members. Unpack it yourself, and name the folder."
                    )
                written = _unpack(member, folder, min(allowed, space), contents)
                allowed, space = allowed - written, space - written
                if min(allowed, space) < 0:
                    reason = f"more than {MAX_RATIO} times its size" if allowed < 0 else "more than there is space for"
                    raise DataError(
                        f"{archive} unpacks to {reason} in {folder.parent}. Unpack it yourself, and name the folder."
                    )
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            reason = str(error).partition(":")[0].partition("\n")[0]
            raise DataError(
                f"{archive} is not a complete archive ({reason}): the download stopped early, or it is another file. Download it again."
            ) from error
        yield folder


def _unpack(member: _Member, folder: Path, limit: int, contents: Contents) -> int:
    """Write one file and return its size. Writing stops when the size exceeds `limit`."""
    if member.stream is None:
        contents.leave_out(BROKEN_LINKS, member.name)
        return 0
    parts = [part for part in member.name.replace("\\", "/").split("/") if part not in {"", "."}]
    safe = parts and ".." not in parts and not member.name.startswith(("/", "\\")) and ":" not in parts[0]
    target = folder.joinpath(*parts)
    written = 0
    with member.stream as stream:
        if not safe or "\0" in member.name:
            contents.leave_out(UNSAFE_MEMBERS, member.name)
            return 0
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb")
        except OSError as error:  # the path exists, is too long, or lies below a file
            if error.errno == errno.ENOSPC:
                raise
            contents.leave_out(UNSAFE_MEMBERS, member.name)
            return 0
        with file:
            while written <= limit and (piece := stream.read(_PIECE)):
                file.write(piece)
                written += len(piece)
    return written


def _members(archive: Path, contents: Contents) -> Iterator[_Member]:
    if _is_zip(archive):
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            for info, name in zip(members, _names(members, contents), strict=True):
                if info.flag_bits & _ENCRYPTED:
                    raise DataError(f"{archive} is encrypted. Unpack it yourself, and name the folder.")
                if not info.is_dir():
                    yield _Member(name, zipped.open(info))
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if member.isreg() or member.islnk() or member.issym():
                try:
                    stream = tar.extractfile(member)
                except (KeyError, RecursionError):
                    stream = None
                yield _Member(member.name, stream)


def _names(members: Sequence[zipfile.ZipInfo], contents: Contents) -> list[str]:
    """Return the members' names. Old programs write UTF-8 or the system's encoding, without a flag that says which."""
    raw = [info.orig_filename.encode("cp437", "replace") for info in members if not info.flag_bits & _UTF8_NAME]
    try:
        encoding = "utf-8"
        b"\n".join(raw).decode(encoding)
    except UnicodeDecodeError:
        encoding = "gb18030"
        contents.notes.append(
            "Names in the archive are not UTF-8 and read as Chinese (GB 18030). If classes look wrong, unpack it yourself."
        )
    return [
        info.filename
        if info.flag_bits & _UTF8_NAME
        else info.orig_filename.encode("cp437", "replace").decode(encoding, "replace")
        for info in members
    ]
