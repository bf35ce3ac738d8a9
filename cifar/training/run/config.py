"""The settings of a training run, and the plan that follows from the settings and the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np

from cifar.cpus import computes_bfloat16
from cifar.errors import BadParameter
from cifar.training.data.dataset import Dataset
from cifar.training.data.photographs import PHOTO, refuse_epochwise
from cifar.training.libraries import library_versions
from cifar.training.network.architectures import ARCHITECTURES, Precision
from cifar.training.network.recipes import RECIPES, Recipe
from cifar.training.run.devices import Devices
from cifar.training.run.run_folder import Row
from cifar.training.run.transfer import Teachers, teacher_digests


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Together with the data they determine its result. None means: the recipe of `arch` decides."""

    arch: str = "fast"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    """The initial learning rate."""
    validation_split: float = 0.05
    """Share of each class to hold out for validation, in (0, 1). A validation part of the data set itself is used instead."""
    seed: int = 0
    time_budget: float | None = None
    """Seconds to train for, instead of `epochs`."""
    target_accuracy: float | None = None
    """Validation accuracy, in (0, 1], at which training stops."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the convolutions. `auto` chooses bfloat16 if the processor has instructions for it."""
    init_from: str | None = None
    """A version's folder, a run folder or a `.keras` file whose weights to start from."""
    teacher: tuple[str, ...] = ()
    """Run folders or `.keras` files whose mean answer to learn instead of the labels; see `Teachers`."""
    photo_views: float = 0.0
    """Share of each epoch's images, in [0, 1], that are changed to look like photographs scaled down; see `photo_views`."""
    class_weights: bool = False
    """Weight the loss of each image so that every class counts the same, however many images it has."""

    def __post_init__(self) -> None:
        if self.arch not in (*ARCHITECTURES, PHOTO):
            names = ", ".join((*ARCHITECTURES, PHOTO))
            raise BadParameter(f"There is no architecture {self.arch!r}; there are: {names}.")
        if self.arch == PHOTO:
            refuse_epochwise(asdict(self))
        for name, low in (("epochs", 1), ("batch_size", 1), ("learning_rate", 1e-12), ("time_budget", 1e-12)):
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise BadParameter(f"{name} must be positive; got {value}.")
        if not 0 < self.validation_split < 1:
            raise BadParameter(f"validation_split is a share between 0 and 1; got {self.validation_split}.")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise BadParameter(f"target_accuracy is a share, such as 0.9; got {self.target_accuracy}.")
        if not 0 <= self.photo_views <= 1:
            raise BadParameter(f"photo_views is a share, such as 0.5; got {self.photo_views}.")
        if self.epochs is not None and self.time_budget is not None:
            raise BadParameter("Set epochs or a time budget, not both.")


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of a run with every open choice made, and the images to train and validate on."""

    config: TrainConfig
    dataset: Dataset
    recipe: Recipe
    precision: Precision
    fit: np.ndarray
    """Positions in `dataset` of the images to train on."""
    held_out: np.ndarray
    """Positions of the images for validation."""
    images_per_epoch: int
    batch_size: int
    small_batch_size: int
    """Batch size while a time budget allows few steps."""
    teachers: Teachers | None

    @classmethod
    def make(cls, config: TrainConfig, dataset: Dataset, devices: Devices) -> Self:
        """Hold out the validation images and let the recipe choose what `config` leaves open.

        Raises:
            DataError: a class has too few images to hold one out.
            TrainingError: a teacher cannot be used.
        """
        recipe = RECIPES[config.arch]
        fit, held_out = dataset.hold_out(config.validation_split, config.seed)
        batch_size = config.batch_size or devices.evenly(recipe.batch_size_for(len(fit), dataset.image_shape))
        teachers = Teachers(config.teacher, dataset, config.validation_split, config.seed) if config.teacher else None
        return cls(
            config=config,
            dataset=dataset,
            recipe=recipe,
            precision=choose_precision(config),
            fit=fit,
            held_out=held_out,
            images_per_epoch=devices.evenly(len(fit)),
            batch_size=batch_size,
            small_batch_size=devices.evenly(max(8, batch_size // 4)),
            teachers=teachers,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run, unless it has a time budget."""
        epochs = self.config.epochs or self.recipe.epochs_for(len(self.fit), self.batch_size)
        return epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.images_per_epoch // self.batch_size)

    @property
    def learning_rate(self) -> float:
        """The initial learning rate for batches of `batch_size`."""
        ratio = self.recipe.transfer_ratio if self.config.init_from else 1
        return self.config.learning_rate or self.recipe.learning_rate * ratio

    @property
    def classes(self) -> int:
        return len(self.dataset.class_names)

    @property
    def class_weights(self) -> list[float]:
        """Weights in inverse proportion to the number of training images of each class; their mean over the images is 1."""
        counts = np.bincount(self.dataset.train_labels[self.fit], minlength=self.classes)
        weights: list[float] = (len(self.fit) / (self.classes * counts)).tolist()
        return weights

    def one_hot(self, positions: np.ndarray) -> np.ndarray:
        """Return the labels of the images at `positions` as `(n, classes)` `float32`."""
        rows: np.ndarray = np.eye(self.classes, dtype=np.float32)[self.dataset.train_labels[positions]]
        return rows

    def allows_few_steps(self, history: list[Row]) -> bool:
        """Estimate from the speed of the last epoch whether the time budget allows fewer steps than the recipe needs.

        With few steps, smaller batches and weaker augmentation give a better result, because smaller batches give more
        steps and few epochs do not overfit: on two cores, one pass over CIFAR-10 reaches a test accuracy of 81.9 % instead
        of 77.8 % (docs/training.md). Before the first epoch the speed is unknown, and few steps are assumed.
        """
        if self.config.time_budget is None or self.config.batch_size:
            return False
        steps = self.config.time_budget / history[-1]["seconds"] * self.steps_per_epoch if history else 0
        return steps < self.recipe.min_steps

    def target_reached(self, history: list[Row]) -> bool:
        target = self.config.target_accuracy
        return bool(target and history and history[-1]["val_accuracy"] >= target)


def choose_precision(config: TrainConfig) -> Precision:
    """Return the number format in which convolutions compute on this processor."""
    wanted = config.precision == "bfloat16" or (config.precision == "auto" and computes_bfloat16())
    return "bfloat16" if wanted else "float32"


def describe_run(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return everything that determines the result of a run, as `config.json` holds it."""
    return {
        "config": {**asdict(config), "teacher": list(config.teacher)},
        "data": {
            "source": dataset.source,
            "fingerprint": dataset.fingerprint(),
            "train_images": len(dataset.train_labels),
            "test_images": len(dataset.test_labels),
            "teachers": teacher_digests(config.teacher),
        },
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "libraries": library_versions(),
    }
