"""Nothing that was uploaded to the page stays: files are deleted by age, whichever process wrote them.

Gradio's own `delete_cache` knows only what its process accepted: an upload that was cut off, or taken by another
worker, would stay for good.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI

from cifar.serving.process.lifespan import cancelled_in_the_end, while_serving


def sweep(folder: Path, *, max_age_seconds: float) -> None:
    """Delete the files under `folder` that are older, and the empty folders that are.

    Args:
        folder: the upload folder; it need not exist.
        max_age_seconds: since a file was last written.
    """
    oldest = time.time() - max_age_seconds
    with suppress(OSError):  # another process sweeps the same folder, and may be faster anywhere here
        for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
            _delete_if_older(path, oldest)


def _delete_if_older(path: Path, oldest: float) -> None:
    with suppress(OSError):  # gone, not empty, or somebody else's: none of that may keep the others
        if path.lstat().st_mtime >= oldest:
            return
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def sweep_while_serving(api: FastAPI, folder: Path, *, max_age_seconds: int) -> None:
    """Sweep when the server starts and then four times in the age limit, until it stops."""

    async def sweep_forever() -> None:
        while True:
            await asyncio.to_thread(sweep, folder, max_age_seconds=max_age_seconds)
            await asyncio.sleep(max_age_seconds / 4)

    while_serving(api, lambda: cancelled_in_the_end(sweep_forever()))
