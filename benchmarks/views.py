"""Compare ways to average the views of an image, on held-out training images and on photographs.

    python -m benchmarks.views --version 2 --data data/cifar10-images --photos DIR DIR

The held-out images are those that the version's run held out. A folder of photographs has `in/<class>/` and one other folder of
pictures of other things; nothing is chosen by them. Prints Markdown, which docs/decisions.md and MODEL_CARD.md quote.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cifar.cli.models import chosen_version
from cifar.format import markdown_table, percent
from cifar.images.decode import preprocess
from cifar.images.views import ALLOWED_VIEWS, mean_of_views, views_of
from cifar.models.engines import engine_of
from cifar.models.predictor import Predictor
from cifar.settings import load_settings
from cifar.training.data.dataset import load_dataset
from cifar.training.data.outliers import make_outliers
from cifar.training.measures import auroc, measure

AIRBENCH_WEIGHTS = np.array([0.25, 0.125, 0.125] * 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=int)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    settings = load_settings()
    predictor = Predictor.load(chosen_version(arguments.version, settings), engine_of(settings))
    names, config = predictor.class_names, predictor.version.manifest.training["config"]
    dataset = load_dataset(arguments.data, settings, image_shape=predictor.image.shape)
    _, held_out = dataset.hold_out(config["validation_split"], config["seed"])
    images, labels = dataset.train_images[held_out], dataset.train_labels[held_out]

    def rows_of(pictures: np.ndarray) -> np.ndarray:
        """Answer six views of each picture: `(n, 6, columns)`."""
        return np.stack([predictor.answers(views_of(picture, 6)) for picture in pictures])

    def photos(folder: Path) -> np.ndarray:
        files = sorted(folder.rglob("*.jpg"))
        limit = settings.max_image_pixels
        return rows_of(np.stack([preprocess(file.read_bytes(), predictor.image, max_pixels=limit) for file in files]))

    print(f"{datetime.now(UTC):%Y-%m-%d}, version {predictor.version.number}, {len(images)} held-out images\n")
    held = rows_of(images)
    table = []
    for views in ALLOWED_VIEWS:
        part = subset(held, views)
        probabilities = part[..., : len(names)]
        means = {
            "logits": mean_of_views(part, len(names))[:, : len(names)],
            "probabilities": probabilities.mean(axis=1),
        }
        if views == 6:
            weighted = np.exp(np.einsum("k,nkc->nc", AIRBENCH_WEIGHTS, np.log(np.maximum(probabilities, 1e-30))))
            means["logits, image and mirror image doubled"] = weighted / weighted.sum(axis=1, keepdims=True)
        for kind, mean in means.items():
            measured = measure(mean, labels, names)
            table.append(
                (views, kind, percent(measured["accuracy"]), f"{measured['loss']:.4f}", percent(measured["ece"]))
            )
    print(markdown_table(["views", "mean of", "accuracy", "loss", "calibration error"], table))
    pairs = {
        "held-out images, synthetic outliers": (
            held,
            rows_of(make_outliers(images, len(images), np.random.default_rng(1))),
        )
    }
    for folder in arguments.photos:
        (other,) = (path for path in folder.iterdir() if path.is_dir() and path.name != "in")
        pairs[str(folder)] = photos(folder / "in"), photos(other)
        truth = np.array([names.index(file.parent.name) for file in sorted((folder / "in").rglob("*.jpg"))])
        right = {
            views: percent(
                (
                    mean_of_views(subset(pairs[str(folder)][0], views), len(names))[:, : len(names)].argmax(axis=1)
                    == truth
                ).mean()
            )
            for views in ALLOWED_VIEWS
        }
        print(f"\nAccuracy of {len(truth)} photographs in {folder}, by views: {right}")
    if predictor.has_ood_score:
        print_scores(pairs)


def subset(rows: np.ndarray, views: int) -> np.ndarray:
    """Return the answers to fewer views: the image is the first of six, its mirror image the fourth."""
    return rows[:, {1: [0], 2: [0, 3], 6: slice(None)}[views]]


def print_scores(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Print how well the mean of the out-of-distribution scores separates pictures of the classes from others."""
    table = []
    for name, (inside, outside) in pairs.items():
        for views in ALLOWED_VIEWS:
            one, other = (subset(rows, views)[..., -1].mean(axis=1) for rows in (inside, outside))
            flagged = (percent((scores > 1).mean()) for scores in (one, other))
            table.append((name, views, f"{auroc(one, other):.4f}", *flagged))
    print("\n" + markdown_table(["pictures", "views", "AUROC of the mean score", "flagged", "of the others"], table))


if __name__ == "__main__":
    main()
