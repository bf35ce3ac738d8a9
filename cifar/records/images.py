"""The images of recorded predictions, which are stored with the setting `keep_uploads`. File names are digests of the content."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cifar.files import replacing
from cifar.settings import Settings

_COUNT_SECONDS = 60.0


def images_folder(settings: Settings) -> Path:
    return settings.records_folder / "images"


def image_path(settings: Settings, digest: str) -> Path:
    """Return the path of an image, whether it is stored or not."""
    return images_folder(settings) / digest[:2] / digest


class KeptImages:
    """Stores images within the limits of the settings.

    Each process counts the files once a minute, so several processes together may exceed a limit by what they add in a minute.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counted_at = -_COUNT_SECONDS
        self._files = self._bytes = 0

    def put(self, digest: str, payload: bytes) -> bool:
        """Store an image, unless it is stored already. Return False when a limit is reached or the folder cannot be written.

        Not flushed to disk: losing the last images in a power failure is acceptable, a delay for each image is not.
        """
        path = image_path(self._settings, digest)
        try:
            os.utime(path)  # its retention starts again
        except FileNotFoundError:
            pass
        except OSError:
            return False
        else:
            return True
        too_many = self._files >= self._settings.max_kept_images
        if too_many or self._bytes + len(payload) > self._settings.max_kept_bytes:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, durable=False) as new:
                new.write_bytes(payload)
        except OSError:
            return False
        self._files += 1
        self._bytes += len(payload)
        return True

    def count(self) -> None:
        """Count the stored images, at most once a minute."""
        if time.monotonic() - self._counted_at < _COUNT_SECONDS:
            return
        sizes = [size for _, size, _ in kept_images(self._settings)]
        self._files, self._bytes, self._counted_at = len(sizes), sum(sizes), time.monotonic()


def kept_images(settings: Settings) -> Iterator[tuple[Path, int, float]]:
    """Yield path, size in bytes and time of the last use of each stored image."""
    for path in images_folder(settings).glob("*/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            yield path, status.st_size, status.st_mtime
