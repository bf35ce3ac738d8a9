"""Turn a folder of exported files into a version: the last step of every export."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cifar.files import sha256
from cifar.models.manifest import FileInfo, Manifest
from cifar.models.registry import MANIFEST, Version, is_version_number, model_files


def publish(folder: Path, base: Path, manifest: Manifest) -> Version:
    """Write the manifest, and rename the folder to the next free number.

    Args:
        folder: a temporary folder under `base`, with all files of the version.
        base: the folder of the model's versions.
        manifest: of the version. Its number and its files are replaced by the actual ones.
    """
    files = {
        file.relative_to(folder).as_posix(): FileInfo(bytes=file.stat().st_size, sha256=sha256(file))
        for file in model_files(folder)
    }
    while True:
        manifest = manifest.model_copy(update={"version": next_number(base), "files": files})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        target = base / str(manifest.version)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            continue  # another export took the number in the meantime
        return Version(target, manifest)


def next_number(base: Path) -> int:
    """Return the highest number in use plus one, counting incomplete versions too, so that nothing is overwritten."""
    return max((int(path.name) for path in base.iterdir() if is_version_number(path.name)), default=0) + 1


def now() -> str:
    """Return the time of an export, as manifests hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
