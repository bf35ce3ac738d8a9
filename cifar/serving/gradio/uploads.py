"""The folder of uploaded files: private, limited in size, and swept by age, whichever process wrote a file.

Gradio's own option `delete_cache` knows only the files that its process accepted. Uploads that were cut off, or accepted by
another worker, would stay forever. Gradio has no quota.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar.errors import SettingsError, UploadsFull
from cifar.serving.asgi import announced_bytes
from cifar.serving.auth.principal import rate_limit_key
from cifar.serving.front.body_limit import refuse
from cifar.serving.process.lifespan import repeat_while_serving
from cifar.settings import Settings

UPLOAD_LIFETIME_SECONDS = 3600
_SWEEPS_IN_LIFETIME = 4
_NAME = "cifar-uploads"
_MARKER = ".cifar-uploads"
"""A file in each folder that was made for uploads. Nothing is deleted in a folder without it."""
UPLOAD_PATH = "/gradio_api/upload"
_BYTES_PER_FILE = 8 * 1024
"""Counted for a file in addition to its blocks: it has a folder of its own."""
_RESERVED_BYTES = 64 * 1024**2
_RESERVED_SHARE = 0.05
"""Space that uploads leave free on their disk for other writers: the smaller one of these two."""


def own_folder(settings: Settings, shared: Path | None = None) -> Path:
    """Create the folder for uploads, readable by this user only, and return it.

    It is a folder in `settings.uploads`, so that nothing else there is ever deleted. Without this setting it is in the folder of
    temporary files, with the user's number in its name; if another user has taken that name, it is in `shared` or has a random name.

    Raises:
        SettingsError: the folder in `settings.uploads` cannot be written, is a link, or belongs to another user.
    """
    if settings.uploads:
        folder = settings.uploads / _NAME
        try:
            settings.uploads.mkdir(parents=True, exist_ok=True)
            claimed = _claim(folder)
        except OSError as error:
            raise SettingsError(
                f"CIFAR_UPLOADS={str(settings.uploads)!r} cannot be written: {error.strerror}."
            ) from error
        if not claimed:
            raise SettingsError(
                f"{folder} cannot hold uploads: it is a link, is open to other users, or was not made for them. "
                "Remove it, or set CIFAR_UPLOADS to another folder."
            )
        return folder
    folder = Path(tempfile.gettempdir()) / f"cifar-space-{os.geteuid()}"
    if not _claim(folder):
        folder = (shared or Path(tempfile.mkdtemp(prefix="cifar-space-"))) / _NAME
        _claim(folder)
    return folder


def _claim(folder: Path) -> bool:
    """Create the folder unless it exists, and return whether it is one of ours."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if _is_private(folder) and not any(folder.iterdir()):  # just made, perhaps by another worker
        (folder / _MARKER).touch(mode=0o600)
    return _is_ours(folder)


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _is_ours(folder: Path) -> bool:
    return _is_private(folder) and (folder / _MARKER).is_file()


def sweep(folder: Path, *, max_age_seconds: float = UPLOAD_LIFETIME_SECONDS) -> None:
    """Delete files in `folder` that were last written more than `max_age_seconds` ago, and old empty folders.

    In a folder that is not from `own_folder`, nothing is deleted.
    """
    oldest = time.time() - max_age_seconds
    with suppress(OSError):  # another process may sweep the same folder at the same time
        if not _is_ours(folder):
            return
        for path in sorted(folder.rglob("*"), reverse=True):  # a folder's files come before the folder
            if path != folder / _MARKER:
                _delete_if_older(path, oldest)


def _delete_if_older(path: Path, oldest: float) -> None:
    with suppress(OSError):  # already deleted, or not empty: the sweep goes on
        if path.lstat().st_mtime >= oldest:
            return
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def sweep_while_serving(api: FastAPI, folder: Path, *, max_age_seconds: float = UPLOAD_LIFETIME_SECONDS) -> None:
    """Sweep when the server starts, and then every quarter of `max_age_seconds` until it stops."""
    work = partial(sweep, folder, max_age_seconds=max_age_seconds)
    repeat_while_serving(api, work, seconds=max_age_seconds / _SWEEPS_IN_LIFETIME, at_start=True)


class UploadQuota:
    """Refuses an upload before its body is read when the folder, or its disk, has no room for it, or when its caller has half of the quota."""

    def __init__(
        self, app: ASGIApp, folder: Path, settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app = app
        self._clock = clock
        self._folder = folder
        self._max_body_bytes = settings.max_body_bytes
        self._quota = settings.max_uploads_bytes
        self._share = max(self._quota // 2 // settings.workers, self._max_body_bytes)
        self._of_callers: deque[Counter[str]] = deque([Counter()], maxlen=_SWEEPS_IN_LIFETIME + 1)
        """Bytes by caller in each time between two sweeps, the last one at the end. Those of earlier times have been deleted."""
        self._period = 0
        self._arriving_bytes = 0
        self._stored_bytes = 0
        self._measured_at = -float("inf")
        self._measuring_took = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") != UPLOAD_PATH:
            await self.app(scope, receive, send)
            return
        announced, caller = announced_bytes(scope), rate_limit_key(scope)
        size = self._max_body_bytes if announced is None else announced
        has_room = await asyncio.to_thread(self._has_room, size)
        own = self._now()
        if not has_room or sum(period[caller] for period in self._of_callers) + size > self._share:
            error = UploadsFull("There is no room for more uploads at the moment. Try again in a few minutes.")
            await refuse(error, scope, receive, send)
            return
        own[caller] += size
        self._arriving_bytes += size
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            own[caller] -= size - received_bytes
            self._arriving_bytes -= size
            self._stored_bytes += received_bytes

    def _now(self) -> Counter[str]:
        """Return the bytes by caller since the last sweep."""
        period = int(self._clock() * _SWEEPS_IN_LIFETIME / UPLOAD_LIFETIME_SECONDS)
        while self._period < period:
            self._of_callers.append(Counter())
            self._period = max(self._period + 1, period - _SWEEPS_IN_LIFETIME)
        return self._of_callers[-1]

    def _has_room(self, size: int) -> bool:
        began = self._clock()
        if began - self._measured_at >= 20 * self._measuring_took:  # so that measuring takes at most 5 % of the time
            self._stored_bytes = _stored_bytes(self._folder)
            self._measured_at = self._clock()
            self._measuring_took = self._measured_at - began
        disk = shutil.disk_usage(self._folder)
        reserved = min(_RESERVED_BYTES, int(_RESERVED_SHARE * disk.total))
        coming = self._arriving_bytes + size
        return self._stored_bytes + coming <= self._quota and disk.free - coming >= reserved


def _stored_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted meanwhile
                total += os.lstat(f"{parent}/{name}").st_blocks * 512 + _BYTES_PER_FILE
    return total
