"""The images of recorded predictions, where the settings keep them: named by their digest, so that none is there twice."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cifar.settings import Settings

_COUNT_SECONDS = 60.0


def images_folder(settings: Settings) -> Path:
    """Where they are."""
    return settings.records_folder / "images"


def kept_path(settings: Settings, digest: str) -> Path:
    """Where one is, or would be."""
    return images_folder(settings) / digest[:2] / digest


class KeptImages:
    """Keeps images up to the limits. Processes count again each minute, so together they may pass a limit by what they add in one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counted_at = -_COUNT_SECONDS
        self._files = self._bytes = 0

    def keep(self, digest: str, payload: bytes) -> bool:
        """Write an image, unless it is there; False when the limits are reached, the disk is full, or the folder cannot be used."""
        path = kept_path(self._settings, digest)
        try:
            os.utime(path)  # young again
        except FileNotFoundError:
            pass
        except OSError:
            return False
        else:
            return True
        too_many = self._files >= self._settings.max_kept_images
        if too_many or self._bytes + len(payload) > self._settings.max_kept_bytes:
            return False
        new = path.with_name(f".{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(payload)
            new.replace(path)
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            return False
        self._files += 1
        self._bytes += len(payload)
        return True

    def count(self) -> None:
        """See what is there, at most once a minute."""
        if time.monotonic() - self._counted_at < _COUNT_SECONDS:
            return
        sizes = [size for _, size, _ in kept_images(self._settings)]
        self._files, self._bytes, self._counted_at = len(sizes), sum(sizes), time.monotonic()


def kept_images(settings: Settings) -> Iterator[tuple[Path, int, float]]:
    """Path, bytes, and when each was last asked for."""
    for path in images_folder(settings).glob("*/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            yield path, status.st_size, status.st_mtime
