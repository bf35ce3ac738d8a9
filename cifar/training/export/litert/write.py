"""Writes the LiteRT file of a version: converts the network, checks the file, and chooses its precision."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cifar.errors import ExportError
from cifar.models.engines import LITERT_FILE, litert_from
from cifar.models.manifest import Manifest, Quantization
from cifar.training.export.compare import Comparison
from cifar.training.export.litert.file import convert, with_metadata
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.quantize import Precision, choose_precision

log = logging.getLogger(__name__)


def write_litert(
    signatures: Any,
    folder: Path,
    comparison: Comparison,
    manifest: Manifest,
    *,
    precision: Precision,
    held_out: HeldOut,
) -> tuple[float | None, Quantization | None]:
    """Write the network of a SavedModel as a LiteRT file into the version's folder; its precision is that of `choose_precision`.

    Before that choice, it must give the answers of the comparison.

    Returns:
        The largest difference of a probability between the float32 file and the model, and the choice of the precision.
        Both are None if LiteRT cannot run the network, or gives other answers, so that TensorFlow must serve it.

    Raises:
        ExportError: int8 was requested and is not possible.
    """
    try:
        content = convert(signatures)
        rows = litert_from(content)(comparison.images)
        difference = comparison.rows_differences("LiteRT file", rows)["probabilities"]
    except Exception as error:  # the converter raises several types for an operation that LiteRT does not have
        reason = "its answers differ" if isinstance(error, ExportError) else type(error).__name__
        if precision == "int8":
            raise ExportError(f"LiteRT cannot run this network ({reason}), so there is no int8 file.") from error
        log.warning("LiteRT cannot run this network (%s). The version is served with TensorFlow.", reason)
        return None, None
    content, quantization = choose_precision(
        content,
        precision,
        held_out,
        classes=len(manifest.class_names),
        multi_label=manifest.is_multi_label,
        has_score=comparison.has_score,
    )
    file = folder / LITERT_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(with_metadata(content, name=manifest.name, image=manifest.image, class_names=manifest.class_names))
    return difference, quantization
