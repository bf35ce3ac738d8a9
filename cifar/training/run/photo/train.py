"""Fit the last layer of a pretrained network to few photographs, and measure it by cross-validation.

The other layers stay as they are, so the features of each picture are computed once, and everything else takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from cifar.console import say
from cifar.errors import BadParameter
from cifar.files import remove_leftovers
from cifar.format import percent_range
from cifar.statistics import wilson_interval
from cifar.training.data.dataset import Dataset
from cifar.training.data.outliers import make_outliers
from cifar.training.data.photographs import LEAST_SIDE
from cifar.training.measures import balanced_accuracy
from cifar.training.run.calibration import (
    FEWEST_HELD_OUT,
    FITTED_IMAGES,
    fit_score,
    make_confidence,
    raw_score,
    save_confidence,
    with_features,
)
from cifar.training.run.config import TrainConfig
from cifar.training.run.finish import write_results
from cifar.training.run.photo.head import Head, fit_head, stratified_parts
from cifar.training.run.photo.network import load_backbone, photo_network
from cifar.training.run.photo.weights import pretrained_weights
from cifar.training.run.reference import make_reference, save_reference, served_answers
from cifar.training.run.run_folder import CONFIG, MODEL, Row, make_folder, write_history

PARTS = 5
"""Number of parts of the cross-validation."""
STRENGTHS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Strengths of the regularization that are tried."""
_BATCH = 32
_MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class _Split:
    """One division of the pictures, as positions."""

    fit: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Pictures:
    """The features of the training pictures, computed once."""

    plain: np.ndarray
    """`(n, width)`."""
    mirrored: np.ndarray
    """The features of their mirror images, `(n, width)`."""
    labels: np.ndarray
    weights: np.ndarray
    """`(n,)`, the weight of each picture in the loss."""

    def head(self, positions: np.ndarray, strength: float) -> Head:
        """Fit a last layer to the pictures at these positions, and their mirror images."""
        labels, weights = (np.tile(each[positions], 2) for each in (self.labels, self.weights))
        return fit_head(self._doubled(positions), labels, weights, strength)

    def score(self, positions: np.ndarray, head: Head, outliers: np.ndarray) -> dict[str, np.ndarray]:
        """Fit the OOD score of a last layer to the same pictures and their mirror images."""
        return fit_score(self._doubled(positions), outliers, head.kernel, head.bias)

    def _doubled(self, positions: np.ndarray) -> np.ndarray:
        return np.concatenate([self.plain[positions], self.mirrored[positions]])


@dataclass(frozen=True)
class _Validated:
    """The result of the cross-validation with the best strength of the regularization."""

    strength: float
    heads: list[Head]
    """The last layer that was fitted for each split."""
    probabilities: np.ndarray
    """`(n, classes)`, of all held-out pictures, each from the last layer that was fitted without it."""


def train_photo(
    config: TrainConfig, dataset: Dataset, run: Path, description: dict[str, Any], *, h5: bool = False
) -> Path:
    """Fit a classifier, write it into a run folder, and return the path of `model.keras`.

    Cross-validation chooses the strength of the regularization and gives the accuracy, the temperature and the threshold of
    the OOD score. If the data set has a validation part, that part is used instead, and is not fitted on. The run's folder is
    created after the features have been computed.

    Raises:
        BadParameter: the images have fewer than 64x64 pixels.
        DataError: a class has one training picture.
        TrainingError: the pretrained weights are not installed.
    """
    started = time.monotonic()
    if min(dataset.image_shape[:2]) < LEAST_SIDE:
        raise BadParameter(f"--arch photo needs --image-size {LEAST_SIDE} or more; got {dataset.image_shape[0]}.")
    splits = _splits(dataset, config.seed)
    model = photo_network(dataset.image_shape, len(dataset.class_names))
    load_backbone(model, pretrained_weights())
    network = with_features(model)
    labels = dataset.train_labels
    weights = (1 / np.bincount(labels))[labels] if config.class_weights else np.ones(len(labels))
    pictures = read_features(network, dataset.train_images, labels, weights)
    if not (run / CONFIG).exists():
        make_folder(run, description)
    remove_leftovers(run)

    held_out = np.concatenate([split.held_out for split in splits])
    truth = labels[held_out]
    validated = _cross_validate(pictures, splits, truth)
    probabilities = validated.probabilities
    fitted = splits[0].fit if len(splits) == 1 else np.arange(len(labels))
    head = pictures.head(fitted, validated.strength)
    model.layers[-1].set_weights([head.kernel, head.bias])

    confidence, served = None, probabilities
    if len(held_out) >= FEWEST_HELD_OUT:
        outliers = _outliers(network, dataset.train_images[fitted])
        raw = _raw_scores(pictures, splits, validated.heads, outliers)
        confidence = make_confidence(
            pictures.score(fitted, head, outliers),
            scores=raw,
            probabilities=probabilities,
            held_out_labels=truth,
            labels=labels,
            fitted_images=len(fitted),
            outliers=len(outliers),
        )
        save_confidence(run, confidence)
        served = served_answers(probabilities, raw, confidence)
    source = "training images, each answered without it"
    save_reference(run, make_reference(served, dataset.train_images[held_out], dataset.class_names, source=source))
    row = _row(head.probabilities(pictures.plain[fitted]), labels[fitted], probabilities, truth)
    history = [row | {"seconds": round(time.monotonic() - started, 2)}]
    write_history(run, history)
    predicted = probabilities.argmax(axis=1)
    interval = wilson_interval(int((predicted == truth).sum()), len(truth))
    metrics = {
        "validation_balanced_accuracy": round(balanced_accuracy(predicted, truth), 4),
        "validation_interval": interval,
        "cross_validation_parts": len(splits),
        "regularization": validated.strength,
        "fitted_images": len(fitted),
        "precision": "float32",
    }
    write_results(run, model, dataset, history, metrics, confidence=confidence, held_out=np.sort(held_out), h5=h5)
    origin = f"cross-validation in {len(splits)} parts" if len(splits) > 1 else "the validation part"
    say(
        f"The validation figures are from {origin}: with {len(truth):,} pictures, the true accuracy on pictures like these is "
        f"{percent_range(*interval)} (95 % interval). Several pictures of one subject flatter it."
    )
    return run / MODEL


def _splits(dataset: Dataset, seed: int) -> list[_Split]:
    everything = np.arange(len(dataset.train_labels))
    if dataset.validation is None:
        dataset.hold_out(0.5, seed)  # refuses a class of one picture
        parts = stratified_parts(dataset.train_labels, PARTS, seed)
    else:
        parts = [dataset.validation]
    return [_Split(np.setdiff1d(everything, part), part) for part in parts]


def read_features(network: keras.Model, images: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Pictures:
    """Compute the features of pictures and of their mirror images, with a network made by `with_features`."""
    mirrored = _features(network, images[:, :, ::-1], "features of mirror images")
    return Pictures(_features(network, images, "features"), mirrored, labels, weights)


def _outliers(network: keras.Model, images: np.ndarray) -> np.ndarray:
    count = min(len(images), FITTED_IMAGES)
    return _features(network, make_outliers(images, count, np.random.default_rng(0)), "features of synthetic outliers")


def _features(network: keras.Model, images: np.ndarray, title: str) -> np.ndarray:
    rows = []
    with tqdm(total=len(images), desc=title, unit=" images", disable=None, leave=False) as bar:
        for start in range(0, len(images), _BATCH):
            rows.append(network.predict_on_batch(images[start : start + _BATCH])[0])
            bar.update(len(rows[-1]))
    return np.concatenate(rows)


def _cross_validate(pictures: Pictures, splits: Sequence[_Split], truth: np.ndarray) -> _Validated:
    """Try each strength of the regularization; return the one with the smallest loss.

    The labels of the held-out pictures are in the order of the splits.
    """
    tried = []
    for strength in tqdm(STRENGTHS, desc="cross-validation", disable=None, leave=False):
        heads = [pictures.head(split.fit, strength) for split in splits]
        pairs = zip(splits, heads, strict=True)
        answers = np.concatenate([head.probabilities(pictures.plain[split.held_out]) for split, head in pairs])
        tried.append(_Validated(strength, heads, answers))
    return min(tried, key=lambda each: _log_loss(each.probabilities, truth))


def _raw_scores(
    pictures: Pictures, splits: Sequence[_Split], heads: Sequence[Head], outliers: np.ndarray
) -> np.ndarray:
    """Return the raw OOD scores of all held-out pictures, each from a score that was fitted without it."""
    scores = [
        raw_score(pictures.plain[split.held_out], pictures.score(split.fit, head, outliers))
        for split, head in zip(splits, heads, strict=True)
    ]
    return np.concatenate([keras.ops.convert_to_numpy(score) for score in scores])


def _row(fitted: np.ndarray, fitted_labels: np.ndarray, held_out: np.ndarray, labels: np.ndarray) -> Row:
    """Return the only row of the history: there is one step."""
    return {
        "epoch": 1,
        "steps": 1,
        "accuracy": float((fitted.argmax(axis=1) == fitted_labels).mean()),
        "loss": _log_loss(fitted, fitted_labels),
        "val_accuracy": float((held_out.argmax(axis=1) == labels).mean()),
        "val_loss": _log_loss(held_out, labels),
    }


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _MIN_PROBABILITY)).mean())
