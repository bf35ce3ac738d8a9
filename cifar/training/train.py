"""Fit a network to a data set, in a run folder that survives interruption.

runs/NAME/
  config.json        settings, data and library versions; written first
  checkpoint.keras   network and optimizer after the last whole epoch
  history.csv        a row for each epoch
  model.keras        the result (and model.h5 on request)
  samples.npz        held-out images for the export's comparison
  curves.png         loss and accuracy by epoch
  metrics.json       what was measured; written last: a run without it is not finished
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar.errors import BadParameter, TrainingError
from cifar.training.data import Dataset, split_validation
from cifar.training.libraries import library_versions
from cifar.training.model import ARCHITECTURES, build_model
from cifar.training.plots import save_curves
from cifar.training.progress import Progress

_SAMPLES = 64
INPUT_RANGE = (0.0, 255.0)
"""The pixel range that this project's own networks take."""


@dataclass(frozen=True)
class TrainConfig:
    """What decides a run's result, together with the data."""

    arch: str = "tutorial"
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    validation_split: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("learning_rate", 1e-12)):
            if getattr(self, name) < low:
                raise BadParameter(f"{name} must be positive; got {getattr(self, name)}.")
        if self.arch not in ARCHITECTURES:
            raise BadParameter(f"There is no architecture {self.arch!r}; there are: {', '.join(ARCHITECTURES)}.")
        if not 0 < self.validation_split < 1:
            raise BadParameter(f"validation_split is a share between 0 and 1; got {self.validation_split}.")


def train(config: TrainConfig, dataset: Dataset, run: Path, *, resume: bool = False, h5: bool = False) -> Path:
    """Train, or go on training, in the folder `run`.

    A run that was interrupted and resumed gives the same weights as one that was not: the order of images and what
    dropout drops depend on seed and epoch alone, and the checkpoint holds the optimizer's state.

    Args:
        config: the run's settings.
        dataset: images and labels; a share of the training part is held out, and the test part chooses nothing.
        run: a new folder, or with `resume` an unfinished run with the same settings and data.
        resume: go on from the last whole epoch.
        h5: also write `model.h5`.

    Returns:
        The path of `model.keras`.

    Raises:
        TrainingError: the folder exists, is no run, or was made with other settings or data; or the loss became NaN.
        KeyboardInterrupt: passed on; the last whole epoch is kept.
    """
    _open_folder(run, _describe(config, dataset), resume=resume)
    if (run / "metrics.json").exists():
        if h5 and not (run / "model.h5").exists():
            _save_model(keras.saving.load_model(run / "model.keras"), run / "model.h5")
        return run / "model.keras"
    keras.utils.set_random_seed(config.seed)
    work = _Work(config, dataset, run, *split_validation(dataset.train_labels, config.validation_split, config.seed))
    model, history = _start(work)
    _fit_epochs(work, model, history)
    return _finish(work, model, history, h5=h5)


@dataclass(frozen=True)
class _Work:
    """What all steps of one run share."""

    config: TrainConfig
    dataset: Dataset
    run: Path
    fit: np.ndarray
    """Positions of the images to fit."""
    held_out: np.ndarray
    """Positions of the images for validation."""


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


def _open_folder(run: Path, description: dict[str, Any], *, resume: bool) -> None:
    config_file = run / "config.json"
    if not resume:
        try:
            run.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise TrainingError(f"{run} is a file; name a folder with --out.") from None
        if any(run.iterdir()):
            raise TrainingError(f"{run} exists. Choose another --out, or go on with it: --resume.")
        _write_whole(
            config_file,
            json.dumps({"created": datetime.now(UTC).isoformat(timespec="seconds"), **description}, indent=2),
        )
        return
    if not config_file.is_file():
        raise TrainingError(f"{run} is no run: it has no config.json. Remove it, or choose another --out.")
    before = json.loads(config_file.read_text())
    differences = _differences(before, description)
    if differences:
        raise TrainingError(
            f"{run} was made with other settings: {'; '.join(differences)}. Repeat them, or start another run."
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    pairs = [(f"--{key.replace('_', '-')}", before["config"].get(key), value) for key, value in now["config"].items()]
    pairs += [(f"data {key}", before["data"].get(key), now["data"][key]) for key in ("train_images", "fingerprint")]
    pairs += [(key, before.get(key), now[key]) for key in ("class_names", "image_shape")]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def _start(work: _Work) -> tuple[keras.Model, list[dict[str, float]]]:
    """A new model, or the last whole epoch's with its history."""
    config, dataset = work.config, work.dataset
    checkpoint = work.run / "checkpoint.keras"
    if checkpoint.exists():
        model = keras.saving.load_model(checkpoint)
        steps_an_epoch = -(-len(work.fit) // config.batch_size)
        epochs_done = int(model.optimizer.iterations) // steps_an_epoch
        return model, _read_history(work.run / "history.csv")[:epochs_done]
    model = build_model(config.arch, len(dataset.class_names), image_shape=dataset.image_shape)
    model.compile(
        keras.optimizers.Adam(config.learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model, []


def _fit_epochs(work: _Work, model: keras.Model, history: list[dict[str, float]]) -> None:
    """Train epoch by epoch; after each, the history and the checkpoint are replaced as wholes."""
    config, dataset, run = work.config, work.dataset, work.run
    validation = dataset.train_images[work.held_out], dataset.train_labels[work.held_out]
    with Progress(config.epochs, epochs_done=len(history)) as progress:
        for epoch in range(len(history), config.epochs):
            random = np.random.default_rng((config.seed, epoch))
            order = random.permutation(work.fit)
            _seed_dropout(model, random)
            started = time.monotonic()
            result = model.fit(
                dataset.train_images[order],
                dataset.train_labels[order],
                batch_size=config.batch_size,
                shuffle=False,
                validation_data=validation,
                callbacks=[progress],
                verbose=0,
            )
            row = {"epoch": epoch + 1, **{name: values[0] for name, values in result.history.items()}}
            row["seconds"] = round(time.monotonic() - started, 2)
            if not np.isfinite(row["loss"]):
                raise TrainingError(
                    f"The loss became {row['loss']} in epoch {epoch + 1}; the {epoch} before are kept in {run}. "
                    "Try a smaller --learning-rate in a new run."
                )
            history.append(row)
            _write_history(run / "history.csv", history)
            _save_model(model, run / "checkpoint.keras")
            progress.epoch_done(row)


def _seed_dropout(model: keras.Model, random: np.random.Generator) -> None:
    """Start every random layer anew: Keras does not save their state, so a resumed run could not go on from it."""
    for variable in model.variables:
        if variable.path.endswith("seed_generator_state"):
            variable.assign(random.integers(0, 2**32, variable.shape, np.uint32))


def _finish(work: _Work, model: keras.Model, history: list[dict[str, float]], *, h5: bool) -> Path:
    """Measure the result and write it; `metrics.json` last."""
    dataset, run = work.dataset, work.run
    metrics: dict[str, Any] = {
        "validation_accuracy": round(history[-1]["val_accuracy"], 4),
        "validation_images": len(work.held_out),
        "parameters": model.count_params(),
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
    }
    if tests := len(dataset.test_labels):
        loss, accuracy = model.evaluate(dataset.test_images, dataset.test_labels, batch_size=500, verbose=0)
        metrics |= {"test_accuracy": round(accuracy, 4), "test_loss": round(loss, 4), "test_images": tests}
    samples = work.held_out[_spread(len(work.held_out))]
    np.savez_compressed(run / "samples.npz", images=dataset.train_images[samples])
    save_curves(history, run / "curves.png")
    _save_model(model, run / "model.keras")
    if h5:  # last: Keras 3.15 writes a broken .keras file after an .h5 file of the same model
        _save_model(model, run / "model.h5")
    _write_whole(run / "metrics.json", json.dumps(metrics, indent=2))
    (run / "checkpoint.keras").unlink()
    return run / "model.keras"


def _spread(count: int) -> np.ndarray:
    """Up to `_SAMPLES` positions, evenly spread, so that every class is likely among them."""
    return np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)


def _save_model(model: keras.Model, path: Path) -> None:
    """Write to a sibling, then rename: a crash leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    model.save(temporary)
    temporary.replace(path)


def _write_whole(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    _write_whole(path, text.getvalue())


def _read_history(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
