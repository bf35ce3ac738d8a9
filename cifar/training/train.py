"""Fit a network to a data set, in a run folder that survives interruption; see `folder.py` for what is in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from cifar.cpus import computes_bfloat16
from cifar.errors import BadParameter, TrainingError
from cifar.training.augment import views
from cifar.training.confidence import calibrated, read_confidence, write_confidence
from cifar.training.data import Dataset, split_validation
from cifar.training.folder import (
    CHECKPOINT,
    METRICS,
    MODEL,
    Row,
    check_folder,
    make_folder,
    read_history,
    replacing,
    save_model,
    write_history,
    write_json,
)
from cifar.training.libraries import library_versions
from cifar.training.measures import measure
from cifar.training.model import ARCHITECTURES, Precision, build_model, initialize
from cifar.training.normalization import Settle
from cifar.training.pace import Pace
from cifar.training.plots import save_curves
from cifar.training.progress import Progress
from cifar.training.recipes import RECIPES, Recipe
from cifar.training.reference import write_reference
from cifar.training.transfer import start_from

_SAMPLES = 64
_SHORT_BATCHES = 4
"""By how much batches shrink where a time budget allows few steps. One pass over CIFAR-10 (146 s on two cores without bfloat16)
then gives 81.9 % of the test images in place of 77.8 %."""
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


def train(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    *,
    resume: bool = False,
    h5: bool = False,
    on_epoch: Callable[[Sequence[Row]], None] | None = None,
) -> Path:
    """Train, or go on training, in the folder `run`.

    A run of so many epochs that was interrupted and resumed gives the same weights as one that was not: the views and
    their order, and what dropout drops, depend on seed and epoch alone, and the checkpoint holds the optimizer's state.
    A run with a time budget goes by the clock.

    Args:
        config: the run's settings.
        dataset: images and labels; a share of the training part is held out, and the test part chooses nothing.
        run: a new folder, or with `resume` an unfinished run with the same settings and data.
        resume: go on from the last epoch.
        h5: also write `model.h5`.
        on_epoch: called after each epoch with all rows so far, for a live plot.

    Returns:
        The path of `model.keras`.

    Raises:
        TrainingError: the folder exists, is no run, or was made with other settings or data; or the loss became NaN.
        KeyboardInterrupt: passed on. After this, and after NaN, what the whole epochs gave is there as a run that can be
            exported; after this it can also go on.
    """
    description = _describe(config, dataset)
    check_folder(run, description, resume=resume)
    if (run / METRICS).exists() and not (run / CHECKPOINT).exists():
        if h5 and not (run / "model.h5").exists():
            save_model(keras.saving.load_model(run / MODEL), run / "model.h5")
        return run / MODEL
    keras.utils.set_random_seed(config.seed)
    work = _prepare(config, dataset, run, on_epoch)
    model, history = _start(work)
    if not resume:
        make_folder(run, description)  # not before: what cannot start leaves nothing
    (run / METRICS).unlink(missing_ok=True)  # of a run that was interrupted, and goes on
    try:
        _fit(work, model, history)
    except (KeyboardInterrupt, TrainingError):
        if (run / CHECKPOINT).exists():
            model, history = _start(work)
            _finish(work, model, history, h5=h5)
        raise
    result = _finish(work, model, history, h5=h5)
    (run / CHECKPOINT).unlink()
    return result


@dataclass(frozen=True)
class _Work:
    """What all steps of one run share."""

    config: TrainConfig
    recipe: Recipe
    dataset: Dataset
    run: Path
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
        return len(self.dataset.class_names)

    @property
    def steps_an_epoch(self) -> int:
        return -(-len(self.fit) // self.batch_size)

    @property
    def learning_rate(self) -> float:
        ratio = self.recipe.transfer_ratio if self.config.init_from else 1
        return self.config.learning_rate or self.recipe.learning_rate * ratio


def _prepare(
    config: TrainConfig, dataset: Dataset, run: Path, on_epoch: Callable[[Sequence[Row]], None] | None
) -> _Work:
    recipe = RECIPES[config.arch]
    fit, held_out = split_validation(dataset.train_labels, config.validation_split, config.seed, dataset.class_names)
    batch_size = config.batch_size or recipe.batch_for(len(fit), dataset.image_shape)
    epochs = config.epochs or recipe.epochs_for(len(fit), batch_size)
    precision: Precision = "bfloat16" if _wants_bfloat16(config) else "float32"
    quiet: Callable[[Sequence[Row]], None] = lambda _: None  # noqa: E731
    return _Work(config, recipe, dataset, run, precision, batch_size, epochs, fit, held_out, on_epoch or quiet)


def _wants_bfloat16(config: TrainConfig) -> bool:
    return config.precision == "bfloat16" or (config.precision == "auto" and computes_bfloat16())


def _describe(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    return {
        "config": asdict(config),
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


def _start(work: _Work) -> tuple[keras.Model, list[Row]]:
    """A new model, or the last epoch's with its history."""
    checkpoint = work.run / CHECKPOINT
    if checkpoint.exists():
        model = keras.saving.load_model(checkpoint)
        steps = int(model.optimizer.iterations)
        return model, [row for row in read_history(work.run) if row["steps"] <= steps]
    dataset, recipe = work.dataset, work.recipe
    model = build_model(work.config.arch, work.classes, image_shape=dataset.image_shape, precision=work.precision)
    if work.config.init_from:
        start_from(work.config.init_from, model)
    else:
        initialize(model, dataset.train_images[work.fit])
    model.compile(
        recipe.optimizer(work.learning_rate, work.precision),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    return model, []


def _fit(work: _Work, model: keras.Model, history: list[Row]) -> None:
    """Train epoch by epoch; after each, the history and the checkpoint are replaced as wholes."""
    config = work.config
    held_out = work.dataset.train_images[work.held_out], _one_hot(work, work.held_out)
    pace = Pace(
        steps=work.steps_an_epoch * work.epochs,
        seconds=config.time_budget,
        learning_rate=work.learning_rate,
        anneal=work.recipe.anneal,
        spent_seconds=sum(row["seconds"] for row in history),
    )
    settle = Settle(work.dataset.train_images[work.fit[:: max(1, len(work.fit) // (6 * work.batch_size))]])
    callbacks = [pace, settle, keras.callbacks.TerminateOnNaN(), _tensorboard(work.run)]
    with ThreadPoolExecutor(1, "views") as aside, Progress(pace) as progress:
        short = _is_short(work, history)
        ahead = aside.submit(_epoch_views, work, len(history), short=short)
        while pace.done(int(model.optimizer.iterations)) < 1 and not pace.over:
            epoch = len(history)
            images, labels = _wait_for(ahead, work)
            soon_short = _is_short(work, history)
            ahead = aside.submit(_epoch_views, work, epoch + 1, short=soon_short)
            _seed_dropout(model, np.random.default_rng((config.seed, epoch)))
            before = pace.spent_seconds
            batch_size = max(work.batch_size // _SHORT_BATCHES, 8) if short else work.batch_size
            pace.learning_rate = work.learning_rate * (batch_size / work.batch_size) ** 0.5
            result = model.fit(
                images,
                labels,
                batch_size=batch_size,
                initial_epoch=epoch,
                epochs=epoch + 1,
                shuffle=False,
                validation_data=held_out,
                validation_batch_size=work.batch_size,
                callbacks=[*callbacks, progress],
                verbose=0,
            )
            row: Row = {"epoch": epoch + 1, "steps": int(model.optimizer.iterations)}
            row |= {name: values[0] for name, values in result.history.items()}
            row["seconds"] = round(pace.spent_seconds - (before if history else 0), 2)
            _refuse_nan(work, row)
            history.append(row)
            write_history(work.run, history)
            save_model(model, work.run / CHECKPOINT)
            progress.epoch_done(row)
            work.on_epoch(history)
            short = soon_short
            if config.target_accuracy and row["val_accuracy"] >= config.target_accuracy:
                return


def _is_short(work: _Work, history: list[Row]) -> bool:
    """Whether a time budget allows few steps, or it is not known yet how many.

    Then batches are smaller, so that there are more steps, and views are moved by less: few epochs learn nothing by heart.
    """
    if work.config.time_budget is None or work.config.batch_size:
        return False
    steps = work.config.time_budget / history[-1]["seconds"] * work.steps_an_epoch if history else 0
    return steps < work.recipe.least_steps


def _refuse_nan(work: _Work, row: Row) -> None:
    # The last step of an epoch shows in the validation loss alone.
    if not np.isfinite([row["loss"], row["val_loss"]]).all():
        epoch = int(row["epoch"])
        kept = f"; what the {epoch - 1} before gave is kept in {work.run}" if epoch > 1 else ""
        raise TrainingError(
            f"The loss became {row['loss']} in epoch {epoch}{kept}. "
            f"Try a smaller --learning-rate than {work.learning_rate:g} in a new run."
        )


def _epoch_views(work: _Work, epoch: int, *, short: bool) -> tuple[np.ndarray, np.ndarray]:
    """What one epoch trains on, in its order: made in a thread while the epoch before is trained on."""
    order = np.random.default_rng((work.config.seed, epoch)).permutation(work.fit)
    images, shift = work.dataset.train_images[order], work.recipe.shift
    if shift is not None:
        pixels = round(shift * images.shape[1] / 32) // (2 if short else 1)
        images = views(images, places=order, epoch=epoch, seed=work.config.seed, shift=pixels)
    return images, _one_hot(work, order)


def _wait_for(ahead: Future[tuple[np.ndarray, np.ndarray]], work: _Work) -> tuple[np.ndarray, np.ndarray]:
    started = time.monotonic()
    ready = ahead.result()
    work.waited.append(time.monotonic() - started)
    return ready


def _one_hot(work: _Work, positions: np.ndarray) -> np.ndarray:
    rows: np.ndarray = np.eye(work.classes, dtype=np.float32)[work.dataset.train_labels[positions]]
    return rows


def _seed_dropout(model: keras.Model, random: np.random.Generator) -> None:
    """Start every random layer anew: Keras does not save their state, so a resumed run could not go on from it."""
    for variable in model.variables:
        if variable.path.endswith("seed_generator_state"):
            variable.assign(random.integers(0, 2**32, variable.shape, np.uint32))


def _tensorboard(run: Path) -> keras.callbacks.Callback:
    return keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False)


def _finish(work: _Work, trained: keras.Model, history: list[Row], *, h5: bool) -> Path:
    """Measure the result and write it; `metrics.json` last."""
    dataset, run = work.dataset, work.run
    # Plain layers in float32: what served models compute in, and a file for anybody to load.
    model = build_model(work.config.arch, work.classes, image_shape=dataset.image_shape)
    model.set_weights(trained.get_weights())
    fitted, held_out = ((dataset.train_images[part], dataset.train_labels[part]) for part in (work.fit, work.held_out))
    write_confidence(run, model, fitted=fitted, held_out=held_out)
    confidence = read_confidence(run)
    write_reference(run, model, confidence, held_out=held_out[0], class_names=dataset.class_names)
    metrics: dict[str, Any] = {
        "validation_accuracy": round(history[-1]["val_accuracy"], 4),
        "fitted_images": len(work.fit),
        "validation_images": len(work.held_out),
        "parameters": model.count_params(),
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
        "data_wait_share": round(sum(work.waited) / max(1e-9, sum(row["seconds"] for row in history)), 4),
        "precision": work.precision,
        "history": history,
    }
    if len(dataset.test_labels):
        probabilities = model.predict(dataset.test_images, batch_size=500, verbose=0)
        if confidence:
            probabilities = keras.ops.convert_to_numpy(calibrated(probabilities, confidence.temperature))
        test = measure(probabilities, dataset.test_labels, dataset.class_names)
        metrics |= {f"test_{name}": round(test[name], 4) for name in ("accuracy", "loss")}
        metrics |= {"test_images": test["images"], "test": test}
    samples = work.held_out[_spread(len(work.held_out))]
    with replacing(run / "samples.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=dataset.train_images[samples])
    with replacing(run / "curves.png") as temporary:
        save_curves(history, temporary)
    save_model(model, run / MODEL)
    if h5:  # last: Keras 3.15 writes a broken .keras file after an .h5 file of the same model
        save_model(model, run / "model.h5")
    write_json(run / METRICS, metrics)
    return run / MODEL


def _spread(count: int) -> np.ndarray:
    """Up to `_SAMPLES` positions, evenly spread, so that every class is likely among them."""
    return np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)
