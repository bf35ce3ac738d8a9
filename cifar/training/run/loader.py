"""The training images of each epoch, prepared in a thread while the model trains on the epoch before."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cifar.training.data.augmentation import augment
from cifar.training.data.photo_views import photo_views
from cifar.training.run.config import TrainingPlan
from cifar.training.run.devices import Pairs
from cifar.training.run.run_folder import Row


@dataclass(frozen=True)
class Epoch:
    """Shuffled and augmented images, their labels or the teachers' answers, and the settings to train on them with."""

    pairs: Pairs
    batch_size: int
    learning_rate: float
    """The initial learning rate of the run for this batch size."""


class EpochLoader:
    """Prepares one epoch ahead. The images of an epoch and their order depend on seed and epoch number alone."""

    def __init__(self, plan: TrainingPlan, history: list[Row]) -> None:
        self._plan = plan
        self._thread = ThreadPoolExecutor(1, "epochs")
        self._ahead = self._prepare(len(history), history)
        self.waited_seconds = 0.0
        """Time that training has waited for images."""

    def close(self) -> None:
        self._thread.shutdown()

    def take(self, history: list[Row]) -> Epoch:
        """Return the epoch after those in `history`, and begin to prepare the next one."""
        started = time.monotonic()
        epoch = self._ahead.result()
        self.waited_seconds += time.monotonic() - started
        self._ahead = self._prepare(len(history) + 1, history)
        return epoch

    def _prepare(self, number: int, history: list[Row]) -> Future[Epoch]:
        return self._thread.submit(make_epoch, self._plan, number, few_steps=self._plan.allows_few_steps(history))


def make_epoch(plan: TrainingPlan, number: int, *, few_steps: bool) -> Epoch:
    """Prepare the epoch with this number, from 0; see `TrainingPlan.allows_few_steps`."""
    seed = plan.config.seed
    order = np.random.default_rng((seed, number)).permutation(plan.fit)[: plan.images_per_epoch]
    images = plan.dataset.train_images[order]
    if plan.recipe.max_shift is not None:
        max_shift = round(plan.recipe.max_shift * images.shape[1] / 32) // (2 if few_steps else 1)
        images = augment(images, positions=order, epoch=number, seed=seed, max_shift=max_shift)
    if plan.config.photo_views:
        random = np.random.default_rng((seed, number, 2))
        chosen = random.random(len(images)) < plan.config.photo_views
        images[chosen] = photo_views(images[chosen], random)
    targets = plan.one_hot(order)
    if plan.teachers:
        targets = plan.teachers.targets(images, targets)
    batch_size = plan.small_batch_size if few_steps else plan.batch_size
    learning_rate = plan.learning_rate * (batch_size / plan.batch_size) ** 0.5
    return Epoch((images, targets), batch_size, learning_rate)
