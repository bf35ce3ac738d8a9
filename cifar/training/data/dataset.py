"""Load a data set into memory.

A source is `cifar10` (downloaded once), the official `cifar-10-python.tar.gz`, its extracted folder `cifar-10-batches-py`, or an
image folder `train/<class>/*` with an optional `test/<class>/*`.
"""

from __future__ import annotations

import hashlib
import io
import pickle  # nosec: used only through _ArrayUnpickler, which can build nothing but arrays
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar import CLASS_NAMES, IMAGE_SHAPE
from cifar.console import say
from cifar.errors import CifarError, DataError
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.settings import Settings
from cifar.training.data.download import fetch_cifar10

_BATCHES = "cifar-10-batches-py"
_TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST_BATCH = "test_batch"
_MAX_LISTED = 20
"""Limit for the unreadable files that an error message lists by name. It gives the number of the others."""


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def fingerprint(self) -> str:
        """Return a SHA-256 of training pixels, labels and class names, to recognise equal data."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for array in (self.train_images, self.train_labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_dataset(source: str, settings: Settings, *, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> Dataset:
    """Load a whole data set into memory.

    Args:
        source: `cifar10`, an archive, an extracted archive or an image folder.
        settings: the folder for the download, and the pixel limit of one image.
        image_shape: height, width and channels that the images of an image folder are resized to.

    Raises:
        DataError: the data set cannot be read. The message names the file and says what to do.
    """
    path = Path(source).expanduser()
    if source != "cifar10" and (path / "train").is_dir():
        return _read_image_folder(path, image_shape, settings.max_image_pixels)
    if image_shape != IMAGE_SHAPE:
        raise DataError(f"{source} has images of {IMAGE_SHAPE}; only an image folder can have {image_shape}.")
    if source == "cifar10":
        return _read_archive(fetch_cifar10(settings.data_cache), source)
    if path.is_file():
        return _read_archive(path, source)
    if (path / _TEST_BATCH).is_file() or (path / _TRAIN_BATCHES[0]).is_file():
        return _from_batches(source, lambda name: _read_file(path / name))
    raise DataError(
        f"{source!r} is not a data set: expected `cifar10`, a cifar-10-python.tar.gz, its extracted {_BATCHES} folder, "
        "or an image folder with train/<class>/*."
    )


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Return what the command `data` prints: image size, classes, and the number of images in total and by class."""

    def counts(labels: np.ndarray) -> dict[str, int]:
        return dict(
            zip(dataset.class_names, np.bincount(labels, minlength=len(dataset.class_names)).tolist(), strict=True)
        )

    return {
        "source": dataset.source,
        "image": "x".join(map(str, dataset.image_shape)),
        "classes": len(dataset.class_names),
        "train_images": len(dataset.train_labels),
        "test_images": len(dataset.test_labels),
        "train_images_by_class": counts(dataset.train_labels),
        "test_images_by_class": counts(dataset.test_labels),
    }


def split_validation(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class for validation; the same images for the same seed.

    Args:
        labels: `(n,)` integers.
        fraction: share of each class for validation, in (0, 1). At least one image of each class is held out.
        seed: of the random choice.
        class_names: for the error message.

    Returns:
        Positions of the training and of the validation images, both ascending. Each position is in one of the two.

    Raises:
        DataError: a class has fewer than two images.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < 2:
            name = class_names[label] if class_names else f"number {label}"
            raise DataError(
                f"Class {name} has one training image; at least two are needed, one to train on and one to hold out. "
                "Add images, or remove the class."
            )
        count = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held_out.append(rng.permutation(positions)[:count])
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


# --- the official archive ---------------------------------------------------------------------------------------------


def _read_archive(path: Path, source: str) -> Dataset:
    """Read the batches from the `.tar.gz` without extracting it to disk."""
    try:
        with tarfile.open(path, "r:*") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}

            def read(name: str) -> bytes:
                stream = archive.extractfile(members[name]) if name in members else None
                if stream is None:
                    raise DataError(f"{path} has no {name}, so it is not CIFAR-10's cifar-10-python.tar.gz.")
                return stream.read()

            return _from_batches(source, read)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).partition(":")[0].partition("\n")[0]  # tarfile appends the message of each of its readers
        raise DataError(
            f"{path} is not a complete .tar.gz archive ({reason}): the download stopped early, or it is another file. Download it again."
        ) from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). Extract cifar-10-python.tar.gz again.") from error


def _from_batches(source: str, read: Callable[[str], bytes]) -> Dataset:
    train = [_parse_batch(name, read(name)) for name in _TRAIN_BATCHES]
    test_images, test_labels = _parse_batch(_TEST_BATCH, read(_TEST_BATCH))
    return Dataset(
        source=source,
        class_names=CLASS_NAMES,
        train_images=np.concatenate([images for images, _ in train]),
        train_labels=np.concatenate([labels for _, labels in train]),
        test_images=test_images,
        test_labels=test_labels,
    )


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds only NumPy arrays and built-in containers, because other objects could run code."""

    _ALLOWED = frozenset(
        {
            *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _parse_batch(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Convert a batch from rows of 3072 bytes, the red plane first, to images with channels last."""
    height, width, channels = IMAGE_SHAPE
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        rows, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], dtype=np.int64)
        if rows.dtype != np.uint8 or rows.shape != (len(labels), height * width * channels):
            raise ValueError(f"data is {rows.dtype} {rows.shape}")
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
            raise ValueError("labels are not all between 0 and 9")
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise DataError(
            f"{name} is not a batch of CIFAR-10 ({error}). Download cifar-10-python.tar.gz again."
        ) from error
    images = rows.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


# --- an image folder --------------------------------------------------------------------------------------------------


def _read_image_folder(root: Path, image_shape: tuple[int, int, int], max_pixels: int) -> Dataset:
    class_names = _class_names(root / "train")
    problems: list[str] = []
    train = _read_split(root / "train", class_names, image_shape, max_pixels, problems)
    test_folder = root / "test"
    if test_folder.is_dir():
        if (found := _class_names(test_folder)) != class_names:
            raise DataError(
                f"{test_folder} has the classes {', '.join(found)}; {root / 'train'} has {', '.join(class_names)}. They must be the same."
            )
        test = _read_split(test_folder, class_names, image_shape, max_pixels, problems)
    else:
        test = np.empty((0, *image_shape), np.uint8), np.empty(0, np.int64)
    if problems:
        more = f"\n... and {len(problems) - _MAX_LISTED:,} more." if len(problems) > _MAX_LISTED else ""
        listed = "\n".join(problems[:_MAX_LISTED])
        raise DataError(f"{listed}{more} Or remove {'it' if len(problems) == 1 else 'them'} from the folder.")
    return Dataset(str(root), class_names, *train, *test)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the sub-folders, in CIFAR's order if they are CIFAR's classes, otherwise sorted."""
    names = sorted(path.name for path in _entries(folder) if path.is_dir())
    by_case: dict[str, str] = {}
    for name in names:
        if (twin := by_case.setdefault(name.casefold(), name)) != name:
            raise DataError(f"{folder / twin} and {folder / name} differ only in case: merge them or rename one.")
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folders; at least two are needed: {folder}/<class>/*.")
    return CLASS_NAMES if set(names) == set(CLASS_NAMES) else tuple(names)


def _read_split(
    folder: Path, class_names: tuple[str, ...], image_shape: tuple[int, int, int], max_pixels: int, problems: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Read the images of one part. For each unreadable file, a message is added to `problems`."""
    files: list[tuple[Path, int]] = []
    nested: list[Path] = []
    for label, name in enumerate(class_names):
        entries = _entries(folder / name)
        images_of_class = [path for path in entries if path.is_file()]
        if not images_of_class:
            raise DataError(f"{folder / name} has no image: add some, or remove the folder from both train/ and test/.")
        files += [(path, label) for path in images_of_class]
        nested += [path for path in entries if path.is_dir()]
    if nested:
        more = f" and {len(nested) - 1:,} more" if len(nested) > 1 else ""
        say(f"Not read: {nested[0]}{more}. The images of a class must lie directly in its folder, not in sub-folders.")
    images = np.empty((len(files), *image_shape), np.uint8)
    spec = ImageSpec.from_shape(image_shape)
    for i, (file, _) in enumerate(tqdm(files, desc=f"reading {folder}", unit=" images", disable=None, leave=False)):
        try:
            images[i] = preprocess(file.read_bytes(), spec, max_pixels=max_pixels)
        except (CifarError, OSError) as error:
            problems.append(f"{file}: {error}")
    return images, np.array([label for _, label in files], np.int64)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted, without hidden files and those of the operating system (Thumbs.db)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "Thumbs.db")
