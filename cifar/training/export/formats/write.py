"""Writes the further files of a version, and compares each with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from cifar.errors import ExportError
from cifar.models.manifest import Manifest
from cifar.training.export.compare import Comparison
from cifar.training.export.formats.keras_file import KERAS_FILE, check_layers, write_keras
from cifar.training.export.formats.onnx import ONNX_FILE, write_onnx
from cifar.training.export.function import exported_function
from cifar.training.export.reading.classifier import Classifier
from cifar.training.export.source import ExportSource

_ONNX_PACKAGES = ("onnx", "onnxruntime", "tf2onnx")


def check_formats(also: Sequence[str], model: Classifier | None = None) -> None:
    """Check that the formats, `onnx` and `keras`, can be written, before the slow steps. `model` is None before it is read.

    Raises:
        ExportError: a package is missing, or the model has no layers for a Keras file.
    """
    if "keras" in also and model is not None:
        check_layers(model)
    missing = [name for name in _ONNX_PACKAGES if util.find_spec(name) is None] if "onnx" in also else []
    if missing:
        raise ExportError(
            f"--also onnx needs packages that are not installed. Install them: pip install {' '.join(missing)}"
        )


def write_formats(
    also: Sequence[str],
    folder: Path,
    *,
    manifest: Manifest,
    source: ExportSource,
    signatures: Any,
    comparison: Comparison,
) -> dict[str, float]:
    """Write the files in these formats, and return the largest differences of a probability for the manifest.

    Raises:
        ExportError: a file cannot be written, or gives other outputs than the model.
    """
    parity: dict[str, float] = {}
    if "onnx" in also:
        run = write_onnx(signatures, _metadata(manifest), folder / ONNX_FILE)
        one_by_one = [run(image[None]) for image in comparison.images]
        together = {name: np.concatenate([one[name] for one in one_by_one]) for name in comparison.expected}
        found = {"ONNX file": run(comparison.images), "ONNX file, one by one": together}
        parity["onnx_max_abs_difference"] = max(
            comparison.differences(name, outputs)["probabilities"] for name, outputs in found.items()
        )
    if "keras" in also and not (folder / KERAS_FILE).exists():  # a copy of a version may have one already
        reloaded = write_keras(source.model, folder / KERAS_FILE, source.options)
        parity["keras_max_abs_difference"] = _keras_difference(reloaded, source, comparison)
    return parity


def _keras_difference(reloaded: Classifier, source: ExportSource, comparison: Comparison) -> float:
    """Compare the model of a Keras file, which has no calibration, with the model that is exported."""
    images = comparison.images.astype(np.float32) / 255
    plain = [replace(source, model=model, confidence=None) for model in (source.model, reloaded)]
    expected, found = (np.asarray(exported_function(each)(images)["probabilities"]) for each in plain)
    own = replace(comparison, expected={"probabilities": expected})
    return own.differences("Keras file", {"probabilities": found})["probabilities"]


def _metadata(manifest: Manifest) -> dict[str, Any]:
    pixels = (
        manifest.pixels.preparation
        if manifest.pixels
        else ",".join(f"{value:g}" for value in manifest.input_range or ())
    )
    return {
        "name": manifest.name,
        "class_names": manifest.class_names,
        "task": manifest.task,
        "image": "uint8 pixels from 0 to 255, RGB or grey. The network scales them itself: do not normalize them.",
        "preparation": pixels,
        "preprocessing": manifest.preprocessing,
    }
