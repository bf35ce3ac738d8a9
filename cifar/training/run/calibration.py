"""Honest confidence: what a network's probabilities are worth, and how unlike its training images an image is.

Both are fitted once, after training, and written into the run folder; the export folds them into the graph, so that every
signature and the LiteRT file answer alike. The temperature divides the logits (Guo et al. 2017, arXiv:1706.04599).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from cifar.training.data.outliers import make_outliers
from cifar.training.run.run_folder import replacing

CONFIDENCE_FILE = "confidence.npz"
IN_DISTRIBUTION_SHARE = 0.95
"""Share of the held-out images that the threshold counts as in distribution."""

_BATCH = 500
_TEMPERATURES = np.geomspace(0.2, 5, 321)
_TEMPERATURE_SPREAD = 0.5
"""Standard deviation of the logarithm of temperatures, before any image was seen: it decides only where there are few."""
_SMALLEST = 1e-37
"""Stands for a probability of zero, which has no logarithm; the least that float32 holds in full."""
_IMAGES = 12_000
"""Training images, and pictures of nothing, that the score is fitted on, at most."""
_DIRECTIONS = 256
"""Directions that the score looks along, at most: each costs as much memory as there are features."""
_VARIANCE_FLOOR = 3e-3
"""Least variance in any direction, as a share of the mean one: few images leave some without any."""


@dataclass(frozen=True)
class Confidence:
    """A fitted temperature and score."""

    temperature: float
    arrays: dict[str, np.ndarray]
    """What the score computes with, `float32`; see `raw_score`."""
    low: float
    """The raw score of the median held-out image: 0 to callers."""
    high: float
    """The raw score that 95 % of the held-out images do not exceed: 1 to callers, and the threshold."""
    report: dict[str, Any]
    """For the manifest."""
    images_by_class: list[int]
    """Training images, in class order."""


def calibrated(probabilities: Any, temperature: float) -> Any:
    """Divide the logits by the temperature: `(n, classes)` probabilities in and out, as tensors of any backend."""
    return ops.softmax(ops.log(ops.maximum(probabilities, _SMALLEST)) / temperature)


def raw_score(features: Any, arrays: Mapping[str, Any]) -> Any:
    """How much better pictures of nothing explain the features than the nearest class does: `(n, width)` to `(n,)`.

    The squared Mahalanobis distance to the nearest class (Lee et al. 2018, arXiv:1807.03888) less that to a background (Ren
    et al. 2021, arXiv:2106.09022), which here is pictures of nothing. In the chosen directions neither side has covariances.
    """
    along = ops.matmul(features, arrays["directions"]) - arrays["origin"]
    to_classes = ops.square(ops.expand_dims(along, 1) - ops.expand_dims(arrays["classes"], 0))
    to_nothing = ops.square(along - arrays["nothing"]) * arrays["precision"]
    return ops.min(ops.sum(to_classes, axis=2), axis=1) - ops.sum(to_nothing, axis=1)


def ood_score(features: Any, fitted: Confidence, arrays: Mapping[str, Any]) -> Any:
    """How unlike the training images: 0 for the median held-out image, above 1 for 5 % of them; `(n,)`."""
    return (raw_score(features, arrays) - fitted.low) / (fitted.high - fitted.low)


def with_features(model: keras.Model) -> keras.Model | None:
    """The same network with two outputs: the features that the score looks at, `(n, width)`, and what it gives.

    Features are what its last dense layer takes, and the means of what the two convolutions before the last take: those
    further down see how a picture was encoded more than what is in it, the last one no more than the dense layer does.

    Returns:
        None for a network that has no dense layer among its own layers.
    """
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    if not dense:
        return None
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    means = [keras.layers.GlobalAveragePooling2D(dtype="float32")(layer.input) for layer in convolutions[1:][-3:-1]]
    features = keras.layers.Concatenate(dtype="float32")([*means, dense[-1].input]) if means else dense[-1].input
    return keras.Model(model.inputs[0], [features, model.outputs[0]])


def write_confidence(
    run: Path, model: keras.Model, *, fitted: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    """Fit temperature and score, and write them into the folder `run`, whole or not at all.

    Nothing is written for a network without a dense layer of its own: it is exported as it is.

    Args:
        run: the run's folder.
        model: from `(n, height, width, channels)` pixels in [0, 255] to `(n, classes)` probabilities.
        fitted: training images `(n, height, width, channels)` `uint8` and positions of their classes `(n,)`.
        held_out: the same of images that the network was not fitted on.
    """
    network = with_features(model)
    if network is None:
        return
    _write(run / CONFIDENCE_FILE, fit_confidence(network, fitted, held_out))


def fit_confidence(
    network: keras.Model, fitted: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
) -> Confidence:
    """Fit temperature and score to a network made by `with_features`; see `write_confidence`."""
    (images, labels), (held_out_images, held_out_labels) = fitted, held_out
    random = np.random.default_rng(0)
    chosen = np.sort(random.permutation(len(images))[:_IMAGES])
    nothing, _ = _predict(network, make_outliers(images[chosen], len(chosen), random))
    features, _ = _predict(network, images[chosen])
    held_features, held_probabilities = _predict(network, held_out_images)
    temperature = fit_temperature(held_probabilities, held_out_labels)
    arrays = fit_score(features, labels[chosen], nothing)
    raw = ops.convert_to_numpy(raw_score(held_features, arrays))
    low, high = np.quantile(raw, (0.5, IN_DISTRIBUTION_SHARE))
    report = {
        "temperature": round(temperature, 4),
        "method": "mahalanobis distance to the nearest class, less that to pictures of nothing",
        "threshold": 1.0,
        "in_distribution_share": IN_DISTRIBUTION_SHARE,
        "fitted_images": len(chosen),
        "pictures_of_nothing": len(nothing),
        "held_out_images": len(held_out_labels),
    }
    counts = np.bincount(labels, minlength=held_probabilities.shape[1]).tolist()
    return Confidence(temperature, arrays, float(low), float(max(high, low + 1e-6)), report, counts)


def _predict(network: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, probabilities = network.predict(images, batch_size=_BATCH, verbose=0)
    return features, probabilities


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature whose probabilities have the least Brier score.

    Not the least log loss: that is decided by the few answers that are sure and wrong, and left networks trained with label
    smoothing too sure in between (docs/ood.md).

    Args:
        probabilities: `(n, classes)`, of images that the network was not fitted on.
        labels: `(n,)` positions of the true classes.

    Returns:
        From 0.2 to 5; above 1 for a network that is too sure.
    """
    logits = np.log(np.maximum(probabilities, _SMALLEST)).astype(np.float64)
    truth = np.eye(logits.shape[1])[labels]

    def loss(temperature: float) -> float:
        scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        brier = np.square(scaled / scaled.sum(axis=1, keepdims=True) - truth).sum()
        return float(brier + np.log(temperature) ** 2 / (2 * _TEMPERATURE_SPREAD**2))

    return float(min(_TEMPERATURES, key=loss))


def fit_score(features: np.ndarray, labels: np.ndarray, nothing: np.ndarray) -> dict[str, np.ndarray]:
    """Find the directions in which the classes differ most from pictures of nothing, and both sides' places along them.

    Args:
        features: `(n, width)`, of training images.
        labels: `(n,)`, their classes.
        nothing: `(m, width)`, of pictures of nothing.

    Returns:
        What `raw_score` computes with, `float32`. Along the directions the scatter within classes is 1, that of nothing
        1 / `precision`, and none goes with another.
    """
    centre, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
    inside, outside = (features - centre) / scale, (nothing - centre) / scale
    means = np.stack([inside[labels == label].mean(axis=0) for label in np.unique(labels)])
    mean_outside = outside.mean(axis=0)
    values, vectors = _floored_eigh(inside - means[np.unique(labels, return_inverse=True)[1]])
    whiten = vectors / np.sqrt(values)
    values, vectors = _floored_eigh(outside - mean_outside)
    variances, turn = np.linalg.eigh(whiten.T @ (vectors * values) @ vectors.T @ whiten)
    directions = whiten @ turn
    classes, mean_nothing = means @ directions, mean_outside @ directions
    gap = (classes.mean(axis=0) - mean_nothing) ** 2
    divergence = (variances + 1 / variances - 2 + gap * (1 + 1 / variances)) / 2 + classes.var(axis=0)
    kept = np.argsort(-divergence)[:_DIRECTIONS]
    arrays = {
        "directions": directions[:, kept] / scale[:, None],
        "origin": (centre / scale) @ directions[:, kept],
        "classes": classes[:, kept],
        "nothing": mean_nothing[kept],
        "precision": 1 / variances[kept],
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _floored_eigh(scatter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances, none too small to trust, and their directions."""
    values, vectors = np.linalg.eigh(scatter.T @ scatter / len(scatter))
    return np.maximum(values, max(_VARIANCE_FLOOR * values.mean(), 1e-9)), vectors


def _write(path: Path, fitted: Confidence) -> None:
    about = {name: getattr(fitted, name) for name in ("temperature", "low", "high", "report", "images_by_class")}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **fitted.arrays)  # type: ignore[arg-type]


def read_confidence(run: Path) -> Confidence | None:
    """What `write_confidence` wrote, or None for a run without."""
    if not (run / CONFIDENCE_FILE).is_file():
        return None
    with np.load(run / CONFIDENCE_FILE) as file:
        arrays = {name: file[name] for name in file.files if name != "about"}
        return Confidence(arrays=arrays, **json.loads(str(file["about"])))
