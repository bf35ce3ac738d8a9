"""What a run leaves for later: its answers to the held-out images, which photos in use are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from cifar.analytics.drift import reference
from cifar.models.registry import Reference
from cifar.training.run.calibration import Confidence, calibrated, ood_score, with_features
from cifar.training.run.run_folder import replacing

REFERENCE_FILE = "reference.json"
_BATCH = 500


def write_reference(
    run: Path, model: keras.Model, confidence: Confidence | None, *, held_out: np.ndarray, class_names: Sequence[str]
) -> None:
    """Answer the held-out images as an export of the run will, and write what came into the folder `run`.

    Args:
        run: the run's folder.
        model: from `(n, height, width, channels)` pixels in [0, 255] to `(n, classes)` probabilities.
        confidence: what was fitted to it, if anything.
        held_out: `(n, height, width, channels)` `uint8` that the model was not fitted on.
        class_names: in the order of the outputs.
    """
    network = with_features(model) if confidence else None
    if confidence is None or network is None:
        answers, threshold = model.predict(held_out, batch_size=_BATCH, verbose=0), None
    else:
        features, probabilities = network.predict(held_out, batch_size=_BATCH, verbose=0)
        score = ood_score(features, confidence, confidence.arrays)
        columns = calibrated(probabilities, confidence.temperature), score[:, None]
        answers = np.hstack([keras.ops.convert_to_numpy(column) for column in columns])
        threshold = confidence.report["threshold"]
    found = reference(answers, held_out, class_names, threshold=threshold, source="held-out training images")
    with replacing(run / REFERENCE_FILE) as temporary:
        temporary.write_text(found.model_dump_json(indent=2))


def read_reference(run: Path) -> Reference | None:
    """What `write_reference` wrote, or None for a run without."""
    file = run / REFERENCE_FILE
    return Reference.model_validate_json(file.read_bytes()) if file.is_file() else None
