"""Evaluate a version and write the report: a folder with `report.json`, `report.md` and pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifar.cpus import available_cpus
from cifar.errors import DataError
from cifar.files import new_folder
from cifar.models.engines import engine_of
from cifar.models.predictor import Predictor
from cifar.models.registry import Version
from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.libraries import library_versions
from cifar.training.report.evaluate import evaluate
from cifar.training.report.photographs import find_photographs, measure_photographs
from cifar.training.report.text import report_as_markdown

REPORT = "report.json"


def make_report(
    version: Version,
    settings: Settings,
    source: str,
    *,
    photographs: Sequence[str] = (),
    out: Path | None,
    views: int = 1,
    disturbed_images: int = 0,
    skip_damaged: bool = False,
) -> dict[str, Any]:
    """Evaluate a version on the test images of a data set, and optionally write the report.

    The folder `out` must not exist yet. It is created when the report is complete, with `report.json`, `report.md` and PNG files.
    For the other arguments see `load_dataset`, `evaluate` and `find_photographs`.

    Returns:
        The content of `report.json`: the result of `evaluate`, `photographs` (a result of `measure_photographs` for each folder), and
        the name, version, data set, time, machine and libraries.

    Raises:
        DataError: `out` exists or cannot be created; see also `load_dataset`, `evaluate` and `find_photographs`.
        VersionUnusable: see `Predictor.load`.
    """
    if out:
        _check_output(out)
    spec, class_names = version.manifest.image, version.manifest.class_names
    found = [find_photographs(folder, class_names) for folder in photographs]
    dataset = load_dataset(source, settings, image_shape=spec.shape, skip_damaged=skip_damaged)
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
        "photographs": [measure_photographs(predictor, each, settings) for each in found],
    }
    if out:
        _write(report, dataset.test_images, out)
    return report


def read_report(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `report.json`.

    Raises:
        DataError: the file does not exist, is damaged, or lacks a field.
    """
    try:
        report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        missing = sorted(_REQUIRED - report.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder} holds no report ({type(error).__name__}). {_HOW_TO_CREATE} --out {folder}"
        ) from error
    if missing:
        raise DataError(f"{folder / REPORT} lacks {', '.join(missing)}. {_HOW_TO_CREATE} --out DIR")
    return report


_HOW_TO_CREATE = "Create one with: python -m cifar evaluate --data SOURCE"
_REQUIRED = (
    {"name", "version", "exported", "source", "created", "machine", "engine"}
    | {"images", "accuracy", "top_k", "loss", "ece", "reliability", "per_class", "confusion_matrix"}
    | {"in_distribution", "views", "robustness", "mistakes"}
)


def _check_output(out: Path) -> None:
    """Refuse an unusable output folder before the evaluation, which takes minutes."""
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists, and a report is never overwritten. Name another folder: --out DIR")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise DataError(f"{out} cannot be created: {above} is not a writable folder. Name another folder: --out DIR")


def _write(report: dict[str, Any], images: Any, out: Path) -> None:
    from cifar.training.report.plots import draw_report

    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as folder:
        pictures = draw_report(report, images, folder)
        (folder / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(report_as_markdown(report, pictures), encoding="utf-8")
