"""Deletes uploaded files by age, whichever process wrote them.

Gradio's own option `delete_cache` knows only the files that its process accepted. Uploads that were cut off, or accepted by
another worker, would stay forever.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from fastapi import FastAPI

from cifar.serving.process.lifespan import repeat_while_serving

UPLOAD_LIFETIME_SECONDS = 3600


def sweep(folder: Path, *, max_age_seconds: float) -> None:
    """Delete files under `folder` that were last written more than `max_age_seconds` ago, and old empty folders.

    `folder` need not exist.
    """
    oldest = time.time() - max_age_seconds
    with suppress(OSError):  # another process may sweep the same folder at the same time
        for path in sorted(folder.rglob("*"), reverse=True):  # a folder's files come before the folder
            _delete_if_older(path, oldest)


def _delete_if_older(path: Path, oldest: float) -> None:
    with suppress(OSError):  # already deleted, not empty, or another user's: the sweep goes on
        if path.lstat().st_mtime >= oldest:
            return
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def sweep_while_serving(api: FastAPI, folder: Path, *, max_age_seconds: float = UPLOAD_LIFETIME_SECONDS) -> None:
    """Sweep when the server starts, and then every quarter of `max_age_seconds` until it stops."""
    work = partial(sweep, folder, max_age_seconds=max_age_seconds)
    repeat_while_serving(api, work, seconds=max_age_seconds / 4, at_start=True)
