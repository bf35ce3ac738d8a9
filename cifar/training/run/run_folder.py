"""The folder of a training run. Every file is written whole, so a run that is killed leaves no half-written file.

runs/NAME/
  config.json        settings, data and library versions; written first
  checkpoint.keras   model and optimizer after the last complete epoch; removed when the run is finished
  history.csv        one row per epoch
  tensorboard/       the same for TensorBoard
  samples.npz        held-out images and labels, with which the export compares its result
  confidence.npz     temperature and out-of-distribution score
  reference.json     answers to the held-out images, which drift is measured against
  curves.png         loss and accuracy by epoch
  model.keras        the trained model (and model.h5 on request)
  metrics.json       the measured accuracy and more; written last: a run without it is not finished
"""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar.errors import TrainingError
from cifar.files import replacing

if TYPE_CHECKING:
    import keras

CONFIG = "config.json"
CHECKPOINT = "checkpoint.keras"
HISTORY = "history.csv"
METRICS = "metrics.json"
MODEL = "model.keras"
SAMPLES = "samples.npz"
H5_MODEL = "model.h5"

Row = dict[str, float]
"""One epoch: `epoch` (from 1), `steps` (since the run began), `seconds`, and loss and metrics of training and validation."""


def check_folder(run: Path, description: dict[str, Any], *, resume: bool) -> None:
    """Check that a run can begin or, with `resume`, continue in the folder, which need not exist.

    Raises:
        TrainingError: the folder exists, is not a run, or was made with other settings or data. The message lists them.
    """
    if run.exists() and not run.is_dir():
        raise TrainingError(f"{run} is a file; name a folder with --out.")
    if not run.is_dir() or not any(run.iterdir()):
        return
    if not resume:
        raise TrainingError(f"{run} exists. Choose another --out, or continue the run with --resume.")
    if not (run / CONFIG).is_file():
        raise TrainingError(f"{run} is not a run: it has no {CONFIG}. Remove it, or choose another --out.")
    differences = _differences(json.loads((run / CONFIG).read_text()), description)
    if differences:
        raise TrainingError(
            f"{run} was made with other settings: {'; '.join(differences)}. Use the same settings, or start another run."
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    # A setting that is newer than the run was off.
    pairs = [
        (
            f"--{key.replace('_', '-')}",
            before["config"].get(key, type(value)() if isinstance(value, bool | list) else None),
            value,
        )
        for key, value in now["config"].items()
    ]
    pairs += [(f"data {key}", before["data"].get(key), now["data"][key]) for key in ("train_images", "fingerprint")]
    pairs += [("the teachers' files", before["data"].get("teachers", []), now["data"]["teachers"])]
    pairs += [(key, before.get(key), now[key]) for key in ("class_names", "image_shape")]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def is_finished(run: Path) -> bool:
    """Return whether the run was trained to its end. An interrupted run has metrics too, but keeps its checkpoint."""
    return (run / METRICS).exists() and not (run / CHECKPOINT).exists()


def make_folder(run: Path, description: dict[str, Any]) -> None:
    """Create the folder and write `config.json`."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / CONFIG, {"created": datetime.now(UTC).isoformat(timespec="seconds"), **description})


def save_model(model: keras.Model, path: Path) -> None:
    with replacing(path) as temporary:
        model.save(temporary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2))


def write_history(run: Path, history: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with replacing(run / HISTORY) as temporary:
        temporary.write_text(text.getvalue())


def read_history(run: Path) -> list[Row]:
    """Read `history.csv`; an empty list if there is no such file."""
    if not (run / HISTORY).is_file():
        return []
    with (run / HISTORY).open(newline="") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float:
    """Parse a number. Integers stay integers, so that a resumed run writes its old rows unchanged."""
    return int(text) if text.isdecimal() else float(text)
