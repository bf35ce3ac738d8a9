"""Exports a version again, with new files beside its SavedModel. Its network and its measurements stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cifar.files import temporary_folder
from cifar.models.engines import LITERT_FILE
from cifar.models.manifest import Manifest
from cifar.models.registry import MANIFEST, Registry, Version
from cifar.training.export.compare import TOLERANCE, Comparison
from cifar.training.export.formats.onnx import ONNX_FILE
from cifar.training.export.formats.warmup import WARMUP_FILE
from cifar.training.export.formats.write import check_formats
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.quantize import Precision
from cifar.training.export.publish import complete, now
from cifar.training.export.source import ExportSource

_WRITTEN_AGAIN = [Path(file).name for file in (LITERT_FILE, ONNX_FILE, WARMUP_FILE)]


def reexport(
    path: Path,
    source: ExportSource,
    registry: Path,
    name: str,
    *,
    precision: Precision = "auto",
    held_out: HeldOut | None = None,
    also: Sequence[str] = (),
) -> Version:
    """Copy the version in a folder as the next version of `name`, and write the files beside its SavedModel again.

    Unlike `export`, which has the same options, it keeps the bytes of the SavedModel, the out-of-distribution score and the
    measurements.

    Raises:
        VersionUnusable: a file of the version differs from its manifest.
        ExportError: a new file gives other answers, or int8 was requested and not accepted.
    """
    check_formats(also)
    old = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    Version(path, old).verify()  # before loading: a SavedModel can run any code
    base = Registry(registry, name).base
    base.mkdir(parents=True, exist_ok=True)
    with temporary_folder(base) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, *_WRITTEN_AGAIN))
        loaded = tf.saved_model.load(str(folder))
        images = np.stack(list(source.images.values()))
        outputs = loaded.signatures["serving_uint8"](image=tf.constant(images))
        expected = {key: value.numpy() for key, value in outputs.items()}
        comparison = Comparison(list(source.images), images, expected, old.parity.get("tolerance", TOLERANCE))
        return complete(
            folder,
            old.model_copy(update={"name": name, "created": now()}),
            source=source,
            signatures=loaded.signatures,
            comparison=comparison,
            precision=precision,
            held_out=held_out,
            also=also,
        )
