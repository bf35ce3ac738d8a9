"""Other views of the same pictures: shifted and mirrored, so that a network cannot learn a picture by heart."""

from __future__ import annotations

import numpy as np


def views(images: np.ndarray, *, places: np.ndarray, epoch: int, seed: int, shift: int) -> np.ndarray:
    """One epoch's views, the same ones for the same seed and epoch.

    Every picture is moved by up to `shift` pixels each way, its border reflected. Half of the pictures are mirrored in
    even epochs and the other half in odd ones, so that two epochs show both sides of each (alternating flip, Jordan
    2024, arXiv:2404.00498).

    Args:
        images: `(n, height, width, channels)` `uint8`.
        places: `(n,)` where each picture stands in the data set: who is mirrored goes by it, not by the epoch's order.
        epoch: from 0.
        seed: of the run.
        shift: most pixels to move by; 0 leaves the pictures where they are.

    Returns:
        A new array like `images`.
    """
    random = np.random.default_rng((seed, epoch, 1))
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), "reflect")
    moved = np.empty_like(images)
    downs, rights = random.integers(0, 2 * shift + 1, (2, len(images)))
    for down in range(2 * shift + 1):
        for right in range(2 * shift + 1):
            chosen = np.flatnonzero((downs == down) & (rights == right))
            moved[chosen] = padded[chosen, down : down + height, right : right + width]
    mirrored = np.random.default_rng(seed).random(places.max() + 1)[places] < 0.5
    if epoch % 2:
        mirrored = ~mirrored
    moved[mirrored] = moved[mirrored, :, ::-1]
    return moved
