"""Write the LiteRT file of a version: convert the network, check the file, and choose its precision."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar.errors import ExportError
from cifar.images.spec import ImageSpec
from cifar.models.engines import LITERT_FILE, litert_from
from cifar.models.manifest import Quantization
from cifar.training.export.compare import Comparison
from cifar.training.export.litert.file import convert, with_metadata
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.quantize import Precision, choose_precision

log = logging.getLogger(__name__)


def write_litert(
    signatures: Any,
    folder: Path,
    comparison: Comparison,
    *,
    name: str,
    image: ImageSpec,
    class_names: Sequence[str],
    multi_label: bool,
    precision: Precision,
    held_out: HeldOut | None,
) -> tuple[float | None, Quantization | None]:
    """Write the network of a SavedModel as a LiteRT file.

    Args:
        signatures: those of the loaded SavedModel.
        folder: of the version.
        comparison: images, and the answers that the float32 file must give to them.
        name: of the model.
        image: size of the input.
        class_names: in the order of the probabilities.
        multi_label: whether each class has a probability of its own.
        precision: see `choose_precision`.
        held_out: images to judge int8 on. Default: those of `comparison`, without labels.

    Returns:
        The largest difference of a probability between the float32 file and the model, and what is known of the precision.
        Both are None if LiteRT cannot run the network, so that TensorFlow must serve it.

    Raises:
        ExportError: the float32 file gives other answers, or int8 was requested and is not possible.
    """
    try:
        content = convert(signatures)
        rows = litert_from(content)(comparison.images)
    except Exception as error:  # the converter raises several types for an operation that LiteRT does not have
        if precision == "int8":
            raise ExportError(
                f"LiteRT cannot run this network ({type(error).__name__}), so that there is no int8 file."
            ) from error
        log.warning("LiteRT cannot run this network (%s). The version is served with TensorFlow.", type(error).__name__)
        return None, None
    difference = comparison.rows_differences("LiteRT file", rows)["probabilities"]
    content, quantization = choose_precision(
        content,
        precision,
        held_out or HeldOut(comparison.images, None, "comparison images"),
        classes=len(class_names),
        multi_label=multi_label,
        has_score=comparison.has_score,
    )
    file = folder / LITERT_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(with_metadata(content, name=name, image=image, class_names=class_names))
    return difference, quantization
