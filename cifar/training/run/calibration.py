"""Calibration of a trained model: the temperature of its probabilities, and its out-of-distribution (OOD) score.

Both are fitted once, after training, and written into the run folder. The export puts them into the graph, so that every
signature and the LiteRT file give the same answers. Dividing the logits by a temperature makes the probabilities match the
observed accuracy (Guo et al. 2017, arXiv:1706.04599).
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

from cifar.files import replacing
from cifar.models.manifest import OOD_THRESHOLD
from cifar.training.data.outliers import make_outliers

CONFIDENCE_FILE = "confidence.npz"
IN_DISTRIBUTION_SHARE = 0.95
"""Share of the held-out images whose score is at most the threshold."""

FEWEST_HELD_OUT = 50
"""With fewer held-out images neither temperature nor score is fitted: of 20 images, the threshold would rest on one."""

_BATCH = 500
_TEMPERATURES = np.geomspace(0.2, 5, 321)
_TEMPERATURE_SPREAD = 0.5
"""Prior standard deviation of the temperature's logarithm. It matters only when there are few held-out images."""
_MIN_PROBABILITY = 1e-37
"""Replaces zero, whose logarithm is infinite; the smallest magnitude that float32 holds at full precision."""
FITTED_IMAGES = 12_000
"""Limit for the training images, and for the synthetic outliers, that the score is fitted on."""
_MAX_DIRECTIONS = 256
"""Limit for the directions that the score uses. Each needs as much memory as there are features."""
_MIN_VARIANCE = 3e-3
"""Smallest variance in any direction, as a share of the mean variance. With few images some directions have none."""


@dataclass(frozen=True)
class Confidence:
    """A fitted temperature and OOD score."""

    temperature: float
    arrays: dict[str, np.ndarray]
    """The `float32` parameters of `raw_score`."""
    low: float
    """The raw score of the median held-out image; served as score 0."""
    high: float
    """The raw score that `IN_DISTRIBUTION_SHARE` of the held-out images do not exceed; served as score 1, the threshold."""
    report: dict[str, Any]
    """A summary for the manifest."""
    images_by_class: list[int]
    """Number of training images, in class order."""


def calibrated(probabilities: Any, temperature: float) -> Any:
    """Divide the logits by the temperature: `(n, classes)` probabilities in and out, as tensors of any backend."""
    return ops.softmax(ops.log(ops.maximum(probabilities, _MIN_PROBABILITY)) / temperature)


def raw_score(features: Any, arrays: Mapping[str, Any]) -> Any:
    """Return how much better the synthetic outliers explain the features than the nearest class does.

    The squared Mahalanobis distance to the nearest class (Lee et al. 2018, arXiv:1807.03888) minus that to a background (Ren
    et al. 2021, arXiv:2106.09022), here the synthetic outliers. In the chosen directions both covariances are diagonal.

    Args:
        features: `(n, width)`, from a model made by `with_features`.
        arrays: from `fit_score`.

    Returns:
        `(n,)`; higher means more unlike the training images.
    """
    projected = ops.matmul(features, arrays["directions"]) - arrays["origin"]
    to_classes = ops.square(ops.expand_dims(projected, 1) - ops.expand_dims(arrays["classes"], 0))
    to_outliers = ops.square(projected - arrays["nothing"]) * arrays["precision"]
    return ops.min(ops.sum(to_classes, axis=2), axis=1) - ops.sum(to_outliers, axis=1)


def ood_score(features: Any, confidence: Confidence, arrays: Mapping[str, Any]) -> Any:
    """Return `raw_score` scaled for users, `(n,)`: 0 for the median held-out image, above 1 for 5 % of them."""
    return (raw_score(features, arrays) - confidence.low) / (confidence.high - confidence.low)


def with_features(model: keras.Model) -> keras.Model | None:
    """Return the same network with two outputs: the features for the score, `(n, width)`, and the probabilities.

    The features are the input of the last dense layer and the channel means of the inputs of the second and third last
    convolution. Earlier layers depend more on the compression of an image than on its content, and the last convolution
    adds nothing to the dense layer.

    Returns:
        None if the network has no dense layer among its own layers.
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
) -> Confidence | None:
    """Fit temperature and score, write them into the folder `run`, and return them.

    A network without a dense layer, or with fewer than `FEWEST_HELD_OUT` held-out images, gets neither; then nothing is written,
    and the result is None.

    Args:
        run: the run's folder.
        model: from `(n, height, width, channels)` pixels in [0, 255] to `(n, classes)` probabilities.
        fitted: the training images, `(n, height, width, channels)` `uint8`, and their labels `(n,)`.
        held_out: the same of images that the network was not trained on.
    """
    network = with_features(model)
    if network is None or len(held_out[1]) < FEWEST_HELD_OUT:
        return None
    confidence = fit_confidence(network, fitted, held_out)
    names = ("temperature", "low", "high", "report", "images_by_class")
    about = np.array(json.dumps({name: getattr(confidence, name) for name in names}))
    with replacing(run / CONFIDENCE_FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, about=about, **confidence.arrays)  # type: ignore[arg-type]
    return confidence


def read_confidence(run: Path) -> Confidence | None:
    """Read what `write_confidence` wrote; None if the run has no such file, or one of before 2026-11-26 from too few images."""
    if not (run / CONFIDENCE_FILE).is_file():
        return None
    with np.load(run / CONFIDENCE_FILE) as file:
        arrays = {name: file[name] for name in file.files if name != "about"}
        confidence = Confidence(arrays=arrays, **json.loads(str(file["about"])))
    return confidence if confidence.report["held_out_images"] >= FEWEST_HELD_OUT else None


def without_score(held_out: int) -> str:
    """Return the sentence that says why a run with this number of held-out images has neither temperature nor score."""
    return (
        f"Confidence is not calibrated, and no answer is called none of the classes: {held_out} held-out images are too few; "
        f"{FEWEST_HELD_OUT} are needed."
    )


def fit_confidence(
    network: keras.Model, fitted: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
) -> Confidence:
    """Fit temperature and score to a network made by `with_features`; see `write_confidence`."""
    (images, labels), (held_out_images, held_out_labels) = fitted, held_out
    random = np.random.default_rng(0)
    chosen = np.sort(random.permutation(len(images))[:FITTED_IMAGES])
    outliers, _ = _predict(network, make_outliers(images[chosen], len(chosen), random))
    features, _ = _predict(network, images[chosen])
    held_out_features, held_out_probabilities = _predict(network, held_out_images)
    temperature = fit_temperature(held_out_probabilities, held_out_labels)
    arrays = fit_score(features, labels[chosen], outliers)
    scores = ops.convert_to_numpy(raw_score(held_out_features, arrays))
    low, high = np.quantile(scores, (0.5, IN_DISTRIBUTION_SHARE))
    report = {
        "temperature": round(temperature, 4),
        "method": "Mahalanobis distance to the nearest class, minus that to synthetic outliers",
        "threshold": OOD_THRESHOLD,
        "in_distribution_share": IN_DISTRIBUTION_SHARE,
        "fitted_images": len(chosen),
        "synthetic_outliers": len(outliers),
        "held_out_images": len(held_out_labels),
    }
    counts = np.bincount(labels, minlength=held_out_probabilities.shape[1]).tolist()
    return Confidence(temperature, arrays, float(low), float(max(high, low + 1e-6)), report, counts)


def _predict(network: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, probabilities = network.predict(images, batch_size=_BATCH, verbose=0)
    return features, probabilities


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature whose probabilities have the lowest Brier score.

    The log loss is not used: it depends mostly on the few answers that are wrong with near certainty, and left networks
    that were trained with label smoothing overconfident in the middle range (docs/ood.md).

    Args:
        probabilities: `(n, classes)`, of images that the network was not trained on.
        labels: `(n,)` positions of the true classes.

    Returns:
        From 0.2 to 5; above 1 for an overconfident network.
    """
    logits = np.log(np.maximum(probabilities, _MIN_PROBABILITY)).astype(np.float64)
    truth = np.eye(logits.shape[1])[labels]

    def loss(temperature: float) -> float:
        scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        brier = np.square(scaled / scaled.sum(axis=1, keepdims=True) - truth).sum()
        return float(brier + np.log(temperature) ** 2 / (2 * _TEMPERATURE_SPREAD**2))

    return float(min(_TEMPERATURES, key=loss))


def fit_score(features: np.ndarray, labels: np.ndarray, outliers: np.ndarray) -> dict[str, np.ndarray]:
    """Find the directions in which classes and synthetic outliers differ most, and the means of both along them.

    Args:
        features: `(n, width)`, of training images.
        labels: `(n,)`, their classes.
        outliers: `(m, width)`, features of synthetic outliers.

    Returns:
        The `float32` parameters of `raw_score`. Along the directions the covariance within classes is the unit matrix, and
        that of the outliers is diagonal with the values 1 / `precision`. `nothing` is the mean of the outliers; the name
        is part of the file format.
    """
    centre, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
    inside, outside = (features - centre) / scale, (outliers - centre) / scale
    means = np.stack([inside[labels == label].mean(axis=0) for label in np.unique(labels)])
    mean_outside = outside.mean(axis=0)
    values, vectors = _floored_eigh(inside - means[np.unique(labels, return_inverse=True)[1]])
    whiten = vectors / np.sqrt(values)
    values, vectors = _floored_eigh(outside - mean_outside)
    variances, turn = np.linalg.eigh(whiten.T @ (vectors * values) @ vectors.T @ whiten)
    directions = whiten @ turn
    classes, mean_outliers = means @ directions, mean_outside @ directions
    gap = (classes.mean(axis=0) - mean_outliers) ** 2
    divergence = (variances + 1 / variances - 2 + gap * (1 + 1 / variances)) / 2 + classes.var(axis=0)
    chosen = np.argsort(-divergence)[:_MAX_DIRECTIONS]
    arrays = {
        "directions": directions[:, chosen] / scale[:, None],
        "origin": (centre / scale) @ directions[:, chosen],
        "classes": classes[:, chosen],
        "nothing": mean_outliers[chosen],
        "precision": 1 / variances[chosen],
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _floored_eigh(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances and principal directions of centred rows; variances too small to be trusted are raised."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return np.maximum(values, max(_MIN_VARIANCE * values.mean(), 1e-9)), vectors
