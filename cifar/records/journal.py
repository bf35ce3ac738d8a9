"""A write-ahead journal of one process: records on their way into the database.

Each line is one record, written by one system call before the answer is sent, so a process that is killed loses none. A living process
holds a lock on its file. A file that can be locked belongs to a dead process, and another process moves it into the database.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Journal:
    """The journal file that this process writes."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Create a new file.

        Args:
            folder: the folder for the journals of all processes of this host.
            max_bytes: largest size of the file.

        Raises:
            OSError: the folder cannot be written.
        """
        self._max_bytes = max_bytes
        while True:
            self.path = folder / f"journal-{secrets.token_hex(8)}.jsonl"
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
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

    def close(self) -> None:
        """Release the file. Another process may take it over then."""
        os.close(self._file)


def journals(folder: Path) -> Iterator[Path]:
    """Yield the journal files of all processes of this host."""
    yield from folder.glob("journal-*.jsonl")


@contextmanager
def adopted(path: Path) -> Iterator[bool]:
    """Take over the journal of a dead process, and delete it when the block succeeds.

    Yields:
        Whether it is one. False: its process lives, or another process was faster.
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
