"""Compare out-of-distribution scores: how well they separate photographs of the classes from photographs of other things.

    python benchmarks/ood.py --run RUN --photos DIR

DIR holds photographs: `DIR/in/<class>/*.jpg` of the model's classes and `DIR/ood/*.jpg` of other things. Nothing is fitted on
them: every score is fitted on the run's training images, and at its threshold 95 % of the held-out images are in distribution.
Prints Markdown, which docs/ood.md quotes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.settings import load_settings
from cifar.training.data.dataset import load_dataset
from cifar.training.data.outliers import make_outliers
from cifar.training.measures import auroc
from cifar.training.run.calibration import calibrated, fit_score, fit_temperature, raw_score, with_features

IMAGES, TEST_IMAGES, RESAMPLES = 12_000, 5_000, 2_000


class Outputs(NamedTuple):
    """The outputs of the network for a set of images."""

    features: np.ndarray
    """The features of our score. The last `width` columns are the input of the last dense layer."""
    probabilities: np.ndarray


Score = Callable[[Outputs], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    arguments = parser.parse_args()
    settings, run = load_settings(), json.loads((arguments.run / "config.json").read_text())
    dataset = load_dataset(run["data"]["source"], settings, image_shape=tuple(run["image_shape"]))
    model = keras.saving.load_model(arguments.run / "model.keras", compile=False)
    network = with_features(model)
    if network is None:
        sys.exit("The network has no dense layer, so there are no features to compare.")
    random = np.random.default_rng(0)

    def run_network(images: np.ndarray) -> Outputs:
        return Outputs(*network.predict(images, batch_size=500, verbose=0))

    def photos(files: Iterable[Path]) -> Outputs:
        spec, limit = ImageSpec.from_shape(dataset.image_shape), settings.max_image_pixels
        return run_network(np.stack([preprocess(file.read_bytes(), spec, max_pixels=limit) for file in sorted(files)]))

    config = run["config"]
    fit, held_out = dataset.hold_out(config["validation_split"], config["seed"])
    fit = random.permutation(fit)[:IMAGES]
    tested = random.permutation(len(dataset.test_labels))[:TEST_IMAGES]
    training, labels = run_network(dataset.train_images[fit]), dataset.train_labels[fit]
    outliers = run_network(make_outliers(dataset.train_images[fit], len(fit), random))
    held, test = run_network(dataset.train_images[held_out]), run_network(dataset.test_images[tested])
    classes, others = photos(arguments.photos.glob("in/*/*.jpg")), photos(arguments.photos.glob("ood/*.jpg"))
    temperature = fit_temperature(held.probabilities, dataset.train_labels[held_out])
    test_labels = dataset.test_labels[tested]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {arguments.run}: {len(fit)} training images, {len(outliers.features)} synthetic outliers,"
    )
    print(
        f"{len(held_out)} held out, {len(tested)} test images, {len(classes.features)} photos of classes, {len(others.features)} of other things."
    )
    print(
        f"Temperature {temperature:.3f}; ECE of the test images {error(test.probabilities, test_labels):.4f} without,"
    )
    print(f"{error(np.asarray(calibrated(test.probabilities, temperature)), test_labels):.4f} with it.\n")
    print(
        "| score | photos of classes / of other things, AUROC (95 %) | test images / photos of other things | flagged: test | photos of classes | of other things |"
    )
    print("|---|---|---|---|---|---|")
    for name, score in scores(model, training, labels, outliers).items():
        limit = np.quantile(score(held), 0.95)
        of_test, of_classes, of_others = score(test), score(classes), score(others)
        low, high = interval(of_classes, of_others, random)
        flagged = " | ".join(f"{np.mean(values > limit):.3f}" for values in (of_test, of_classes, of_others))
        print(
            f"| {name} | {auroc(of_classes, of_others):.3f} ({low:.3f} to {high:.3f}) | {auroc(of_test, of_others):.3f} | {flagged} |"
        )


def scores(model: keras.Model, training: Outputs, labels: np.ndarray, outliers: Outputs) -> dict[str, Score]:
    """Fit every score; return them by name. A higher score means less like the training images."""
    kernel, *bias = next(
        layer for layer in reversed(model.layers) if isinstance(layer, keras.layers.Dense)
    ).get_weights()
    width = len(kernel)

    def top(outputs: Outputs) -> np.ndarray:
        return outputs.features[:, -width:]

    def logits(outputs: Outputs) -> np.ndarray:
        return top(outputs) @ kernel + (bias[0] if bias else 0)

    all_layers = fit_score(training.features, labels, outliers.features)
    last_layer = fit_score(top(training), labels, top(outliers))
    near, far = gaussian(top(training), labels), gaussian(top(training), np.zeros_like(labels))
    bank = unit(top(training))
    return {
        "max softmax": lambda outputs: -outputs.probabilities.max(axis=1),
        "entropy": lambda outputs: -(outputs.probabilities * np.log(outputs.probabilities + 1e-30)).sum(axis=1),
        "max logit": lambda outputs: -logits(outputs).max(axis=1),
        "energy": lambda outputs: -np.logaddexp.reduce(logits(outputs), axis=1),
        "feature norm": lambda outputs: -np.linalg.norm(top(outputs), axis=1),
        "kNN, 10th of the bank, normalised features": lambda outputs: (
            -np.sort(unit(top(outputs)) @ bank.T, axis=1)[:, -10]
        ),
        "ViM": vim(top(training), kernel, bias[0] if bias else np.zeros(kernel.shape[1]), top, logits),
        "Mahalanobis": lambda outputs: near(top(outputs)),
        "relative Mahalanobis": lambda outputs: near(top(outputs)) - far(top(outputs)),
        "against synthetic outliers, last layer": lambda outputs: np.asarray(raw_score(top(outputs), last_layer)),
        "**against synthetic outliers, three layers**": lambda outputs: np.asarray(
            raw_score(outputs.features, all_layers)
        ),
    }


def gaussian(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the squared Mahalanobis distance to the nearest class mean."""
    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)])
    scatter = features - means[np.unique(labels, return_inverse=True)[1]]
    values, vectors = np.linalg.eigh(scatter.T @ scatter / len(scatter))
    whiten = vectors / np.sqrt(np.maximum(values, 1e-3 * values.mean()))
    return lambda outputs: np.stack([(((outputs - mean) @ whiten) ** 2).sum(axis=1) for mean in means]).min(axis=0)


def vim(features: np.ndarray, kernel: np.ndarray, bias: np.ndarray, top: Score, logits: Score) -> Score:
    """Return virtual-logit matching (Wang et al. 2022, arXiv:2203.10807)."""
    origin = -np.linalg.pinv(kernel.T) @ bias
    _, vectors = np.linalg.eigh((features - origin).T @ (features - origin))
    rest = vectors[:, : len(kernel) // 2]
    alpha = (features @ kernel + bias).max(axis=1).mean() / np.linalg.norm((features - origin) @ rest, axis=1).mean()
    return lambda outputs: (
        alpha * np.linalg.norm((top(outputs) - origin) @ rest, axis=1) - np.logaddexp.reduce(logits(outputs), axis=1)
    )


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)


def interval(lower: np.ndarray, higher: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the 95 % bootstrap interval of the AUROC; both sets are resampled."""
    drawn = [auroc(random.choice(lower, len(lower)), random.choice(higher, len(higher))) for _ in range(RESAMPLES)]
    return np.quantile(drawn, (0.025, 0.975))


def error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error over 15 bins of equal width."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    return float(sum(abs((confidence - right)[bins == number].sum()) for number in range(15)) / len(labels))


if __name__ == "__main__":
    main()
