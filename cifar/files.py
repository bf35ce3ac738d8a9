"""The one way to write files and folders whole: a reader sees the old content or the new, and a crash leaves no half.

Everything is first written under a hidden temporary name in the same folder, flushed to disk, and then renamed. All
temporary names begin with `TEMPORARY_PREFIX`, so code that lists folders can skip them and `remove_leftovers` can find
what a killed process left behind.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def replacing(path: Path, *, mode: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Replace a file: write to the yielded temporary file, which takes the place of `path` when the block succeeds.

    When the block raises, `path` is untouched and the temporary file is removed. A file that root replaces keeps its owner.

    Args:
        path: the file to create or replace. The temporary file has the same suffix, since some writers go by it.
        mode: permissions of the new file, such as 0o600. None: those that the writer gives it.
        durable: flush to disk before renaming, so that the content survives a power failure. Costs milliseconds.
    """
    temporary = _temporary_sibling(path)
    try:
        if mode is not None:
            temporary.touch(mode=mode)
        yield temporary
        if durable:
            _sync(temporary)
        if os.name == "posix" and os.geteuid() == 0 and path.exists():
            os.chown(temporary, path.stat().st_uid, path.stat().st_gid)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def create_once(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file that must not exist yet. Of several processes that try at once, exactly one succeeds.

    Args:
        path: the file to create.
        content: all of it.
        mode: its permissions, lessened by the umask.

    Raises:
        FileExistsError: the file exists already; it is untouched.
    """
    temporary = _temporary_sibling(path)
    try:
        temporary.touch(mode=mode)
        temporary.write_bytes(content)
        _sync(temporary)
        os.link(temporary, path)  # fails where the name is taken; a rename would replace the file
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder in `parent` to fill and then rename. It is removed at the end unless it was renamed."""
    folder = parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder whole: fill the yielded temporary folder, which becomes `path` when the block succeeds.

    Raises:
        OSError: `path` exists and is not an empty folder; it is untouched.
    """
    with temporary_folder(path.parent) as folder:
        yield folder
        folder.rename(path)
        _sync(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created if need be. Other processes wait until it is released."""
    import fcntl  # not on Windows, where nothing that needs a lock runs

    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`. Nobody may be writing there."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{path.suffix}")


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
