"""Train a network on a data set, in a run folder that survives interruption; `run_folder` lists the files in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import keras
import numpy as np

from cifar.errors import TrainingError
from cifar.files import remove_leftovers
from cifar.training.data.dataset import Dataset
from cifar.training.data.photographs import PHOTO
from cifar.training.network.architectures import build_model, initialize
from cifar.training.network.batchnorm import RECALIBRATION_BATCHES, RecalibrateBatchNorm
from cifar.training.network.losses import WeightedCrossentropy
from cifar.training.run.calibration import FITTED_IMAGES
from cifar.training.run.config import TrainConfig, TrainingPlan, describe_run
from cifar.training.run.devices import SEED_GENERATOR_STATE, Devices
from cifar.training.run.finish import finish
from cifar.training.run.loader import EpochLoader
from cifar.training.run.photo.train import train_photo
from cifar.training.run.progress import Progress
from cifar.training.run.run_folder import (
    CHECKPOINT,
    CONFIG,
    H5_MODEL,
    METRICS,
    MODEL,
    Row,
    check_folder,
    is_finished,
    make_folder,
    read_history,
    save_model,
    write_history,
)
from cifar.training.run.schedule import LearningRateSchedule, steps_done
from cifar.training.run.transfer import copy_weights

_ONE_DEVICE = Devices()


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    h5: bool = False,
    on_epoch: Callable[[Sequence[Row]], None] | None = None,
    devices: Devices = _ONE_DEVICE,
    began: float | None = None,
) -> Path:
    """Train a model in the folder `run`, or resume a run there, and return the path of `model.keras`.

    An interrupted and resumed run gives the same weights, to the last bit, as an uninterrupted one: order, augmentation
    and dropout depend on seed and epoch number alone, and the checkpoint includes the optimizer's state. A run with a time
    budget depends on the clock, so it cannot be repeated exactly.

    Args:
        config: the run's settings.
        dataset: images and labels. A share of the training part is held out for validation. The test part is only
            measured on, at the end.
        run: a new folder. With `resume` it may also hold an unfinished run with the same settings and data.
        resume: continue after the last complete epoch, if there is one.
        h5: also write `model.h5`.
        on_epoch: called after each epoch with the rows of all epochs so far, for example to draw a plot.
        devices: where to train; by default on one device of this process.
        began: the `time.monotonic()` at which a time budget begins. Default: when training does.

    Raises:
        TrainingError: the folder exists, is not a run, or was made with other settings or data; the time budget was over
            before training began; or the loss became NaN.
        KeyboardInterrupt: passed on, when Ctrl-C interrupted the run. It can then be resumed. After this and after NaN,
            the complete epochs, if there are any, can be exported.
    """
    description = describe_run(config, dataset)
    check_folder(run, description, resume=resume)
    if is_finished(run):
        if h5 and not (run / H5_MODEL).exists():
            save_model(keras.saving.load_model(run / MODEL), run / H5_MODEL)
        return run / MODEL

    if config.arch == PHOTO:
        return train_photo(config, dataset, run, description, h5=h5)
    plan = TrainingPlan.make(config, dataset, devices)
    lost_seconds = _refuse_late_start(config, began)
    keras.utils.set_random_seed(config.seed)
    model, history = make_or_resume_model(plan, run, devices)
    if not (run / CONFIG).exists():  # created only here, so that a run that cannot start leaves no folder
        make_folder(run, description)
    remove_leftovers(run)
    (run / METRICS).unlink(missing_ok=True)  # it exists if the run was interrupted by Ctrl-C

    schedule = make_schedule(plan, history, lost_seconds=lost_seconds)
    tensorboard = keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False)
    loader = EpochLoader(plan, history)
    try:
        with closing(loader), closing(Progress(schedule)) as progress:
            callbacks = [tensorboard, progress]
            for row in fit_epochs(
                plan, model, history, schedule=schedule, loader=loader, callbacks=callbacks, devices=devices
            ):
                write_history(run, history)
                save_model(model, run / CHECKPOINT)
                if on_epoch:
                    on_epoch(history)
                progress.print_epoch(row)
    except (KeyboardInterrupt, TrainingError):
        if (run / CHECKPOINT).exists():
            model, history = make_or_resume_model(plan, run, _ONE_DEVICE)
            finish(plan, run, model, history, h5=h5, waited_seconds=loader.waited_seconds)
        raise
    finish(plan, run, model, history, h5=h5, waited_seconds=loader.waited_seconds)
    (run / CHECKPOINT).unlink()
    return run / MODEL


def make_or_resume_model(plan: TrainingPlan, run: Path, devices: Devices) -> tuple[keras.Model, list[Row]]:
    """Return the compiled model of the last complete epoch and its history, or a new model and an empty history."""
    model = devices.build(lambda: compile_model(plan))
    history: list[Row] = []
    if (run / CHECKPOINT).exists():
        model.load_weights(run / CHECKPOINT)  # and the optimizer's state
        steps = steps_done(model)
        history = [row for row in read_history(run) if row["steps"] <= steps]
    elif plan.config.init_from:
        copy_weights(plan.config.init_from, model)
    else:
        initialize(model, plan.dataset.train_images[plan.fit])
    return model, devices.start(model, history)


def compile_model(plan: TrainingPlan) -> keras.Model:
    model = build_model(plan.config.arch, plan.classes, image_shape=plan.dataset.image_shape, precision=plan.precision)
    smoothing = 0.0 if plan.teachers else plan.recipe.label_smoothing  # their answers are smooth
    weighted = plan.config.class_weights
    model.compile(
        plan.recipe.optimizer(plan.learning_rate, plan.precision),
        loss=(
            WeightedCrossentropy(plan.class_weights, label_smoothing=smoothing)
            if weighted
            else keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        ),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _refuse_late_start(config: TrainConfig, began: float | None) -> float:
    """Return the seconds between the begin of a time budget and now."""
    lost = time.monotonic() - began if began is not None else 0.0
    if config.time_budget is not None and lost >= config.time_budget:
        raise TrainingError(
            f"Reading the data and loading TensorFlow took {lost:.0f} s, and the time budget is {config.time_budget:g} s. "
            "Give more time, or use --epochs."
        )
    return lost


def make_schedule(plan: TrainingPlan, history: list[Row], *, lost_seconds: float = 0.0) -> LearningRateSchedule:
    measured = 2 * min(len(plan.fit), FITTED_IMAGES) + 3 * len(plan.held_out) + len(plan.dataset.test_labels)
    return LearningRateSchedule(
        steps=plan.steps,
        seconds=None if plan.config.time_budget is None else plan.config.time_budget - lost_seconds,
        learning_rate=plan.learning_rate,
        anneal=plan.recipe.anneal,
        spent_seconds=sum(row["seconds"] for row in history),
        finish_batches=measured / plan.batch_size,
    )


def fit_epochs(
    plan: TrainingPlan,
    model: keras.Model,
    history: list[Row],
    *,
    schedule: LearningRateSchedule,
    loader: EpochLoader,
    callbacks: Sequence[keras.callbacks.Callback],
    devices: Devices,
) -> Iterator[Row]:
    """Train epoch by epoch until the run is over. Each epoch's row is appended to `history` and then yielded.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    images = plan.dataset.train_images
    validation = images[plan.held_out], plan.one_hot(plan.held_out)
    every = max(1, len(plan.fit) // (RECALIBRATION_BATCHES * plan.batch_size))
    recalibrate = RecalibrateBatchNorm(images[plan.fit[::every]])
    while not (schedule.over or schedule.done(steps_done(model)) == 1 or plan.target_reached(history)):
        number = len(history)
        epoch = loader.take(history)
        seed_dropout(model, (plan.config.seed, number))
        schedule.learning_rate = epoch.learning_rate
        logs = devices.fit_epoch(
            model,
            epoch.pairs,
            validation,
            number=number,
            batch_size=epoch.batch_size,
            validation_batch_size=plan.batch_size,
            callbacks=[schedule, recalibrate, keras.callbacks.TerminateOnNaN(), *callbacks],
        )
        row: Row = {"epoch": number + 1, "steps": steps_done(model), **logs}
        # All time since the last row, including the writing of that row, so that a resumed run gets no extra time.
        row["seconds"] = round(schedule.spent_seconds - sum(row["seconds"] for row in history), 2)
        if not np.isfinite([row["loss"], row["val_loss"]]).all():  # the last step shows only in the validation loss
            kept = f"; the run keeps the {number} epochs before it" if number else ""
            raise TrainingError(
                f"The loss became {row['loss']} in epoch {number + 1}{kept}. "
                f"Try a smaller --learning-rate than {plan.learning_rate:g} in a new run."
            )
        history.append(row)
        yield row


def seed_dropout(model: keras.Model, seed: Sequence[int]) -> None:
    """Seed every random layer. Keras does not save their state, so a resumed run could not continue from it."""
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.endswith(SEED_GENERATOR_STATE):
            variable.assign(random.integers(0, 2**32, variable.shape, np.uint32))
