"""Compare ways to average the views of a picture, on held-out training images and on photographs.

    python -m benchmarks.views --version 2 --data data/cifar10-images --photos [NAME=]DIR [NAME=]DIR

The held-out images are those that the version's run held out, also enlarged by a quarter for crops. Folders of photographs are
those of `evaluate --photos`; nothing is chosen by them. Prints Markdown, which docs/decisions.md and MODEL_CARD.md quote.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from cifar.cli.models import chosen_version
from cifar.format import markdown_table, percent
from cifar.images.decode import preprocess, preprocess_views
from cifar.images.views import MAX_VIEWS, larger, mean_of_views, views_of, with_crops
from cifar.models.engines import engine_of
from cifar.models.predictor import Predictor
from cifar.settings import load_settings
from cifar.training.data.dataset import load_dataset
from cifar.training.data.outliers import make_outliers
from cifar.training.measures import auroc, measure
from cifar.training.report.photographs import find_photographs

KINDS = {
    "1": ("moved", slice(1)),
    "2": ("moved", slice(2)),
    "6, moved": ("moved", slice(None)),
    "6, crops": ("crops", slice(None)),
}
SCORES = {"all views": slice(None), "image and mirror image": slice(2), "image": slice(1)}
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=int)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", nargs="*", default=[])
    arguments = parser.parse_args()
    settings = load_settings()
    predictor = Predictor.load(chosen_version(arguments.version, settings), engine_of(settings))
    names, config = predictor.class_names, predictor.version.manifest.training["config"]
    dataset = load_dataset(arguments.data, settings, image_shape=predictor.image.shape)
    _, held_out = dataset.hold_out(config["validation_split"], config["seed"])
    images, labels = dataset.train_images[held_out], dataset.train_labels[held_out]
    limit = settings.max_image_pixels

    def answered(views: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack([predictor.answers(each) for each in views])

    def rows_of(pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Answer both kinds of six views: `(n, 6, columns)`."""
        size = larger(predictor.image)
        enlarged = [
            Image.fromarray(each).resize((size.width, size.height), Image.Resampling.BILINEAR) for each in pictures
        ]
        crops = (with_crops(each, np.asarray(large)) for each, large in zip(pictures, enlarged, strict=True))
        return {"moved": answered(views_of(each, 6) for each in pictures), "crops": answered(crops)}

    def rows_of_files(files: list[Path]) -> dict[str, np.ndarray]:
        payloads = [file.read_bytes() for file in files]
        whole = [preprocess(each, predictor.image, max_pixels=limit) for each in payloads]
        crops = (preprocess_views(each, predictor.image, 6, max_pixels=limit) for each in payloads)
        return {"moved": answered(views_of(each, 6) for each in whole), "crops": answered(crops)}

    print(f"{datetime.now(UTC):%Y-%m-%d}, version {predictor.version.number}, engine {predictor.engine}")
    outliers = make_outliers(images, len(images), np.random.default_rng(1))
    report(f"{len(images)} held-out images", rows_of(images), rows_of(outliers), labels, names)
    for argument in arguments.photos:
        found = find_photographs(argument, names)
        inside = [file for file, label in zip(found.files, found.labels, strict=True) if label is not None]
        others = [file for file, label in zip(found.files, found.labels, strict=True) if label is None]
        truth = np.array([label for label in found.labels if label is not None])
        title = f"{len(inside)} photographs: {found.name}"
        report(title, rows_of_files(inside), rows_of_files(others) if others else None, truth, names)
        print(f"\nProcessor time of a photograph, decoded and answered, in ms: {costs(predictor, inside, limit)}")


def report(
    title: str,
    inside: dict[str, np.ndarray],
    outside: dict[str, np.ndarray] | None,
    labels: np.ndarray,
    names: list[str],
) -> None:
    """Print accuracy and calibration error by views, and how well each mean of the scores separates the other pictures."""
    print(f"\n**{title}**\n")
    table = []
    for kind, (rows, chosen) in KINDS.items():
        part = inside[rows][:, chosen]
        logits = mean_of_views(part, len(names))[:, : len(names)]
        for mean, probabilities in (("logits", logits), ("probabilities", part[..., : len(names)].mean(axis=1))):
            measured = measure(probabilities, labels, names)
            shown = [percent(measured[name]) for name in ("accuracy", "balanced_accuracy", "ece")]
            table.append((kind, mean, *shown, f"{measured['loss']:.4f}"))
    print(markdown_table(["views", "mean of", "accuracy", "mean over classes", "calibration error", "loss"], table))
    if outside is None or inside["moved"].shape[-1] == len(names):
        return
    table = []
    for kind, (rows, chosen) in KINDS.items():
        for mean, scored in SCORES.items():
            one, other = (each[rows][:, chosen][:, scored, -1].mean(axis=1) for each in (inside, outside))
            marked = (percent((scores > 1).mean()) for scores in (one, other))
            table.append((kind, mean, f"{auroc(one, other):.4f}", *marked))
    print("\n" + markdown_table(["views", "OOD score of", "AUROC", "marked", "of the others"], table))


def costs(predictor: Predictor, files: list[Path], limit: int) -> str:
    """Return the processor time by views: the median of several rounds."""
    payloads = [file.read_bytes() for file in files]

    shown = []
    for views in (1, 2, MAX_VIEWS):
        rounds = []
        for _ in range(REPEATS):
            before = time.process_time()
            for payload in payloads:
                predictor.answers_of([preprocess_views(payload, predictor.image, views, max_pixels=limit)])
            rounds.append((time.process_time() - before) * 1000 / len(payloads))
        shown.append(f"{views} views {np.median(rounds):.2f}")
    return ", ".join(shown)


if __name__ == "__main__":
    main()
