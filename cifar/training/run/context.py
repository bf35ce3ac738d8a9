"""What a run is made of: its settings, its data, who trains, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cifar.cpus import computes_bfloat16
from cifar.errors import BadParameter, TrainingError
from cifar.training.data.dataset import Dataset, split_validation
from cifar.training.distributed.workers import Workers
from cifar.training.libraries import library_versions
from cifar.training.network.architectures import ARCHITECTURES, Precision
from cifar.training.network.recipes import RECIPES, Recipe
from cifar.training.run.run_folder import Row

INPUT_RANGE = (0.0, 255.0)
"""The pixel range that this project's own networks take."""


@dataclass(frozen=True)
class TrainConfig:
    """What decides a run's result, together with the data. None leaves a setting to the recipe of `arch`."""

    arch: str = "fast"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    validation_split: float = 0.05
    seed: int = 0
    time_budget: float | None = None
    """Seconds to train for, in place of `epochs`."""
    target_accuracy: float | None = None
    """Validation accuracy, in (0, 1], to stop at."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What convolutions compute in: `auto` takes bfloat16 where the processor has a unit for it."""
    init_from: str | None = None
    """A version's folder, a run or a `.keras` file whose weights to start from."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise BadParameter(f"There is no architecture {self.arch!r}; there are: {', '.join(ARCHITECTURES)}.")
        for name, low in (("epochs", 1), ("batch_size", 1), ("learning_rate", 1e-12), ("time_budget", 1e-12)):
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise BadParameter(f"{name} must be positive; got {value}.")
        if not 0 < self.validation_split < 1:
            raise BadParameter(f"validation_split is a share between 0 and 1; got {self.validation_split}.")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise BadParameter(f"target_accuracy is a share, such as 0.9; got {self.target_accuracy}.")
        if self.epochs is not None and self.time_budget is not None:
            raise BadParameter("Give epochs or a time budget, not both.")


@dataclass(frozen=True)
class TrainingContext:
    """What all steps of one run share; made by `prepare`."""

    config: TrainConfig
    recipe: Recipe
    dataset: Dataset
    run: Path
    workers: Workers
    precision: Precision
    batch_size: int
    epochs: int
    fit: np.ndarray
    """Positions of the images to fit."""
    held_out: np.ndarray
    """Positions of the images for validation."""
    on_epoch: Callable[[Sequence[Row]], None]
    waited: list[float] = field(default_factory=list)
    """Seconds that each epoch waited for its views."""

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.dataset.class_names)

    @property
    def steps_an_epoch(self) -> int:
        """Batches."""
        return -(-self.images_an_epoch // self.batch_size)

    @property
    def images_an_epoch(self) -> int:
        """Those to fit, but for what cannot be shared out evenly."""
        return len(self.fit) - len(self.fit) % self.workers.replicas

    @property
    def learning_rate(self) -> float:
        """At the start."""
        ratio = self.recipe.transfer_ratio if self.config.init_from else 1
        return self.config.learning_rate or self.recipe.learning_rate * ratio

    def one_hot(self, positions: np.ndarray) -> np.ndarray:
        """Labels `(n,)` as rows `(n, classes)` `float32`."""
        rows: np.ndarray = np.eye(self.classes, dtype=np.float32)[self.dataset.train_labels[positions]]
        return rows

    def describe(self) -> dict[str, Any]:
        """What decides the run's result, for its folder."""
        dataset = self.dataset
        return {
            "config": asdict(self.config),
            "data": {
                "source": dataset.source,
                "fingerprint": dataset.fingerprint(),
                "train_images": len(dataset.train_labels),
                "test_images": len(dataset.test_labels),
            },
            "class_names": list(dataset.class_names),
            "image_shape": list(dataset.image_shape),
            "libraries": library_versions(),
        }


def evenly(images: int, workers: Workers) -> int:
    """So many images, or a few less, that all devices get the same share."""
    return max(workers.replicas, images - images % workers.replicas)


def _check_shares(config: TrainConfig, workers: Workers, images: int) -> None:
    if workers.count > 1 and config.time_budget:
        raise BadParameter("A time budget goes by one machine's clock; with several workers give --epochs.")
    replicas = workers.replicas
    if config.batch_size and config.batch_size % replicas:
        fits = evenly(config.batch_size, workers)
        raise BadParameter(
            f"A batch of {config.batch_size} cannot be shared out evenly among {replicas} devices; "
            f"{fits} and {fits + replicas} can."
        )
    if images < replicas:
        raise TrainingError(f"{replicas} devices need at least as many held-out images; there are {images}.")


def prepare(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    on_epoch: Callable[[Sequence[Row]], None] | None,
    workers: Workers,
) -> TrainingContext:
    """Work out what settings and data leave open.

    Raises:
        BadParameter: the batch cannot be shared out evenly, or several workers were given a time budget.
        DataError: too few images to hold some out.
        TrainingError: there are more devices than images to hold out.
    """
    recipe = RECIPES[config.arch]
    fit, held_out = split_validation(dataset.train_labels, config.validation_split, config.seed, dataset.class_names)
    _check_shares(config, workers, images=min(len(fit), len(held_out)))
    batch_size = config.batch_size or evenly(recipe.batch_for(len(fit), dataset.image_shape), workers)
    epochs = config.epochs or recipe.epochs_for(len(fit), batch_size)
    precision: Precision = "bfloat16" if _wants_bfloat16(config) else "float32"
    quiet: Callable[[Sequence[Row]], None] = lambda _: None  # noqa: E731
    return TrainingContext(
        config, recipe, dataset, run, workers, precision, batch_size, epochs, fit, held_out, on_epoch or quiet
    )


def _wants_bfloat16(config: TrainConfig) -> bool:
    return config.precision == "bfloat16" or (config.precision == "auto" and computes_bfloat16())
