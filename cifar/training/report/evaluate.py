"""Measure an exported version on test images, with the Predictor that also serves requests."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar.cpus import available_cpus
from cifar.errors import DataError
from cifar.models.engines import GAIN_FROM_BATCHES
from cifar.models.predictor import Prediction, Predictor
from cifar.statistics import wilson_interval
from cifar.training.data.dataset import Dataset
from cifar.training.data.disturbances import DISTURBANCES
from cifar.training.measures import measure

_BATCH = 64
_MAX_MISTAKES = 30
_SEED = 0


def evaluate(predictor: Predictor, dataset: Dataset, *, views: int = 1, disturbed_images: int = 0) -> dict[str, Any]:
    """Classify every test image as the server would, and measure the predictions.

    Args:
        predictor: the version, loaded on the engine to measure.
        dataset: its test images are used. Its classes must be those of the version, in any order.
        views: also measure the mean of this many views of each image (test-time augmentation), and its cost. 1: not.
        disturbed_images: also measure disturbed copies of this many test images, drawn with a fixed seed. 0: none.

    Returns:
        A dictionary that can be written as JSON: the result of `measure`, and

        - `engine`, `threads`, `seconds`
        - `in_distribution`: None for a version without an out-of-distribution score
        - `views`, `robustness`: None if not requested
        - `mistakes`: the 30 wrong predictions with the highest confidence, or all if there are fewer, in descending order; each has
          `image` (position among the test images), `true` and `given` (class names), and `confidence`

    Raises:
        DataError: the version is multi-label, or the data set has no test images, or other classes than the version.
    """
    labels = _labels(predictor, dataset)
    images = dataset.test_images
    # The first call is slow. Without this warm-up, the single view would take longer, and the relative cost of the views would be
    # too low.
    _classify(predictor, images[: _BATCH * _threads(predictor)], "warm-up")
    answers = _classify(predictor, images, "test images")
    return {
        "engine": predictor.engine,
        "threads": _threads(predictor),
        "seconds": round(answers.seconds, 2),
        **measure(answers.probabilities, labels, predictor.class_names),
        "in_distribution": _in_distribution(answers, labels),
        "views": _from_views(predictor, images, labels, views, answers.processor_seconds) if views > 1 else None,
        "robustness": _robustness(predictor, images, labels, disturbed_images) if disturbed_images else None,
        "mistakes": _mistakes(answers.probabilities, labels, predictor.class_names),
    }


def _labels(predictor: Predictor, dataset: Dataset) -> np.ndarray:
    """Return the test labels as positions in the version's class names."""
    if predictor.is_multi_label:
        raise DataError(
            f"Version {predictor.version.number} is multi-label, and a data set has one class for each image. "
            "Accuracy can be measured for single-label versions only."
        )
    if not len(dataset.test_labels):
        raise DataError(f"{dataset.source} has no test images. Add test/<class>/*.")
    if set(dataset.class_names) != set(predictor.class_names):
        raise DataError(
            f"{dataset.source} has the classes {', '.join(dataset.class_names)}; the version has {', '.join(predictor.class_names)}. "
            "Name a data set with the classes of the version, or another version."
        )
    positions = np.array([predictor.class_names.index(name) for name in dataset.class_names], np.int64)
    return positions.take(dataset.test_labels)


@dataclass(frozen=True)
class _Answers:
    """The Predictor's answers for `n` images."""

    probabilities: np.ndarray
    """`(n, classes)`."""
    in_distribution: np.ndarray | None
    """`(n,)` `bool`; None for a version without an out-of-distribution score."""
    seconds: float
    processor_seconds: float
    """Processor time of all threads; unlike `seconds`, it hardly depends on other programs on the machine."""


def _classify(predictor: Predictor, images: np.ndarray, description: str, *, views: int = 1) -> _Answers:
    """Classify images and show a progress bar with this description."""
    size = _BATCH // views
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    started, before = time.monotonic(), time.process_time()
    predictions: list[Prediction] = []
    pool = ThreadPoolExecutor(_threads(predictor))
    try:
        with tqdm(total=len(images), desc=description, unit=" images", disable=None, leave=False) as bar:
            for answers in pool.map(lambda batch: predictor.predict(batch, top_k=1, views=views), batches):
                predictions += answers
                bar.update(len(answers))
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the remaining batches
    in_distribution = [prediction.in_distribution for prediction in predictions]
    return _Answers(
        probabilities=np.array([list(prediction.class_scores.values()) for prediction in predictions]),
        in_distribution=None if None in in_distribution else np.array(in_distribution),
        seconds=time.monotonic() - started,
        processor_seconds=time.process_time() - before,
    )


def _threads(predictor: Predictor) -> int:
    # LiteRT computes one image at a time in the calling thread; TensorFlow distributes a batch over the processors itself.
    return 1 if predictor.engine in GAIN_FROM_BATCHES else available_cpus()


def _in_distribution(answers: _Answers, labels: np.ndarray) -> dict[str, Any] | None:
    """Measure how many test images count as in distribution, and the accuracy on those and on the others."""
    if answers.in_distribution is None:
        return None
    right = answers.probabilities.argmax(axis=1) == labels
    inside, count = answers.in_distribution, int(answers.in_distribution.sum())
    return {
        "share": count / len(labels),
        "interval": wilson_interval(count, len(labels)),
        "accuracy_inside": float(right[inside].mean()) if inside.any() else None,
        "accuracy_outside": float(right[~inside].mean()) if not inside.all() else None,
    }


def _from_views(
    predictor: Predictor, images: np.ndarray, labels: np.ndarray, views: int, single_view_seconds: float
) -> dict[str, Any]:
    """Measure the mean of several views, as the server gives it on request."""
    answers = _classify(predictor, images, f"{views} views", views=views)
    measured = measure(answers.probabilities, labels, predictor.class_names)
    return {
        "views": views,
        "seconds": round(answers.seconds, 2),
        "times_the_single_view": round(answers.processor_seconds / single_view_seconds, 1),
        **{name: measured[name] for name in ("accuracy", "accuracy_interval", "top_k", "loss", "ece")},
        "in_distribution": _in_distribution(answers, labels),
    }


def _robustness(predictor: Predictor, images: np.ndarray, labels: np.ndarray, count: int) -> dict[str, Any]:
    """Measure accuracy, mean confidence and calibration error at each strength of each disturbance, on the same images."""
    count = min(count, len(images))
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(images), count, replace=False))

    def measure_on(pixels: np.ndarray, description: str) -> dict[str, Any]:
        answers = _classify(predictor, pixels, description)
        probabilities = answers.probabilities
        measured = measure(probabilities, labels[chosen], predictor.class_names)
        return {
            "accuracy": measured["accuracy"],
            "interval": measured["accuracy_interval"],
            "confidence": float(probabilities.max(axis=1).mean()),
            "ece": measured["ece"],
            "in_distribution": _in_distribution(answers, labels[chosen]),
        }

    return {
        "images": count,
        "seed": _SEED,
        "undisturbed": measure_on(images[chosen], "undisturbed"),
        "disturbances": {
            name: {
                "unit": disturbance.unit,
                "points": [
                    {"strength": strength}
                    | measure_on(disturbance.apply(images[chosen], strength), f"{name} {strength:g}")
                    for strength in disturbance.strengths
                ],
            }
            for name, disturbance in DISTURBANCES.items()
        },
    }


def _mistakes(probabilities: np.ndarray, labels: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISTAKES]
    return [
        {
            "image": int(position),
            "true": class_names[labels[position]],
            "given": class_names[predicted[position]],
            "confidence": float(confidence[position]),
        }
        for position in worst
    ]
