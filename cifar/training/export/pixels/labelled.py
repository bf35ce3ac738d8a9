"""Read a few labelled pictures, and count how many of them a model gets right with each preparation of the pixels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar.errors import CifarError, ExportError
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec

_MOST_PICTURES = 400


@dataclass(frozen=True)
class Labelled:
    """Pictures and their true classes."""

    images: np.ndarray
    """`(n, height, width, channels)` `uint8`."""
    labels: np.ndarray
    """`(n,)`, numbers of classes."""


def read_labelled(
    folder: Path, class_names: Sequence[str], spec: ImageSpec, *, max_pixels: int, most: int = _MOST_PICTURES
) -> Labelled:
    """Read the pictures below `folder` that lie in a folder named after a class, or whose names begin with a class.

    Of more than `most` pictures, `most` are taken at even distances.

    Raises:
        ExportError: no picture is labelled.
    """
    if not folder.is_dir():
        raise ExportError(f"--check {folder} is no folder. Name a folder with a few pictures of each class.")
    files = sorted(_labelled_files(folder, class_names))
    images, labels = [], []
    for at in np.unique(np.linspace(0, len(files) - 1, min(len(files), most)).astype(int)):
        file, label = files[at]
        try:
            images.append(preprocess(file.read_bytes(), spec, max_pixels=max_pixels))
        except CifarError:
            continue  # no picture
        labels.append(label)
    if not images:
        some = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
        raise ExportError(
            f"--check {folder} holds no picture of a class of the model. Put pictures into folders named after the classes ({some}), "
            f"or begin their names with them, such as {class_names[0]}_1.jpg."
        )
    return Labelled(np.stack(images), np.asarray(labels))


def _labelled_files(folder: Path, class_names: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """Yield the files whose class is known: by the nearest folder of that name, or else by the longest name that fits."""
    numbers = {_key(name): number for number, name in enumerate(class_names)}
    by_length = sorted(numbers, key=len, reverse=True)
    for file in (Path(root, name) for root, _, names in os.walk(folder) for name in names if not name.startswith(".")):
        above = file.relative_to(folder).parts[-2::-1]
        stem = _key(file.stem)
        label = next((_key(part) for part in above if _key(part) in numbers), None) or next(
            (name for name in by_length if re.match(re.escape(name) + r"(?![^\W\d_])", stem)), None
        )
        if label is not None:
            yield file, numbers[label]


def _key(name: str) -> str:
    """Return a name as it is compared: file systems differ in case, accents and spaces."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()
