"""Choose images for validation, for testing and as samples; always the same ones for the same data."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cifar.errors import DataError

TEST_SHARE = 0.2
"""Share of each class that is set apart for testing in a source without parts."""
_MIN_TRAINING_IMAGES = 2
"""One to train on and one to hold out for validation."""


def split_validation(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of every class for validation, at least one image; the same images for the same seed.

    Returns:
        Positions of the training and of the validation images, both ascending. Each position is in one of the two.

    Raises:
        DataError: a class has fewer than two images.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < _MIN_TRAINING_IMAGES:
            name = class_names[label] if class_names else f"number {label}"
            raise DataError(
                f"Class {name} has one training image; at least two are needed, one to train on and one to hold out. "
                "Add images, or remove the class."
            )
        count = min(max(1, round(fraction * len(positions))), len(positions) - 1)
        held_out.append(rng.permutation(positions)[:count])
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def evenly_spaced(total: int, limit: int) -> np.ndarray:
    """Return at most `limit` positions of `total`, ascending and evenly spaced: data sets are often ordered by class."""
    return np.linspace(0, total - 1, min(total, limit)).astype(int)


def split_test(labels: np.ndarray, contents: Sequence[bytes]) -> np.ndarray:
    """Return the positions of a share of every class that is set apart for testing, ascending.

    The choice depends on the digests of the files' contents alone, not on their names, order or decoded size, so that `evaluate`
    finds the images that `train` set apart. Equal files are in the same part. Each class keeps at least two training images.
    """
    chosen: list[int] = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        equal: dict[bytes, list[int]] = defaultdict(list)
        for position in positions:
            equal[hashlib.blake2b(contents[int(position)], key=b"test", digest_size=16).digest()].append(int(position))
        wanted = min(max(1, round(TEST_SHARE * len(positions))), len(positions) - _MIN_TRAINING_IMAGES)
        for _, group in sorted(equal.items()):
            if len(group) <= wanted:
                chosen += group
                wanted -= len(group)
    return np.array(sorted(chosen), np.int64)
