"""`cifar.training.data.outliers`: pictures of nothing."""

from __future__ import annotations

import numpy as np
import pytest

from cifar.training.data.outliers import KINDS, make_outliers


def pictures(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth ones, each with a bright middle, so that breaking them shows."""
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows / height - 0.5, columns / width - 0.5) < 0.3
    shades = np.linspace(0, 80, 12)[:, None, None, None]
    return (shades + 150 * disc[..., None] + np.zeros(channels) + rows[..., None]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 96, 3), (28, 28, 1), (33, 47, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_keeps_size_and_type_and_breaks_every_picture(kind, shape):
    """For grey, odd and oblong pictures too; the images it was made from are left alone."""
    images = pictures(*shape)
    before = images.copy()
    made = KINDS[kind](images, np.random.default_rng(0))
    assert (made.shape, made.dtype) == (images.shape, np.uint8)
    assert (images == before).all()
    assert made.std() > 5, "it is no empty picture"
    changed = (made != images).any(axis=(1, 2, 3)).mean()
    assert changed > 0.8


def test_the_same_seed_makes_the_same_pictures_of_each_kind_as_many():
    """A run that is repeated has the same score."""
    images = pictures(32, 32, 3)
    one, two = (make_outliers(images, 600, np.random.default_rng(4)) for _ in range(2))
    assert (one == two).all()
    assert len(one) % len(KINDS) == 0
    assert 400 < len(one) < 800
