"""Measure an exported version on test images, through the Predictor that serves it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar.cpus import available_cpus
from cifar.errors import DataError
from cifar.models.engines import GAIN_FROM_BATCHES
from cifar.models.predictor import Prediction, Predictor
from cifar.training.data.dataset import Dataset
from cifar.training.data.disturbances import DISTURBANCES, shift
from cifar.training.measures import measure, wilson_interval

_BATCH = 64
_MISTAKES = 30
_SEED = 0
_LEAST_PROBABILITY = 1e-30
"""What a probability of zero counts as where its logarithm is taken: float32 has smaller ones, but not many."""


def evaluate(
    predictor: Predictor, dataset: Dataset, *, views: bool = False, disturbed_images: int = 0
) -> dict[str, Any]:
    """Classify every test image, as the server would, and measure the answers.

    Args:
        predictor: the version, on the engine that is to be measured.
        dataset: its test part is used. Its classes are the version's, in any order.
        views: also answer each image from six views of it (see `_views`), and say what that costs.
        disturbed_images: of so many test images, drawn with a fixed seed, also measure disturbed copies. 0: none.

    Returns:
        What `measure` gives, and `engine`, `seconds`, `threads`; `in_distribution`, `views` and `robustness` (None where
        the version, or the caller, does not have them); `mistakes`: the wrong answers given with most confidence, most
        confident first: `image` (its position in the test part), `true`, `given`, `confidence`. Ready for JSON.

    Raises:
        DataError: the data set has no test part, or other classes than the version.
    """
    labels = _labels(predictor, dataset)
    images = dataset.test_images
    _ask(
        predictor, images[: _BATCH * _threads(predictor)], "warming up"
    )  # what happens only the first time costs no view
    asked = _ask(predictor, images, "test images")
    return {
        "engine": predictor.engine,
        "threads": _threads(predictor),
        "seconds": round(asked.seconds, 2),
        **measure(asked.probabilities, labels, predictor.class_names),
        "in_distribution": _in_distribution(asked, labels),
        "views": _from_views(predictor, images, labels, asked.processor_seconds) if views else None,
        "robustness": _robustness(predictor, images, labels, disturbed_images) if disturbed_images else None,
        "mistakes": _mistakes(asked.probabilities, labels, predictor.class_names),
    }


def _labels(predictor: Predictor, dataset: Dataset) -> np.ndarray:
    """The test labels as positions in the version's class names."""
    if not len(dataset.test_labels):
        raise DataError(f"{dataset.source} has no test images: add test/<class>/*.")
    if set(dataset.class_names) != set(predictor.class_names):
        raise DataError(
            f"{dataset.source} has the classes {', '.join(dataset.class_names)}; the version has {', '.join(predictor.class_names)}. "
            "Name a data set of the version's classes, or another version."
        )
    positions = np.array([predictor.class_names.index(name) for name in dataset.class_names], np.int64)
    return positions.take(dataset.test_labels)


@dataclass(frozen=True)
class _Asked:
    """The Predictor's answers to `n` images."""

    probabilities: np.ndarray
    """`(n, classes)`."""
    known: np.ndarray | None
    """`(n,)`: whether each is taken for in distribution. None for a version that does not say."""
    seconds: float
    processor_seconds: float
    """Of all threads: other programs on the machine change it little."""


def _ask(predictor: Predictor, images: np.ndarray, words: str) -> _Asked:
    """Classify images, with a progress bar called `words`."""
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    started, before = time.monotonic(), time.process_time()
    predictions: list[Prediction] = []
    pool = ThreadPoolExecutor(_threads(predictor))
    try:
        with tqdm(total=len(images), desc=words, unit=" images", disable=None, leave=False) as bar:
            for answers in pool.map(lambda batch: predictor.predict(np.ascontiguousarray(batch), top_k=1), batches):
                predictions += answers
                bar.update(len(answers))
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for what nobody reads
    known = [prediction.in_distribution for prediction in predictions]
    return _Asked(
        probabilities=np.array([list(prediction.class_scores.values()) for prediction in predictions]),
        known=None if None in known else np.array(known),
        seconds=time.monotonic() - started,
        processor_seconds=time.process_time() - before,
    )


def _threads(predictor: Predictor) -> int:
    """LiteRT computes one image at a time in its caller's thread; TensorFlow spreads a batch over the processors itself."""
    return 1 if predictor.engine in GAIN_FROM_BATCHES else available_cpus()


def _in_distribution(asked: _Asked, labels: np.ndarray) -> dict[str, Any] | None:
    """How many test images, which all are of the classes, the version takes for such."""
    if asked.known is None:
        return None
    right = asked.probabilities.argmax(axis=1) == labels
    inside, count = asked.known, int(asked.known.sum())
    return {
        "share": count / len(labels),
        "interval": wilson_interval(count, len(labels)),
        "accuracy_inside": float(right[inside].mean()) if inside.any() else None,
        "accuracy_outside": float(right[~inside].mean()) if not inside.all() else None,
    }


def _views(images: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Six views with their weights: as it is and mirrored, each also moved by a pixel up-left and down-right.

    Source: KellerJordan/cifar10-airbench, `infer` with `tta_level=2`.
    """
    for side in (images, images[:, :, ::-1]):
        yield 0.25, side
        yield 0.125, shift(side, -1, -1, mode="reflect")
        yield 0.125, shift(side, 1, 1, mode="reflect")


def _from_views(
    predictor: Predictor, images: np.ndarray, labels: np.ndarray, single_view_seconds: float
) -> dict[str, Any]:
    """Average the logarithms of the probabilities, which is to average the network's logits."""
    total = np.zeros((len(images), len(predictor.class_names)))
    seconds, processor_seconds, count = 0.0, 0.0, 0
    for weight, view in _views(images):
        count += 1
        asked = _ask(predictor, view, f"view {count}")
        total += weight * np.log(np.maximum(asked.probabilities, _LEAST_PROBABILITY))
        seconds += asked.seconds
        processor_seconds += asked.processor_seconds
    scaled = np.exp(total - total.max(axis=1, keepdims=True))
    measured = measure(scaled / scaled.sum(axis=1, keepdims=True), labels, predictor.class_names)
    return {
        "views": count,
        "seconds": round(seconds, 2),
        "times_the_single_view": round(processor_seconds / single_view_seconds, 1),
        **{name: measured[name] for name in ("accuracy", "accuracy_interval", "top_k", "loss", "ece")},
    }


def _robustness(predictor: Predictor, images: np.ndarray, labels: np.ndarray, count: int) -> dict[str, Any]:
    """Accuracy and mean confidence at each strength of each disturbance, on the same images."""
    count = min(count, len(images))
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(images), count, replace=False))

    def at(pixels: np.ndarray, words: str) -> dict[str, Any]:
        probabilities = _ask(predictor, pixels, words).probabilities
        right = int((probabilities.argmax(axis=1) == labels[chosen]).sum())
        return {
            "accuracy": right / count,
            "interval": wilson_interval(right, count),
            "confidence": float(probabilities.max(axis=1).mean()),
        }

    return {
        "images": count,
        "seed": _SEED,
        "undisturbed": at(images[chosen], "undisturbed"),
        "disturbances": {
            name: {
                "unit": disturbance.unit,
                "points": [
                    {
                        "strength": strength,
                        **at(disturbance.apply(images[chosen], strength), f"{name} {strength:g}"),
                    }
                    for strength in disturbance.strengths
                ],
            }
            for name, disturbance in DISTURBANCES.items()
        },
    }


def _mistakes(probabilities: np.ndarray, labels: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    given, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(given != labels)
    most = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    return [
        {
            "image": int(at),
            "true": class_names[labels[at]],
            "given": class_names[given[at]],
            "confidence": float(confidence[at]),
        }
        for at in most
    ]
