"""An evaluation in a folder of its own: report.json, report.md and pictures. Whole, or not there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifar.cpus import available_cpus
from cifar.errors import DataError
from cifar.models.engines import engine_of
from cifar.models.predictor import Predictor
from cifar.models.registry import Version
from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.libraries import library_versions
from cifar.training.report.evaluate import evaluate
from cifar.training.report.text import report_as_markdown

REPORT = "report.json"


def make_report(
    version: Version, settings: Settings, source: str, *, out: Path | None, views: bool, disturbed_images: int
) -> dict[str, Any]:
    """Measure a version on the test part of a data set, and write what was found.

    Args:
        version: what to measure, on the engine that `settings` choose.
        settings: engine and limits.
        source: see `load_dataset`.
        out: a folder that is not there yet: `report.json`, `report.md` and PNG files appear in it at once, at the end.
        views: see `evaluate`.
        disturbed_images: see `evaluate`.

    Returns:
        What `evaluate` gives, and what was measured, when and where: the content of `report.json`.

    Raises:
        DataError: `out` exists or cannot be made; or see `load_dataset` and `evaluate`.
        VersionUnusable: see `Predictor.load`.
    """
    if out:
        _refuse(out)
    spec = version.manifest.image
    dataset = load_dataset(source, settings, image_shape=spec.shape)
    predictor = Predictor.load(version, engine_of(settings))
    report = {
        "name": version.name,
        "version": version.number,
        "exported": version.manifest.created,
        "source": source,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {available_cpus()} processors",
        "libraries": library_versions(),
        **evaluate(predictor, dataset, views=views, disturbed_images=disturbed_images),
    }
    if out:
        _write(report, dataset.test_images, out)
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """The content of a folder's `report.json`.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        missing = sorted(_NEEDED - report.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder} holds no report ({type(error).__name__}). {_MAKE_ONE} --out {folder}") from error
    if missing:
        raise DataError(f"{folder / REPORT} lacks {', '.join(missing)}. {_MAKE_ONE} --out DIR")
    return report


_MAKE_ONE = "Make one: python -m cifar evaluate --data SOURCE"
_NEEDED = {
    "name",
    "version",
    "exported",
    "source",
    "created",
    "machine",
    "engine",
    "images",
    "accuracy",
    "per_class",
    "confusion_matrix",
} | {*("top_k", "loss", "ece", "reliability", "in_distribution", "views", "robustness", "mistakes")}


def _refuse(out: Path) -> None:
    """Say before minutes of computing what would be said after them."""
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists, and a report is never overwritten. Name another folder: --out DIR")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise DataError(f"{out} cannot be made: {above} is no folder that you may write to. Name another: --out DIR")


def _write(report: dict[str, Any], images: Any, out: Path) -> None:
    """Fill a hidden sibling, then give it its name."""
    from cifar.training.report.plots import draw_report

    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".report-", dir=out.parent))
    try:
        folder.chmod(0o755)  # mkdtemp makes it private
        pictures = draw_report(report, images, folder)
        (folder / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(report_as_markdown(report, pictures), encoding="utf-8")
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
