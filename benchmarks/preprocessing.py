"""Compares ways to bring a photo to the model's size, and measures what reduced-scale JPEG decoding changes.

    python benchmarks/preprocessing.py --photos DIR

DIR holds photographs by class, `DIR/<class>/*.jpg`. Every version in the registry is asked, and means are over all of
them: one model on a hundred photos says little. Prints Markdown; DESIGN.md quotes it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifar.format import png
from cifar.images import decode as module
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.settings import load_settings


def squash(image: Image.Image) -> Image.Image:
    return image


def crop(image: Image.Image) -> Image.Image:
    side = min(image.size)
    return ImageOps.fit(image, (side, side))


def pad(image: Image.Image) -> Image.Image:
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color="white")


FITS: tuple[Callable[[Image.Image], Image.Image], ...] = (squash, crop, pad)
FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
MARGINS = (2, 3, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    arguments = parser.parse_args()
    settings = load_settings()
    registry = Registry(settings.registry, settings.model_name)
    predictors = [Predictor.load(registry.get(number)) for number in registry.numbers()]
    names, spec = predictors[0].class_names, predictors[0].image
    photos = [file for file in sorted(arguments.photos.glob("*/*.jpg")) if file.parent.name in names]
    if not photos:
        sys.exit(f"{arguments.photos} holds no <class>/*.jpg of the model's classes: {', '.join(names)}.")
    labels = np.array([names.index(file.parent.name) for file in photos])

    def answers(encode: Callable[[Path], bytes]) -> np.ndarray:
        """Probabilities `(models, photos, classes)`."""
        limit = settings.max_image_pixels
        pixels = [module.preprocess(encode(file), spec, max_pixels=limit) for file in photos]
        return np.stack([predictor.answers(np.stack(pixels))[:, : len(names)] for predictor in predictors])

    print(f"{len(photos)} photos of {len(set(labels))} classes, {len(predictors)} models\n")
    print("| fit | filter | accuracy of all photos | mean over classes |\n|---|---|---|---|")
    default = module._RESAMPLE
    for fit in FITS:
        for module._RESAMPLE in FILTERS:
            correct = (
                answers(lambda file, fit=fit: png(np.asarray(fit(Image.open(file).convert("RGB"))))).argmax(axis=2)
                == labels
            )
            by_class = np.mean([correct[:, labels == label].mean() for label in np.unique(labels)])
            print(f"| {fit.__name__} | {module._RESAMPLE.name.lower()} | {correct.mean():.3f} | {by_class:.3f} |")
    module._RESAMPLE = default

    print("\n| long side | margin | other label | largest change of a probability | mean |\n|---|---|---|---|---|")
    for side in (320, 1280):
        module._DRAFT_MARGIN = 10**6
        whole = answers(lambda file, side=side: _jpeg(file, side))
        for module._DRAFT_MARGIN in MARGINS:
            reduced = answers(lambda file, side=side: _jpeg(file, side))
            change = np.abs(reduced - whole).max(axis=2)
            flips = (reduced.argmax(axis=2) != whole.argmax(axis=2)).sum()
            print(
                f"| {side} | {module._DRAFT_MARGIN} | {flips} of {change.size} | {change.max():.4f} | {change.mean():.4f} |"
            )


def _jpeg(file: Path, side: int) -> bytes:
    """The photo as a JPEG whose long side is `side`."""
    image = Image.open(file).convert("RGB")
    scale = side / max(image.size)
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
