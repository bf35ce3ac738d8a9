"""What test images say of a model: counts and shares, in pure NumPy, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cifar.errors import BadParameter
from cifar.statistics import wilson_interval

_BINS = 15
_TOP_K = (1, 2, 3, 5)
_LEAST_PROBABILITY = 1e-7
"""One wrong answer given with certainty must not make the mean loss infinite. Keras cuts here too."""


def measure(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Compare answers with labels.

    Args:
        probabilities: `(n, classes)` floats in [0, 1], each row adding to 1, `n` at least 1.
        labels: `(n,)` integers, positions in `class_names`.
        class_names: the classes, in the order of the columns.

    Returns:
        Shares are in [0, 1], intervals `[low, high]` are 95 % (Wilson, 1927):

        - `images`, `accuracy`, `accuracy_interval`
        - `per_class`: by name `images`, `accuracy`, `interval`; the last two None for a class without images
        - `confusion_matrix`: counts, a row for each true class, a column for each answer
        - `top_k`: for k of 1, 2, 3, 5, as text, the share of images whose class is among the k most probable
        - `loss`: mean negative logarithm of the true class's probability, in nats
        - `ece`: expected calibration error over 15 bins of equal width (Guo et al., 2017, arXiv:1706.04599)
        - `reliability`: the bins `low < confidence <= high`: `images`, mean `confidence`, `accuracy`; the last two
          None in an empty bin

    Raises:
        BadParameter: sizes do not fit, a label is no class, or a probability is none; says what came.
    """
    _check(probabilities, labels, class_names)
    classes = len(class_names)
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    right = ranked[:, 0] == labels
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, ranked[:, 0]), 1)
    of_true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    bins = _reliability(probabilities.max(axis=1).astype(np.float64), right)
    return {
        "images": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_interval": wilson_interval(int(right.sum()), len(labels)),
        "per_class": {
            name: _of_class(int(row[at]), int(row.sum()))
            for at, (name, row) in enumerate(zip(class_names, confusion, strict=True))
        },
        "confusion_matrix": confusion.tolist(),
        "top_k": {str(k): float((ranked[:, :k] == labels[:, None]).any(axis=1).mean()) for k in _TOP_K if k <= classes},
        "loss": float(-np.log(np.maximum(of_true_class, _LEAST_PROBABILITY)).mean()),
        "ece": sum(entry["images"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins if entry["images"])
        / len(labels),
        "reliability": bins,
    }


def _check(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if probabilities.shape != (len(labels), len(class_names)) or not len(labels):
        raise BadParameter(
            f"Expected probabilities of shape (n, {len(class_names)}) for n labels, n at least 1; "
            f"got {probabilities.shape} for {len(labels)} labels."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(class_names):
        raise BadParameter(f"Labels must be whole numbers from 0 to {len(class_names) - 1}; got {np.unique(labels)}.")
    # Written so that NaN fails too.
    if not (probabilities.min() >= 0 and np.abs(probabilities.sum(axis=1) - 1).max() < 1e-3):
        raise BadParameter(
            "Each row must be probabilities that add to 1: there is NaN, a negative number or another sum."
        )


def _of_class(right: int, images: int) -> dict[str, Any]:
    if not images:
        return {"images": 0, "accuracy": None, "interval": None}
    return {"images": images, "accuracy": right / images, "interval": wilson_interval(right, images)}


def _reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    at = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    return [_reliability_bin(number, confidence[at == number], right[at == number]) for number in range(_BINS)]


def _reliability_bin(number: int, confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    return {
        "low": number / _BINS,
        "high": (number + 1) / _BINS,
        "images": len(right),
        "confidence": float(confidence.mean()) if len(right) else None,
        "accuracy": float(right.mean()) if len(right) else None,
    }
