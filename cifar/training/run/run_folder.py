"""A run's folder: made new or gone on with, every file in it whole.

runs/NAME/
  config.json        settings, data and library versions; written first
  checkpoint.keras   network and optimizer after the last epoch
  history.csv        a row for each epoch
  tensorboard/       the same for TensorBoard
  model.keras        the result (and model.h5 on request)
  samples.npz        held-out images for the export's comparison
  confidence.npz     temperature and out-of-distribution score
  curves.png         loss and accuracy by epoch
  metrics.json       what was measured; written last: a run without it is not finished
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar.errors import TrainingError

if TYPE_CHECKING:
    import keras

CONFIG = "config.json"
CHECKPOINT = "checkpoint.keras"
HISTORY = "history.csv"
METRICS = "metrics.json"
MODEL = "model.keras"

Row = dict[str, float]


def check_folder(run: Path, description: dict[str, Any], *, resume: bool) -> None:
    """See whether a run may begin in a folder, or go on in it.

    Args:
        run: the folder.
        description: what decides the run's result; see `_differences`.
        resume: go on, if there is a run.

    Raises:
        TrainingError: the folder exists, is no run, or was made with other settings or data; says which.
    """
    if run.exists() and not run.is_dir():
        raise TrainingError(f"{run} is a file; name a folder with --out.")
    if not run.is_dir() or not any(run.iterdir()):
        return
    if not resume:
        raise TrainingError(f"{run} exists. Choose another --out, or go on with it: --resume.")
    if not (run / CONFIG).is_file():
        raise TrainingError(f"{run} is no run: it has no {CONFIG}. Remove it, or choose another --out.")
    differences = _differences(json.loads((run / CONFIG).read_text()), description)
    if differences:
        raise TrainingError(
            f"{run} was made with other settings: {'; '.join(differences)}. Repeat them, or start another run."
        )


def make_folder(run: Path, description: dict[str, Any]) -> None:
    """Begin a run."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / CONFIG, {"created": datetime.now(UTC).isoformat(timespec="seconds"), **description})


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    pairs = [(f"--{key.replace('_', '-')}", before["config"].get(key), value) for key, value in now["config"].items()]
    pairs += [(f"data {key}", before["data"].get(key), now["data"][key]) for key in ("train_images", "fingerprint")]
    pairs += [(key, before.get(key), now[key]) for key in ("class_names", "image_shape")]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def save_model(model: keras.Model, path: Path) -> None:
    """Write a model so that a crash, or a full disk, leaves the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        model.save(temporary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    _write_text(path, json.dumps(content, indent=2))


def write_history(run: Path, history: list[Row]) -> None:
    """Write `history.csv` whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    _write_text(run / HISTORY, text.getvalue())


def read_history(run: Path) -> list[Row]:
    """The rows of `history.csv`; none where there is no such file."""
    if not (run / HISTORY).is_file():
        return []
    with (run / HISTORY).open(newline="") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float:
    """A whole number stays one, so that a resumed run's rows look alike."""
    return int(text) if text.isdecimal() else float(text)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden sibling of the same kind to write to, which then takes the file's place; gone when writing fails."""
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power failure may leave the new name without its content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
