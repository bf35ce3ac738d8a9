"""Compare the LiteRT file of a version with the same network in float32: answers and time.

    PYTHONPATH=. python benchmarks/precision.py --data data/cifar10-images --photos ../shared/data/photos

The float32 file is made from the version's SavedModel. `--photos` names a folder with photographs of the classes in `in/` and of
other things in `ood/` or `none/`. The time is processor time on one thread, one image at a time, in alternating rounds.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tensorflow as tf

from cifar.cli.models import chosen_version
from cifar.images.decode import preprocess
from cifar.models.engines import LITERT_FILE
from cifar.settings import load_settings
from cifar.training.data.dataset import load_dataset
from cifar.training.export.litert.file import convert
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.judge import Judge
from cifar.training.export.litert.quantize import seconds_per_image
from cifar.training.measures import auroc


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--version", type=int)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--photos", type=Path)
    options = arguments.parse_args()
    settings = load_settings()
    version = chosen_version(options.version, settings)
    manifest = version.manifest
    version.verify()
    content = (version.path / LITERT_FILE).read_bytes()
    loaded = tf.saved_model.load(str(version.path))  # signatures alone do not keep the weights alive
    float_file = convert(loaded.signatures)
    files = {"float32": float_file, "as exported": content}

    dataset = load_dataset(options.data, settings, image_shape=manifest.image.shape)
    held_out = HeldOut(dataset.test_images, dataset.test_labels, "test images")
    judge = Judge(float_file, held_out, len(manifest.class_names), manifest.is_multi_label, manifest.has_ood_score)
    print(
        f"{version.name} version {version.number}, {datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}"
    )
    print(f"bytes: {len(float_file):,} in float32, {len(content):,} as exported")
    print(f"{len(held_out.images):,} test images and synthetic outliers made from them:")
    for name, figure in judge.figures(content).items():
        values = "" if figure.int8 is None else f"{figure.float32:.4f} and {figure.int8:.4f}, "
        print(f"  {name}: {values}difference {figure.difference:.6f} (bound {figure.bound:g})")
    if options.photos:

        def photos(*names: str) -> np.ndarray:
            found: Iterable[Path] = (file for name in names for file in sorted((options.photos / name).rglob("*.jp*g")))
            return np.stack([preprocess(file.read_bytes(), manifest.image, max_pixels=10**8) for file in found])

        inside, outside = photos("in"), photos("ood", "none")
        for name, file in files.items():
            rows = judge.answers(file, np.concatenate([inside, outside]))
            scores = rows[: len(inside), -1], rows[len(inside) :, -1]
            print(
                f"photographs, AUROC of the OOD score in {name}: {auroc(*scores):.4f} ({len(inside)} and {len(outside)})"
            )
    rounds = np.array([seconds_per_image(list(files.values()), held_out.images[:1]) for _ in range(5)]) * 1000
    for name, times in zip(files, rounds.T, strict=True):
        print(f"{name}: {np.median(times):.3f} ms an image ({times.min():.3f} to {times.max():.3f})")
    print(f"speed-up: {np.median(rounds[:, 0] / rounds[:, 1]):.2f}")


if __name__ == "__main__":
    main()
