"""Compare out-of-distribution scores without photographs: each is fitted on some kinds of synthetic outliers and measured on another.

    PYTHONPATH=. .venv/bin/python benchmarks/ood.py --run RUN [--photos DIR]

A kind that a score was fitted on says nothing of photographs, so kinds that destroy an image in a similar way are left out
together. The images in distribution are held-out images, and copies of them that look like photographs scaled down.
With `--photos`, the scores fitted on all kinds are measured on `DIR/in/<class>/*.jpg` and `DIR/ood/*.jpg` or `DIR/none/*.jpg`:
to report, not to choose. Prints Markdown, which docs/ood.md quotes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.settings import load_settings
from cifar.training.data.dataset import load_dataset
from cifar.training.data.outliers import KINDS
from cifar.training.data.photo_views import photo_views
from cifar.training.measures import auroc
from cifar.training.run.calibration import fit_score, raw_score, with_features

FAMILIES = (
    ("jigsaw", "mosaic", "covered", "tiled"),
    ("mixed",),
    ("spectrum",),
    ("magnified",),
    ("swirled",),
    ("shapes",),
)
"""Kinds of outliers that are left out together: the first ones all have straight edges where pieces meet."""
_CHUNK = 32
_SHARE = 0.95


class Fitted(NamedTuple):
    """The measurements that a score is fitted on."""

    inside: np.ndarray
    labels: np.ndarray
    outside: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray


Score = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=4000, help="training images, and about as many outliers")
    arguments = parser.parse_args()
    settings, run = load_settings(), json.loads((arguments.run / "config.json").read_text())
    dataset = load_dataset(run["data"]["source"], settings, image_shape=tuple(run["image_shape"]))
    model = keras.saving.load_model(arguments.run / "model.keras", compile=False)
    network: keras.Model = with_features(model)
    random = np.random.default_rng(0)

    def features(images: np.ndarray) -> np.ndarray:
        rows: np.ndarray = network.predict(images, batch_size=500, verbose=0)[0]
        return rows

    def photos(files: Iterable[Path]) -> np.ndarray:
        spec, limit = ImageSpec.from_shape(dataset.image_shape), settings.max_image_pixels
        return features(np.stack([preprocess(file.read_bytes(), spec, max_pixels=limit) for file in sorted(files)]))

    def outliers(images: np.ndarray, count: int) -> dict[str, np.ndarray]:
        chunks = range(max(1, count // len(KINDS) // _CHUNK))
        made = {
            kind.__name__: [kind(images[random.integers(0, len(images), _CHUNK)], random) for _ in chunks]
            for kind in KINDS
        }
        return {name: features(np.concatenate(parts)) for name, parts in made.items()}

    config = run["config"]
    fit, held_out = dataset.hold_out(config["validation_split"], config["seed"])
    fit = random.permutation(fit)[: arguments.images]
    images, held = dataset.train_images[fit], dataset.train_images[held_out]
    half = len(images) // 2
    inside = features(np.concatenate([images[:half], photo_views(images[half:], random)]))
    clean, copies = features(held), features(photo_views(held, random))
    made, made_of_held = outliers(images, len(images)), outliers(held, len(held))
    kernel, bias = last_layer(model)

    def fitted(left_out: tuple[str, ...] = ()) -> Fitted:
        outside = np.concatenate([rows for name, rows in made.items() if name not in left_out])
        return Fitted(inside, dataset.train_labels[fit], outside, kernel, bias)

    print("| score | held-out images | copies | mean | worst family |\n|---|---|---|---|---|")
    found: dict[str, list[list[float]]] = {}
    for family in FAMILIES:
        strange = np.concatenate([made_of_held[name] for name in family])
        for name, score in scores(fitted(family)):
            found.setdefault(name, []).append([auroc(score(known), score(strange)) for known in (clean, copies)])
    for name, values in sorted(found.items(), key=lambda item: -np.mean(item[1])):
        table = np.array(values)
        print_row(name, *table.mean(axis=0), table.mean(), table.mean(axis=1).min())
    if arguments.photos:
        strange_files = [*arguments.photos.glob("ood/*"), *arguments.photos.glob("none/*")]
        of_classes, of_others = photos(arguments.photos.glob("in/*/*")), photos(strange_files)
        print("\n| score | AUROC | of the classes above the threshold | of the strange |\n|---|---|---|---|")
        for name, score in scores(fitted()):
            limit = np.quantile(score(clean), _SHARE)
            above = [float((score(rows) > limit).mean()) for rows in (of_classes, of_others)]
            print_row(name, auroc(score(of_classes), score(of_others)), *above)


def print_row(name: str, *values: float) -> None:
    print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")


def last_layer(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel and bias of the last dense layer."""
    layer = [each for each in model.layers if isinstance(each, keras.layers.Dense)][-1]
    kernel, *bias = layer.get_weights()
    return kernel, bias[0] if bias else np.zeros(kernel.shape[1])


def scores(fitted: Fitted) -> Iterator[tuple[str, Score]]:
    """Yield each score with its name. A higher score means less like the training images."""
    arrays = fit_score(fitted.inside, fitted.outside, fitted.kernel, fitted.bias)

    def logits(features: np.ndarray) -> np.ndarray:
        rows: np.ndarray = features @ fitted.kernel + fitted.bias
        return rows

    def shares(features: np.ndarray) -> np.ndarray:
        rows = logits(features)
        exponentials: np.ndarray = np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
        return exponentials

    yield "**linear score plus energy** (in use)", lambda features: np.asarray(raw_score(features, arrays))
    yield "linear score", lambda features: features @ arrays["direction"]
    yield "energy", lambda features: -np.logaddexp.reduce(logits(features), axis=1)
    yield "entropy", lambda features: -(shares(features) * np.log(shares(features) + 1e-30)).sum(axis=1)
    yield "max softmax", lambda features: -shares(features).max(axis=1)
    near, far = gaussian(fitted.inside, fitted.labels), gaussian(fitted.outside, np.zeros(len(fitted.outside), int))
    yield "Mahalanobis to the nearest class, minus that to outliers", lambda features: near(features) - far(features)


def gaussian(features: np.ndarray, labels: np.ndarray) -> Score:
    """Return the squared Mahalanobis distance to the nearest class mean."""
    means = np.stack([features[labels == label].mean(axis=0) for label in np.unique(labels)])
    scatter = features - means[np.unique(labels, return_inverse=True)[1]]
    values, vectors = np.linalg.eigh(scatter.T @ scatter / len(scatter))
    whiten = vectors / np.sqrt(np.maximum(values, 3e-3 * values.mean()))
    return lambda rows: np.stack([(((rows - mean) @ whiten) ** 2).sum(axis=1) for mean in means]).min(axis=0)


if __name__ == "__main__":
    main()
