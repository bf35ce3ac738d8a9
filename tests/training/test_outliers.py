"""`cifar.training.data.outliers`: synthetic outliers."""

from __future__ import annotations

import numpy as np
import pytest

from cifar.training.data.outliers import KINDS, make_outliers


def pictures(height: int, width: int, channels: int) -> np.ndarray:
    """Return smooth images with a bright middle, in which every change is visible."""
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows / height - 0.5, columns / width - 0.5) < 0.3
    shades = np.linspace(0, 80, 12)[:, None, None, None]
    return (shades + 150 * disc[..., None] + np.zeros(channels) + rows[..., None]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 96, 3), (28, 28, 1), (33, 47, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_keeps_size_and_type_and_changes_nearly_every_image(kind, shape):
    """This also holds for grey, odd-sized and oblong images. The source images do not change."""
    images = pictures(*shape)
    before = images.copy()
    made = kind(images, np.random.default_rng(0))
    assert (made.shape, made.dtype) == (images.shape, np.uint8)
    assert (images == before).all()
    assert made.std() > 5, "the image must not be empty"
    changed = (made != images).any(axis=(1, 2, 3)).mean()
    assert changed > 0.8


def test_the_same_seed_gives_the_same_outliers_with_equally_many_of_each_kind():
    """A repeated run must get the same score."""
    images = pictures(32, 32, 3)
    one, two = (make_outliers(images, 600, np.random.default_rng(4)) for _ in range(2))
    assert (one == two).all()
    assert len(one) % len(KINDS) == 0
    assert 400 < len(one) < 800
