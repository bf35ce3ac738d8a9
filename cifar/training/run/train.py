"""Fit a network to a data set, in a run folder that survives interruption; see `folder.py` for what is in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np

from cifar.errors import TrainingError
from cifar.training.data.dataset import Dataset
from cifar.training.data.views import views
from cifar.training.distributed.workers import SEED, Workers, join
from cifar.training.network.architectures import build_model, initialize
from cifar.training.network.batchnorm import RecalibrateBatchNorm
from cifar.training.run.context import TrainConfig, TrainingContext, evenly, prepare
from cifar.training.run.epoch import Fitting, FittingTogether
from cifar.training.run.finish import finish
from cifar.training.run.progress import Progress
from cifar.training.run.run_folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    MODEL,
    Row,
    check_folder,
    make_folder,
    read_history,
    save_model,
    write_history,
)
from cifar.training.run.schedule import LearningRateSchedule, steps_done
from cifar.training.run.transfer import start_from

_SHORT_BATCHES = 4
"""By how much batches shrink where a time budget allows few steps. One pass over CIFAR-10 (146 s on two cores without bfloat16)
then gives 81.9 % of the test images in place of 77.8 %."""


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    h5: bool = False,
    on_epoch: Callable[[Sequence[Row]], None] | None = None,
    workers: Workers | None = None,
) -> Path:
    """Train, or go on training, in the folder `run`.

    A run of so many epochs that was interrupted and resumed gives the same weights as one that was not: the views and
    their order, and what dropout drops, depend on seed and epoch alone, and the checkpoint holds the optimizer's state.
    A run with a time budget goes by the clock.

    Several workers share out each batch, so that the run is the one that one of them would have made alone, but for
    rounding and for what dropout drops. The chief alone reads and writes the folder.

    Args:
        config: the run's settings.
        dataset: images and labels; a share of the training part is held out, and the test part chooses nothing.
        run: a new folder, or with `resume` also an unfinished run with the same settings and data.
        resume: go on from the last epoch, if there is one.
        h5: also write `model.h5`.
        on_epoch: called after each epoch with all rows so far, for a live plot.
        workers: who trains, from `join`; None for one device of this process.

    Returns:
        The path of `model.keras`, with several workers on the chief's machine.

    Raises:
        BadParameter: the batch cannot be shared out evenly, or several workers were given a time budget.
        TrainingError: the folder exists, is no run, or was made with other settings or data; or the loss became NaN;
            or workers differ, or one went away.
        KeyboardInterrupt: passed on. After this, and after NaN, what the whole epochs gave is there as a run that can be
            exported; after this it can also go on.
    """
    workers = workers or join("none", None)
    with workers.together():
        return _train(prepare(config, dataset, run, on_epoch, workers), resume=resume, h5=h5)


def _train(work: TrainingContext, *, resume: bool, h5: bool) -> Path:
    run, workers = work.run, work.workers
    description = work.describe()
    options = {f"--{name.replace('_', '-')}": value for name, value in asdict(work.config).items()}
    workers.agree(
        {**options, "--resume": resume, "data": description["data"]["fingerprint"], "precision": work.precision}
    )
    if workers.is_chief:
        check_folder(run, description, resume=resume)
    if workers.from_chief((run / METRICS).exists() and not (run / CHECKPOINT).exists()):
        if workers.is_chief and h5 and not (run / "model.h5").exists():
            save_model(keras.saving.load_model(run / MODEL), run / "model.h5")
        return run / MODEL
    keras.utils.set_random_seed(work.config.seed)
    model, history = _start(work)
    if not workers.is_chief:
        _fit(work, model, history)
        workers.from_chief(None)  # who ended well would not be started again, should the chief die while it writes
        return run / MODEL
    if not (run / CONFIG).exists():
        make_folder(run, description)  # not before: what cannot start leaves nothing
    (run / METRICS).unlink(missing_ok=True)  # of a run that was interrupted, and goes on
    try:
        with workers.together():
            _fit(work, model, history)
    except (KeyboardInterrupt, TrainingError):
        if (run / CHECKPOINT).exists():
            model = _build(work)
            finish(work, model, _fill(work, model), h5=h5)
        raise
    result = finish(work, model, history, h5=h5)
    (run / CHECKPOINT).unlink()
    workers.from_chief(None)
    return result


def _start(work: TrainingContext) -> tuple[keras.Model, list[Row]]:
    """A new model, or the last epoch's with its history: the chief's, for all workers."""
    workers, history = work.workers, None
    with workers.strategy.scope():
        model = _build(work)
    if workers.is_chief:
        history = _fill(work, model)
    workers.share_state(model)
    return model, workers.from_chief(history)


def _build(work: TrainingContext) -> keras.Model:
    recipe = work.recipe
    model = build_model(work.config.arch, work.classes, image_shape=work.dataset.image_shape, precision=work.precision)
    model.compile(
        recipe.optimizer(work.learning_rate, work.precision),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _fill(work: TrainingContext, model: keras.Model) -> list[Row]:
    """Give a model the weights to begin with, or those of the last epoch; returns the rows so far."""
    checkpoint = work.run / CHECKPOINT
    if checkpoint.exists():
        model.load_weights(checkpoint)  # and the optimizer's state
        steps = steps_done(model)
        return [row for row in read_history(work.run) if row["steps"] <= steps]
    if work.config.init_from:
        start_from(work.config.init_from, model)
    else:
        initialize(model, work.dataset.train_images[work.fit])
    return []


def _fit(work: TrainingContext, model: keras.Model, history: list[Row]) -> None:
    """Train epoch by epoch; after each, the history and the checkpoint are replaced as wholes."""
    config = work.config
    held_out = work.dataset.train_images[work.held_out], work.one_hot(work.held_out)
    pace = LearningRateSchedule(
        steps=work.steps_an_epoch * work.epochs,
        seconds=config.time_budget,
        learning_rate=work.learning_rate,
        anneal=work.recipe.anneal,
        spent_seconds=sum(row["seconds"] for row in history),
    )
    settle = RecalibrateBatchNorm(
        work.dataset.train_images[work.fit[:: max(1, len(work.fit) // (6 * work.batch_size))]]
    )
    with ThreadPoolExecutor(1, "views") as aside, Progress(pace, shown=work.workers.is_chief) as progress:
        callbacks = [pace, settle, keras.callbacks.TerminateOnNaN(), *_tensorboard(work), progress]
        kind = Fitting if work.workers.replicas == 1 else FittingTogether
        fitting = kind(model, held_out, work.batch_size, callbacks)
        short = _is_short(work, history)
        ahead = aside.submit(_epoch_views, work, len(history), short=short)
        while pace.done(steps_done(model)) < 1 and not pace.over and not _reached(config, history):
            epoch = len(history)
            pairs = _wait_for(ahead, work)
            soon_short = _is_short(work, history)
            ahead = aside.submit(_epoch_views, work, epoch + 1, short=soon_short)
            _seed_dropout(model, work, epoch)
            batch_size = evenly(max(work.batch_size // _SHORT_BATCHES, 8), work.workers) if short else work.batch_size
            pace.learning_rate = work.learning_rate * (batch_size / work.batch_size) ** 0.5
            logs = fitting.epoch(pairs, epoch=epoch, batch_size=batch_size)
            row: Row = {"epoch": epoch + 1, "steps": steps_done(model), **logs}
            # since the last row's, the writing of that one included: a resumed run has no more time than was asked for
            row["seconds"] = round(pace.spent_seconds - sum(row["seconds"] for row in history), 2)
            _refuse_nan(work, row)
            history.append(row)
            _keep(work, model, history)
            progress.epoch_done(row)
            short = soon_short


def _reached(config: TrainConfig, history: list[Row]) -> bool:
    return bool(config.target_accuracy and history and history[-1]["val_accuracy"] >= config.target_accuracy)


def _keep(work: TrainingContext, model: keras.Model, history: list[Row]) -> None:
    if work.workers.is_chief:
        write_history(work.run, history)
        save_model(model, work.run / CHECKPOINT)
        work.on_epoch(history)


def _is_short(work: TrainingContext, history: list[Row]) -> bool:
    """Whether a time budget allows few steps, or it is not known yet how many.

    Then batches are smaller, so that there are more steps, and views are moved by less: few epochs learn nothing by heart.
    """
    if work.config.time_budget is None or work.config.batch_size:
        return False
    steps = work.config.time_budget / history[-1]["seconds"] * work.steps_an_epoch if history else 0
    return steps < work.recipe.least_steps


def _refuse_nan(work: TrainingContext, row: Row) -> None:
    # The last step of an epoch shows in the validation loss alone.
    if not np.isfinite([row["loss"], row["val_loss"]]).all():
        epoch = int(row["epoch"])
        kept = f"; what the {epoch - 1} before gave is kept in {work.run}" if epoch > 1 else ""
        raise TrainingError(
            f"The loss became {row['loss']} in epoch {epoch}{kept}. "
            f"Try a smaller --learning-rate than {work.learning_rate:g} in a new run."
        )


def _epoch_views(work: TrainingContext, epoch: int, *, short: bool) -> tuple[np.ndarray, np.ndarray]:
    """What one epoch trains on, in its order: made in a thread while the epoch before is trained on."""
    order = np.random.default_rng((work.config.seed, epoch)).permutation(work.fit)[: work.images_an_epoch]
    images, shift = work.dataset.train_images[order], work.recipe.shift
    if shift is not None:
        pixels = round(shift * images.shape[1] / 32) // (2 if short else 1)
        images = views(images, places=order, epoch=epoch, seed=work.config.seed, shift=pixels)
    return images, work.one_hot(order)


def _wait_for(ahead: Future[tuple[np.ndarray, np.ndarray]], work: TrainingContext) -> tuple[np.ndarray, np.ndarray]:
    started = time.monotonic()
    ready = ahead.result()
    work.waited.append(time.monotonic() - started)
    return ready


def _seed_dropout(model: keras.Model, work: TrainingContext, epoch: int) -> None:
    """Start every random layer anew: Keras does not save their state, so a resumed run could not go on from it."""
    others = [work.workers.index] if work.workers.index else []  # each worker drops something else
    random = np.random.default_rng((work.config.seed, epoch, *others))
    for variable in model.variables:
        if variable.path.endswith(SEED):
            variable.assign(random.integers(0, 2**32, variable.shape, np.uint32))


def _tensorboard(work: TrainingContext) -> list[keras.callbacks.Callback]:
    folder = work.run / "tensorboard"
    return [keras.callbacks.TensorBoard(folder, write_graph=False)] if work.workers.is_chief else []
