"""Calibration of a trained model: the temperature of its probabilities, and its out-of-distribution (OOD) score.

Both are fitted once, after training, and written into the run folder. The export puts them into the graph, so that every
signature and the LiteRT file give the same answers. Dividing the logits by a temperature makes the probabilities match the
observed accuracy (Guo et al. 2017, arXiv:1706.04599). docs/ood.md tells how the score was chosen.
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
from cifar.training.data.photo_views import photo_views as views_like_photos

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
_REGULARIZATION = 0.1
"""Strength of the penalty on the weights of the linear score, whose features have a variance of 1. 0.01 to 0.3 are equally good."""
_ENERGY_WEIGHT = 2
"""Spread of the energy of typical images in the score, relative to that of the linear score. 1 to 3 are equally good."""
METHOD = "energy of the logits, plus a linear score of the last layer's features against synthetic outliers"


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
    """Return how unlike the training images the features are, `(n,)`: a linear score of them, plus the energy of the logits.

    The energy is the negative logarithm of the sum of the exponentials of the logits (Liu et al. 2020, arXiv:2010.03759). The
    features `(n, width)` are those of a model made by `with_features`, and the arrays are from `fit_score`.
    """
    logits = ops.matmul(features, arrays["kernel"]) + arrays["bias"]
    largest = ops.max(logits, axis=1)  # not ops.logsumexp, which tests for infinity; LiteRT cannot
    energy = -largest - ops.log(ops.sum(ops.exp(logits - ops.expand_dims(largest, 1)), axis=1))
    return ops.sum(features * arrays["direction"], axis=1) + energy


def scaled_score(raw: Any, confidence: Confidence) -> Any:
    """Scale raw scores, `(n,)`, for users: 0 for the median held-out image, above 1 for 5 % of them."""
    return (raw - confidence.low) / (confidence.high - confidence.low)


def with_features(model: keras.Model) -> keras.Model | None:
    """Return the same network with two outputs: the input of its last dense layer, `(n, width)`, and the probabilities.

    Without a dense layer among its own layers, return None.
    """
    dense = _dense_layers(model)
    return keras.Model(model.inputs[0], [dense[-1].input, model.outputs[0]]) if dense else None


def _dense_layers(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]


def write_confidence(
    run: Path,
    model: keras.Model,
    *,
    fitted: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    photo_views: float = 0.0,
) -> Confidence | None:
    """Fit temperature and score, write them into the folder `run`, and return them.

    A network without a dense layer, or with fewer than `FEWEST_HELD_OUT` held-out images, gets neither; then nothing is written,
    and the result is None. The fitted and the held-out images are `(n, height, width, channels)` `uint8`, with their labels `(n,)`;
    `photo_views` is the share of the training images that were changed.
    """
    network, (images, labels), (held_out_images, held_out_labels) = with_features(model), fitted, held_out
    if network is None or len(held_out_labels) < FEWEST_HELD_OUT:
        return None
    random = np.random.default_rng(0)
    chosen = np.sort(random.permutation(len(images))[:FITTED_IMAGES])
    outliers, _ = _predict(network, make_outliers(images[chosen], len(chosen), random))
    features, _ = _predict(network, _as_trained(images[chosen], photo_views, random))
    held_out_features, probabilities = _predict(network, held_out_images)
    arrays = fit_score(features, outliers, *_dense_layers(model)[-1].get_weights())
    confidence = make_confidence(
        arrays,
        scores=ops.convert_to_numpy(raw_score(held_out_features, arrays)),
        probabilities=probabilities,
        held_out_labels=held_out_labels,
        labels=labels,
        fitted_images=len(chosen),
        outliers=len(outliers),
    )
    save_confidence(run, confidence)
    return confidence


def save_confidence(run: Path, confidence: Confidence) -> None:
    """Write what `read_confidence` reads into the run's folder."""
    names = ("temperature", "low", "high", "report", "images_by_class")
    about = np.array(json.dumps({name: getattr(confidence, name) for name in names}))
    with replacing(run / CONFIDENCE_FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, about=about, **confidence.arrays)  # type: ignore[arg-type]


def read_confidence(run: Path) -> Confidence | None:
    """Read what `write_confidence` wrote; None if the run has no such file.

    It is also None for a file of a release before 2026-11-27, from too few images or with another score.
    """
    if not (run / CONFIDENCE_FILE).is_file():
        return None
    with np.load(run / CONFIDENCE_FILE) as file:
        arrays = {name: file[name] for name in file.files if name != "about"}
        confidence = Confidence(arrays=arrays, **json.loads(str(file["about"])))
    enough = confidence.report["held_out_images"] >= FEWEST_HELD_OUT
    return confidence if enough and confidence.report["method"] == METHOD else None


def without_score(held_out: int) -> str:
    """Return the sentence that says why a run with this number of held-out images has neither temperature nor score."""
    return (
        f"Confidence is not calibrated, and no answer is called none of the classes: {held_out} held-out images are too few; "
        f"{FEWEST_HELD_OUT} are needed."
    )


def _as_trained(images: np.ndarray, photo_views: float, random: np.random.Generator) -> np.ndarray:
    """Change the share of the images that was changed in training, so that the score does not take such for outliers."""
    changed = random.random(len(images)) < photo_views
    if changed.any():
        images = images.copy()
        images[changed] = views_like_photos(images[changed], random)
    return images


def make_confidence(
    arrays: dict[str, np.ndarray],
    *,
    scores: np.ndarray,
    probabilities: np.ndarray,
    held_out_labels: np.ndarray,
    labels: np.ndarray,
    fitted_images: int,
    outliers: int,
) -> Confidence:
    """Fit temperature and threshold to the raw scores `(n,)` of held-out images and the answers `(n, classes)` to them.

    The arrays are from `fit_score`, and `labels` are those of all training images.
    """
    temperature = fit_temperature(probabilities, held_out_labels)
    low, high = np.quantile(scores, (0.5, IN_DISTRIBUTION_SHARE))
    report = {
        "temperature": round(temperature, 4),
        "method": METHOD,
        "threshold": OOD_THRESHOLD,
        "in_distribution_share": IN_DISTRIBUTION_SHARE,
        "fitted_images": fitted_images,
        "synthetic_outliers": outliers,
        "held_out_images": len(held_out_labels),
    }
    counts = np.bincount(labels, minlength=probabilities.shape[1]).tolist()
    return Confidence(temperature, arrays, float(low), float(max(high, low + 1e-6)), report, counts)


def _predict(network: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, probabilities = network.predict(images, batch_size=_BATCH, verbose=0)
    return features, probabilities


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature whose probabilities `(n, classes)` have the lowest Brier score, for images that were not trained on.

    The log loss is not used: it depends mostly on the few answers that are wrong with near certainty, and left networks
    that were trained with label smoothing overconfident in the middle range (docs/ood.md). The temperature is from 0.2 to 5,
    and above 1 for an overconfident network.
    """
    logits = np.log(np.maximum(probabilities, _MIN_PROBABILITY)).astype(np.float64)
    truth = np.eye(logits.shape[1])[labels]

    def loss(temperature: float) -> float:
        scaled = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        brier = np.square(scaled / scaled.sum(axis=1, keepdims=True) - truth).sum()
        return float(brier + np.log(temperature) ** 2 / (2 * _TEMPERATURE_SPREAD**2))

    return float(min(_TEMPERATURES, key=loss))


def fit_score(
    features: np.ndarray, outliers: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Fit the `float32` parameters of `raw_score`: a linear score by least squares, scaled so that the energy can be added to it.

    The features are those of training images, `(n, width)`, and of synthetic outliers, `(m, width)`; kernel `(width, classes)` and
    bias `(classes,)` those of the last dense layer.
    """
    both = np.concatenate([features, outliers]).astype(np.float64)
    mean, deviation = both.mean(axis=0), both.std(axis=0) + 1e-6
    scaled = (both - mean) / deviation
    target = np.repeat([-1.0, 1.0], [len(features), len(outliers)])
    weight = np.repeat([0.5 / len(features), 0.5 / len(outliers)], [len(features), len(outliers)])
    weighted = (scaled - weight @ scaled) * weight[:, None]
    ridge = _REGULARIZATION * np.eye(scaled.shape[1])
    direction = np.linalg.solve(weighted.T @ scaled + ridge, weighted.T @ target) / deviation
    logits = features.astype(np.float64) @ kernel + (0 if bias is None else bias)
    energy = -np.logaddexp.reduce(logits, axis=1)
    direction *= _spread(energy) / (_ENERGY_WEIGHT * _spread(features @ direction))
    arrays = {"direction": direction, "kernel": kernel, "bias": np.zeros(kernel.shape[1]) if bias is None else bias}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _spread(values: np.ndarray) -> float:
    """Return how far the 95 % quantile is above the median."""
    return float(np.subtract(*np.quantile(values, (0.95, 0.5)))) + 1e-9
