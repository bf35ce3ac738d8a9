"""A write-ahead journal of one process: records on their way into the database.

Each line is one record, written by one system call before the answer is sent, so a process that is killed loses none. A living process
holds a lock on its file. A file that can be locked belongs to a dead process, and another process moves it into the database.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NAMES = "journal-*.jsonl"
MAX_JOURNAL_BYTES = 64 * 1024**2
"""Largest journal of a process. A larger file of that name is not of this project."""


class Journal:
    """The journal file that this process writes."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Create a new file in the folder for the journals of all processes of this host.

        Raises:
            OSError: the folder cannot be written.
        """
        self._max_bytes = max_bytes
        while True:
            self.path = folder / f"journal-{secrets.token_hex(8)}.jsonl"
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self.path.exists():
                break
            os.close(self._file)  # before it was locked, another process took it for that of a dead process
        self.size = 0

    def append(self, line: bytes) -> bool:
        """Write one line, completely or not at all. Returns False when the file or the disk is full."""
        if self.size + len(line) > self._max_bytes:
            return False
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self.size)
                return False
        except OSError:
            return False
        self.size += written
        return True

    @property
    def is_deleted(self) -> bool:
        """True if somebody deleted the file or its folder. This process can still read and write it."""
        return os.fstat(self._file).st_nlink == 0

    def lines(self, size: int) -> Iterator[list[bytes]]:
        """Yield the lines in groups of about `size` bytes, also if the file has been deleted meanwhile."""
        with open(os.dup(self._file), "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.seek(0)
            yield from _groups(file, size)

    def close(self) -> None:
        """Release the file. Another process may take it over then."""
        os.close(self._file)


def journals(folder: Path) -> Iterator[Path]:
    """Yield the journal files of all processes of this host."""
    return (path for path in folder.glob(_NAMES) if not _is_odd(path))


def set_aside_odd_ones(folder: Path) -> list[Path]:
    """Rename everything that has the name of a journal but cannot be one: folders, devices, pipes, and files that are too large.

    Return the new paths, `*.bad`.
    """
    renamed = []
    for path in filter(_is_odd, folder.glob(_NAMES)):
        with suppress(FileNotFoundError):  # another process has done it
            renamed.append(path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.bad")))
    return renamed


def read_lines(path: Path, size: int) -> Iterator[list[bytes]]:
    """Yield the lines of a journal in groups of about `size` bytes."""
    with path.open("rb") as file:
        yield from _groups(file, size)


def _is_odd(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # its process has just moved it into the database
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size > MAX_JOURNAL_BYTES


def _groups(file: BinaryIO, size: int) -> Iterator[list[bytes]]:
    while lines := file.readlines(size):
        yield lines


@contextmanager
def adopted(path: Path) -> Iterator[bool]:
    """Take over the journal of a dead process, and delete it when the block succeeds.

    Yield whether it was taken over. If not, its process lives, or another process was faster.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with file:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:  # 0: another process deleted it after it was opened here
                yield True
                path.unlink(missing_ok=True)
                return
        yield False
