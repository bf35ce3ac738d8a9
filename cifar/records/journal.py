"""One process's records on their way into the database: a file that a kill leaves whole, and that others take over then.

Each line is one record, written by one system call before the answer leaves. While a process lives it holds its file's lock, so a file
that can be locked is a dead process's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PATTERN = "journal-*.jsonl"


class Journal:
    """The file of this process that is being written."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Begin a new file.

        Args:
            folder: where the journals of all processes of this host are.
            max_bytes: what it holds at most.

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
            os.close(self._file)  # somebody took it for a dead process's before it was locked
        self.size = 0

    def append(self, line: bytes) -> bool:
        """Write one line, whole or not at all; False when the file or the disk is full."""
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
        """Let go of the file; whoever finds it may take it over."""
        os.close(self._file)


def journals(folder: Path) -> Iterator[Path]:
    """The files of all processes of this host."""
    yield from folder.glob(_PATTERN)


@contextmanager
def adopted(path: Path) -> Iterator[bool]:
    """Whether a file is a dead process's; then nobody else takes it meanwhile, and at the end, if that was good, it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # somebody was faster
        yield False
        return
    with file:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:  # else somebody took it between the two lines above
                yield True
                path.unlink(missing_ok=True)
                return
        yield False
