"""Measure an exported version on test images, through the Predictor that serves it."""

from __future__ import annotations

from typing import Any

import numpy as np

from cifar.errors import DataError
from cifar.predictor import Predictor
from cifar.training.data import Dataset

_BATCH = 256


def evaluate(predictor: Predictor, dataset: Dataset) -> dict[str, Any]:
    """Classify every test image and count.

    Returns:
        `version`, `images`, `accuracy`, `accuracy_by_class` and `confusion`: for each true class, how often each class
        was answered.

    Raises:
        DataError: the data set has no test part, or other classes than the version.
    """
    if not len(dataset.test_labels):
        raise DataError(f"{dataset.source} has no test images: add test/<class>/*.")
    if list(dataset.class_names) != predictor.class_names:
        raise DataError(
            f"{dataset.source} has the classes {', '.join(dataset.class_names)}; the version has {', '.join(predictor.class_names)}."
        )
    answers = np.concatenate(
        [
            predictor.probabilities(dataset.test_images[start : start + _BATCH]).argmax(axis=1)
            for start in range(0, len(dataset.test_labels), _BATCH)
        ]
    )
    classes = len(dataset.class_names)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (dataset.test_labels, answers), 1)
    of_class = confusion.diagonal() / confusion.sum(axis=1)
    return {
        "version": predictor.version.number,
        "images": len(answers),
        "accuracy": round(float((answers == dataset.test_labels).mean()), 4),
        "accuracy_by_class": dict(zip(dataset.class_names, of_class.round(4).tolist(), strict=True)),
        "confusion": dict(zip(dataset.class_names, confusion.tolist(), strict=True)),
    }
