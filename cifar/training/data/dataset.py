"""Load a data set into memory.

A source is `cifar10` (downloaded once), the official `cifar-10-python.tar.gz`, its extracted folder `cifar-10-batches-py`, or
pictures of your own: a folder, a zip or tar archive, or a table of paths and labels (`cifar.training.data.folders`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cifar import CLASS_NAMES, IMAGE_SHAPE
from cifar.console import say
from cifar.errors import DataError
from cifar.settings import Settings
from cifar.training.data.cifar10 import is_cifar10, read_batches
from cifar.training.data.download import fetch_cifar10
from cifar.training.data.findings import describe, find_duplicates, imbalance
from cifar.training.data.folders.contents import Contents
from cifar.training.data.folders.reading import read_pictures
from cifar.training.data.split import split_validation


@dataclass(frozen=True)
class Dataset:
    """The images and labels of a data set.

    `*_images` are `(n, height, width, channels)` `uint8` RGB in [0, 255]; `*_labels` are `(n,)` `int64` positions in
    `class_names`. In a data set without a test part, `test_images` and `test_labels` have `n = 0`.
    """

    source: str
    class_names: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    validation: np.ndarray | None = None
    """Positions of the training images that the source itself holds out for validation, if it does."""
    contents: Contents = field(default_factory=Contents)
    """The record of reading the source; empty for CIFAR-10."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def fingerprint(self) -> str:
        """Return a SHA-256 of training pixels, labels and class names, to recognise equal data."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        validation = () if self.validation is None else (self.validation,)
        for array in (self.train_images, self.train_labels, *validation):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def hold_out(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the images to train on and of those to validate on: see `split_validation`.

        A validation part of the source itself is used instead, whatever the fraction and the seed.
        """
        if self.validation is None:
            return split_validation(self.train_labels, fraction, seed, self.class_names)
        return np.setdiff1d(np.arange(len(self.train_labels)), self.validation), self.validation

    def findings(self) -> list[str]:
        """Return warnings about the data set, in sentences."""
        training, test = (self.train_images, self.train_labels), (self.test_images, self.test_labels)
        return [
            *describe(self.contents),
            *find_duplicates(self.contents.names, training, test),
            *imbalance(self.class_names, self.train_labels),
        ]


def load_dataset(
    source: str,
    settings: Settings,
    *,
    image_shape: tuple[int, int, int] | None = IMAGE_SHAPE,
    skip_damaged: bool = False,
) -> Dataset:
    """Load a data set, and say on stderr how it was understood, what was left out, and what is wrong with it.

    Args:
        source: `cifar10`, an archive, a folder, or a table of paths and labels.
        settings: the folder for the download, and the pixel limit of one image.
        image_shape: height, width and channels that the user's own images are resized to. None: that of `--arch photo` for a
            small number of photographs, otherwise CIFAR's.
        skip_damaged: leave damaged pictures out instead of raising an error.

    Raises:
        DataError: the data set cannot be read, or has damaged pictures. The message names the file and says what to do.
    """
    dataset = read_dataset(source, settings, image_shape=image_shape)
    if not skip_damaged:
        refuse_damaged(dataset)
    for sentence in dataset.findings():
        say(sentence)
    return dataset


def read_dataset(source: str, settings: Settings, *, image_shape: tuple[int, int, int] | None = IMAGE_SHAPE) -> Dataset:
    """Load a data set without messages. Damaged pictures are left out, and `Dataset.contents` lists them."""
    path = Path(source).expanduser()
    if source != "cifar10":
        _refuse_missing(path, source)
        if not is_cifar10(path):
            return _own_pictures(path, settings, image_shape)
    if image_shape not in (None, IMAGE_SHAPE):
        raise DataError(f"{source} has images of {IMAGE_SHAPE}; only images of your own can have {image_shape}.")
    path = fetch_cifar10(settings.data_cache) if source == "cifar10" else path
    return Dataset(source, CLASS_NAMES, *read_batches(path))


def refuse_damaged(dataset: Dataset) -> None:
    """Raise an error that names the first damaged pictures, if there are any."""
    if damaged := dataset.contents.damaged:
        total = len(damaged) + len(dataset.contents.names)
        shown = "; ".join(f"{name} ({reason})" for name, reason in list(damaged.items())[:3])
        more = "; ..." if len(damaged) > 3 else ""
        raise DataError(
            f"{len(damaged):,} of {total:,} pictures in {dataset.source} cannot be read: {shown}{more}.\n"
            "--skip-damaged leaves them out; `data` with --damaged FILE writes all their names."
        )


def _refuse_missing(path: Path, source: str) -> None:
    if not path.exists():
        reason = ": it is a broken link" if path.is_symlink() else ""
        raise DataError(
            f"{source} does not exist{reason}. Name a folder, an archive or a table of pictures, or cifar10, which is downloaded."
        )


def _own_pictures(path: Path, settings: Settings, image_shape: tuple[int, int, int] | None) -> Dataset:
    reading = read_pictures(path, image_shape, settings.max_image_pixels)
    training, validation, _ = reading.sizes
    fitted = training + validation
    return Dataset(
        source=str(path),
        class_names=reading.class_names,
        train_images=reading.images[:fitted],
        train_labels=reading.labels[:fitted],
        test_images=reading.images[fitted:],
        test_labels=reading.labels[fitted:],
        validation=np.arange(training, fitted) if validation else None,
        contents=reading.contents,
    )
