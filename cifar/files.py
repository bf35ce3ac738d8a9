"""Atomic writes: other processes see the old content of a file or folder or the new one, never a part, even after a crash.

Content is written under a hidden temporary name in the same folder, flushed to disk, and renamed, so that it also survives a
power failure. All temporary names begin with `TEMPORARY_PREFIX`: code that lists folders can skip them, and
`remove_leftovers` finds those of killed processes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def replacing(path: Path, *, mode: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Replace a file: write to the yielded temporary file, which takes the place of `path` when the block succeeds.

    When the block raises, `path` is untouched and the temporary file is removed. A file that root replaces keeps its owner.

    Args:
        path: the file to create or replace. The temporary file has the same suffix, since some writers depend on it.
        mode: permissions of the new file, such as 0o600. None: those of the file that it replaces, if there is one.
        durable: flush to disk, so that the content survives a power failure. This takes milliseconds.
    """
    temporary = _temporary_path(path.parent, path.suffix)
    try:
        if mode is not None:
            temporary.touch(mode=mode)
        yield temporary
        if durable:
            _flush(temporary)
        if path.exists():
            before = path.stat()
            if os.name == "posix" and os.geteuid() == 0:
                os.chown(temporary, before.st_uid, before.st_gid)
            if mode is None:
                temporary.chmod(stat.S_IMODE(before.st_mode))
        temporary.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def create_once(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Create a file that must not exist yet. Of several processes that try at the same time, exactly one succeeds.

    Args:
        path: the file to create.
        content: the bytes to write.
        mode: permissions of the file, from which the umask is subtracted.

    Raises:
        FileExistsError: the file exists already; it is untouched.
    """
    temporary = _temporary_path(path.parent)
    try:
        temporary.touch(mode=mode)
        temporary.write_bytes(content)
        _flush(temporary)
        os.link(temporary, path)  # fails when the name is taken; a rename would replace the file
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder in `parent`, to be filled and renamed. At the end it is removed, unless it was renamed."""
    folder = _temporary_path(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder with its content: fill the yielded temporary folder, which becomes `path` when the block succeeds.

    Raises:
        OSError: `path` exists and is not an empty folder; it is untouched.
    """
    with temporary_folder(path.parent) as folder:
        yield folder
        for content in folder.rglob("*"):
            _flush(content)
        folder.rename(path)
        _flush(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created if needed. Other processes wait until it is released."""
    import fcntl  # does not exist on Windows, where no command needs a lock

    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unwritable(folder: Path) -> str:
    """Return why files cannot be written in a folder, which need not exist, or an empty string. Nothing is created."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is a file"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not writable"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of killed processes. Call it only while no other process writes to `folder`."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _temporary_path(folder: Path, suffix: str = "") -> Path:
    return folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{suffix}"


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    if os.name != "posix":  # Windows can flush neither a folder nor a file that is open for reading only
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
