"""The reference distribution of a run: its answers to the held-out images, which drift is measured against later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from cifar.files import replacing
from cifar.images.decode import brightness_and_contrast
from cifar.models.manifest import OOD_THRESHOLD, Bins, Reference
from cifar.statistics import bin_counts, bin_edges
from cifar.training.run.calibration import Confidence, calibrated, raw_score, scaled_score, with_features

REFERENCE_FILE = "reference.json"
_BATCH = 500
_RECORDED_DIGITS = 6
"""Decimal places of a score in the records: 0.9999997 is recorded as 1, so the reference must count it as 1 too."""


def write_reference(
    run: Path, model: keras.Model, confidence: Confidence | None, *, held_out: np.ndarray, class_names: Sequence[str]
) -> np.ndarray:
    """Classify the held-out images as the exported version will, write the distribution of the answers, and return the predicted positions `(n,)`.

    The model, from pixels in [0, 255] to `(n, classes)` probabilities, was not fitted on the images, `(n, height, width, channels)`
    `uint8`.
    """
    network = with_features(model) if confidence else None
    if confidence is None or network is None:
        answers = model.predict(held_out, batch_size=_BATCH, verbose=0)
    else:
        features, probabilities = network.predict(held_out, batch_size=_BATCH, verbose=0)
        answers = served_answers(probabilities, raw_score(features, confidence.arrays), confidence)
    save_reference(run, make_reference(answers, held_out, class_names, source="held-out training images"))
    predicted: np.ndarray = answers[:, : len(class_names)].argmax(axis=1)
    return predicted


def served_answers(probabilities: np.ndarray, raw_scores: np.ndarray, confidence: Confidence) -> np.ndarray:
    """Return `(n, classes + 1)`: calibrated probabilities, and the score as it is served."""
    score = scaled_score(raw_scores, confidence)
    columns = calibrated(probabilities, confidence.temperature), score[:, None]
    return np.hstack([keras.ops.convert_to_numpy(column) for column in columns])


def save_reference(run: Path, reference: Reference) -> None:
    """Write what `read_reference` reads."""
    with replacing(run / REFERENCE_FILE) as temporary:
        temporary.write_text(reference.model_dump_json(indent=2))


def make_reference(answers: np.ndarray, images: np.ndarray, class_names: Sequence[str], *, source: str) -> Reference:
    """Count the answers to images, `(n, height, width, channels)` `uint8`, that the model was not fitted on.

    The answers are `(n, classes)` probabilities, or `(n, classes + 1)` with `ood_score` last, as `Predictor.answers` returns them.
    """
    classes = len(class_names)
    probabilities, scores = answers[:, :classes], answers[:, classes:]
    labels = np.bincount(probabilities.argmax(axis=1), minlength=classes).tolist()
    looks = np.array([brightness_and_contrast(image) for image in images])
    return Reference(
        images=len(images),
        source=source,
        labels=dict(zip(class_names, labels, strict=True)),
        confidence=_bins(probabilities.max(axis=1).astype(np.float64).round(_RECORDED_DIGITS)),
        brightness=_bins(looks[:, 0]),
        contrast=_bins(looks[:, 1]),
        in_distribution=int((scores <= OOD_THRESHOLD).sum()) if scores.shape[1] else None,
    )


def _bins(values: np.ndarray) -> Bins:
    edges = bin_edges(values)
    return Bins(edges=edges, counts=bin_counts(values, edges))


def read_reference(run: Path) -> Reference | None:
    """Return the reference that `write_reference` wrote, or None for a run without one."""
    file = run / REFERENCE_FILE
    return Reference.model_validate_json(file.read_bytes()) if file.is_file() else None
