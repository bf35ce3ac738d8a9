"""Turns a folder with a SavedModel into a version: the last steps of every export."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifar.files import sha256
from cifar.models.manifest import FileInfo, Manifest
from cifar.models.registry import MANIFEST, Version, is_version_number, model_files
from cifar.training.export.compare import Comparison
from cifar.training.export.formats.warmup import write_warmup_requests
from cifar.training.export.formats.write import write_formats
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.quantize import Precision
from cifar.training.export.litert.write import write_litert
from cifar.training.export.source import ExportSource
from cifar.training.export.views import measure_views


def complete(
    folder: Path,
    manifest: Manifest,
    *,
    source: ExportSource,
    signatures: Any,
    comparison: Comparison,
    precision: Precision,
    held_out: HeldOut | None,
    also: Sequence[str],
) -> Version:
    """Write the files beside a SavedModel in a temporary folder, each compared with the model, and publish the version.

    The number, the files and the measurements of the new files are filled into the manifest. Without `held_out`, int8 and mirror
    images are judged on the comparison images, without labels.

    Raises:
        ExportError: a file gives other answers than the model, or int8 was requested and not accepted.
    """
    held_out = held_out or HeldOut(comparison.images, None, "comparison images")
    difference, quantization = write_litert(
        signatures, folder, comparison, manifest, precision=precision, held_out=held_out
    )
    write_warmup_requests(manifest, folder)
    written = write_formats(
        also, folder, manifest=manifest, source=source, signatures=signatures, comparison=comparison
    )
    parity = manifest.parity | {"litert_max_abs_difference": difference} | written
    views = None if manifest.is_multi_label else measure_views(signatures, held_out)
    update = {"quantization": quantization, "views": views, "parity": parity}
    return _publish(folder, manifest.model_copy(update=update))


def _publish(folder: Path, manifest: Manifest) -> Version:
    """Write the manifest, and rename the folder to the next free number."""
    base = folder.parent
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
