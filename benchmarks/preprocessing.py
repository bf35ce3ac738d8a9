"""Which way of bringing a photo to the model's size scores best, and what reduced-scale JPEG decoding changes.

    python benchmarks/preprocessing.py --photos DIR [--version N]

DIR holds photographs by class, `DIR/<class>/*.jpg`. Prints Markdown; DESIGN.md quotes it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifar import preprocess as module
from cifar.predictor import Predictor
from cifar.registry import Registry
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
    parser.add_argument("--version", type=int)
    arguments = parser.parse_args()
    settings = load_settings()
    predictor = Predictor.load(Registry(settings.registry, settings.model_name).get(arguments.version))
    photos = [
        (file, file.parent.name)
        for file in sorted(arguments.photos.glob("*/*.jpg"))
        if file.parent.name in predictor.class_names
    ]
    labels = np.array([predictor.class_names.index(name) for _, name in photos])

    def answers(encode: Callable[[Path], bytes]) -> np.ndarray:
        pixels = [
            module.preprocess(encode(file), **predictor.image.model_dump(), max_pixels=settings.max_image_pixels)
            for file, _ in photos
        ]
        return predictor.probabilities(np.stack(pixels))

    print(f"{len(photos)} photos of {len(set(labels))} classes, version {predictor.version.number}\n")
    print("| fit | filter | accuracy, mean over classes | of all photos |\n|---|---|---|---|")
    for fit in FITS:
        for module._RESAMPLE in FILTERS:
            correct = answers(lambda file, fit=fit: _png(fit(Image.open(file).convert("RGB")))).argmax(axis=1) == labels
            mean = np.mean([correct[labels == label].mean() for label in np.unique(labels)])
            print(f"| {fit.__name__} | {module._RESAMPLE.name.lower()} | {mean:.3f} | {correct.mean():.3f} |")
    module._RESAMPLE = Image.Resampling.BICUBIC

    print("\n| long side | margin | other label | largest change of a probability | mean |\n|---|---|---|---|---|")
    for side in (320, 1280):
        module._DRAFT_MARGIN = 10**6
        whole = answers(lambda file, side=side: _enlarged(file, side, "JPEG"))
        for module._DRAFT_MARGIN in MARGINS:
            reduced = answers(lambda file, side=side: _enlarged(file, side, "JPEG"))
            change = np.abs(reduced - whole).max(axis=1)
            flips = (reduced.argmax(axis=1) != whole.argmax(axis=1)).sum()
            print(
                f"| {side} | {module._DRAFT_MARGIN} | {flips} of {len(photos)} | {change.max():.4f} | {change.mean():.4f} |"
            )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _enlarged(file: Path, side: int, encoder: str) -> bytes:
    image = Image.open(file).convert("RGB")
    scale = side / max(image.size)
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(buffer, encoder, quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
