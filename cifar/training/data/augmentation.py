"""Augmentation of training images: random shifts and mirroring."""

from __future__ import annotations

import numpy as np


def augment(images: np.ndarray, *, positions: np.ndarray, epoch: int, seed: int, max_shift: int) -> np.ndarray:
    """Return shifted and mirrored copies of images `(n, height, width, channels)` `uint8`; the same ones for the same seed and epoch.

    Every image is shifted by up to `max_shift` pixels in each direction; the border is filled by reflection. Half of the
    images are mirrored in even epochs and the other half in odd epochs, so two epochs show both sides of each image
    (alternating flip, Jordan 2024, arXiv:2404.00498). The positions `(n,)` of the images in the data set decide which half an
    image is in, so shuffling does not matter.
    """
    random = np.random.default_rng((seed, epoch, 1))
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)), "reflect")
    shifted = np.empty_like(images)
    downs, rights = random.integers(0, 2 * max_shift + 1, (2, len(images)))
    for down in range(2 * max_shift + 1):
        for right in range(2 * max_shift + 1):
            chosen = np.flatnonzero((downs == down) & (rights == right))
            shifted[chosen] = padded[chosen, down : down + height, right : right + width]
    mirrored = np.random.default_rng(seed).random(positions.max() + 1)[positions] < 0.5
    if epoch % 2:
        mirrored = ~mirrored
    shifted[mirrored] = shifted[mirrored, :, ::-1]
    return shifted
