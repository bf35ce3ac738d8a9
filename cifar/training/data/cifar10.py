"""CIFAR-10 as its author published it: `cifar-10-python.tar.gz`, or the folder that was extracted from it."""

from __future__ import annotations

import io
import lzma
import pickle  # nosec: used only through _ArrayUnpickler, which can build nothing but arrays
import tarfile
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar import CLASS_NAMES, IMAGE_SHAPE
from cifar.errors import DataError

_TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_TEST_BATCH = "test_batch"
_MEMBERS_SEEN = 20
"""Members of an archive in which a batch is looked for; the official archive has nine."""


class Batches(NamedTuple):
    """All images and labels, as `Dataset` holds them."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def is_cifar10(path: Path) -> bool:
    """Return whether a folder or an archive holds batches of CIFAR-10."""
    if path.is_dir():
        return (path / _TEST_BATCH).is_file() or (path / _TRAIN_BATCHES[0]).is_file()
    try:
        with tarfile.open(path, "r:*") as archive:
            first = islice(archive, _MEMBERS_SEEN)
            return any(Path(member.name).name in {_TEST_BATCH, *_TRAIN_BATCHES} for member in first)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return False


def read_batches(path: Path) -> Batches:
    """Read the batches of a folder, or of an archive without extracting it to disk.

    Raises:
        DataError: a batch is missing or damaged.
    """
    if not path.is_dir():
        return _read_archive(path)
    try:
        return _from_batches(lambda name: (path / name).read_bytes())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error}). Extract cifar-10-python.tar.gz again.") from error


def _read_archive(path: Path) -> Batches:
    try:
        with tarfile.open(path, "r:*") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}

            def read(name: str) -> bytes:
                stream = archive.extractfile(members[name]) if name in members else None
                if stream is None:
                    raise DataError(f"{path} has no {name}, so it is not CIFAR-10's cifar-10-python.tar.gz.")
                return stream.read()

            return _from_batches(read)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).partition(":")[0].partition("\n")[0]  # tarfile appends the message of each of its readers
        raise DataError(
            f"{path} is not a complete .tar.gz archive ({reason}): the download stopped early, or it is another file. Download it again."
        ) from error


def _from_batches(read: Callable[[str], bytes]) -> Batches:
    train = [_parse_batch(name, read(name)) for name in _TRAIN_BATCHES]
    test_images, test_labels = _parse_batch(_TEST_BATCH, read(_TEST_BATCH))
    images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return Batches(images, labels, test_images, test_labels)


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
