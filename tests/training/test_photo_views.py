"""Training images that are changed to look like photographs."""

import numpy as np
import pytest
from support.runs import colours

from cifar.training.data.photo_views import photo_views
from cifar.training.run.config import TrainConfig, TrainingPlan
from cifar.training.run.devices import Devices
from cifar.training.run.loader import make_epoch


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (40, 64, 3)])
def test_photo_views_keep_shape_and_type_and_leave_the_given_images_as_they_are(shape):
    """They apply to every data set: grey images, and those that are not square."""
    images = np.random.default_rng(0).integers(0, 256, (60, *shape), np.uint8)
    before = images.copy()
    changed = photo_views(images, np.random.default_rng(1))
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert np.array_equal(images, before)
    different = (changed != images).any((1, 2, 3)).mean()
    assert 0.8 < different < 1, "most images are changed, and some stay as they are"


def test_a_run_changes_the_asked_share_of_its_images_and_the_same_ones_for_the_same_seed():
    """A resumed run must see the images that it would have seen, and the other images stay as they are."""

    def images_of(share: float) -> np.ndarray:
        plan = TrainingPlan.make(TrainConfig(photo_views=share, seed=3), dataset, Devices())
        return make_epoch(plan, 1, few_steps=False).pairs[0]

    dataset = colours(600)
    plain, half = images_of(0), images_of(0.5)
    np.testing.assert_array_equal(half, images_of(0.5))
    changed = (plain != half).any((1, 2, 3)).mean()
    assert 0.35 < changed < 0.5
