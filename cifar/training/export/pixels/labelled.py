"""Reads a few labelled pictures, on which preparations of the pixels and int8 files are compared."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar.errors import CifarError, ExportError
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.training.data.folders.names import key_of
from cifar.training.data.split import evenly_spaced

_MAX_PICTURES = 400


@dataclass(frozen=True)
class Labelled:
    """Pictures and their true classes."""

    images: np.ndarray
    """`(n, height, width, channels)` `uint8`."""
    labels: np.ndarray
    """`(n,)`, numbers of classes."""
    files: tuple[str, ...] = ()
    """The file of each picture."""
    left_out: str = ""
    """A sentence on the pictures that fit no class or are damaged, if there are any."""

    def some(self, limit: int) -> dict[str, np.ndarray]:
        """Return at most `limit` of the pictures by file, evenly spaced."""
        return {self.files[at]: self.images[at] for at in evenly_spaced(len(self.files), limit)}


def read_labelled(
    folder: Path, class_names: Sequence[str], spec: ImageSpec, *, max_pixels: int, limit: int = _MAX_PICTURES
) -> Labelled:
    """Read the pictures below `folder` that are in a folder named after a class, or whose file names begin with a class.

    If there are more than `limit`, evenly spaced ones are read.

    Raises:
        ExportError: `folder` is not a folder, or no picture in it has a label.
    """
    if not folder.is_dir():
        raise ExportError(f"--check {folder} is not a folder. Name a folder with a few pictures of each class.")
    found = sorted(_files(folder, class_names), key=lambda each: each[0])
    files = [(file, label) for file, label in found if label is not None]
    strangers = [file for file, label in found if label is None and _is_picture(file)]
    images, labels, read, damaged = [], [], [], []
    for at in evenly_spaced(len(files), limit):
        file, label = files[at]
        try:
            images.append(preprocess(file.read_bytes(), spec, max_pixels=max_pixels))
        except CifarError:
            damaged += [file] if _is_picture(file) else []
            continue
        labels.append(label)
        read.append(str(file))
    if not images:
        some = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
        raise ExportError(
            f"--check {folder} holds no picture of a class of the model. Put pictures into folders named after the classes ({some}), "
            f"or begin their names with them, such as {class_names[0]}_1.jpg."
        )
    counts = [
        f"{len(some)} {what} ({some[0].relative_to(folder)}{', ...' if len(some) > 1 else ''})"
        for some, what in ((strangers, "whose folder and name fit no class"), (damaged, "that cannot be read"))
        if some
    ]
    left_out = f"--check leaves out pictures: {' and '.join(counts)}." if counts else ""
    return Labelled(np.stack(images), np.asarray(labels), tuple(read), left_out)


def _is_picture(file: Path) -> bool:
    return (mimetypes.guess_type(file.name)[0] or "").startswith("image/")


def _files(folder: Path, class_names: Sequence[str]) -> Iterator[tuple[Path, int | None]]:
    """Yield each file with its class: that of the nearest folder, else the longest one that the name begins with, else None."""
    numbers = {_key(name): number for number, name in enumerate(class_names)}
    by_length = sorted(numbers, key=len, reverse=True)
    for file in (Path(root, name) for root, _, names in os.walk(folder) for name in names if not name.startswith(".")):
        above = file.relative_to(folder).parts[-2::-1]
        stem = _key(file.stem)
        label = next((_key(part) for part in above if _key(part) in numbers), None) or next(
            (name for name in by_length if re.match(re.escape(name) + r"(?![^\W\d_])", stem)), None
        )
        yield file, None if label is None else numbers[label]


def _key(name: str) -> str:
    """Return a name for comparison: file systems differ in case, accents and spaces, and no file can be named `T-shirt/top`."""
    return re.sub(r"[\s/_-]+", " ", key_of(name)).strip()
