"""Invented data for tests: records of several days in a real database, and a registry of two versions."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, insert

from cifar import CLASS_NAMES
from cifar.records.database import migrate, open_engine
from cifar.records.feedback import store_feedback
from cifar.records.reader import read_predictions
from cifar.records.recorder import Recorder
from cifar.records.tables import comparisons, feedback, predictions
from cifar.settings import ROOT, Settings
from cifar.training.measures import measure

LABELS = ("circle", "square", "star")


def records_settings(folder: Path, **more: object) -> Settings:
    return Settings(records_folder=folder / "var", **more)


def started(settings: Settings, **more: object) -> Recorder:
    """Start a recorder that flushes once, and from then on only when a test says so."""
    recorder = Recorder(settings, flush_seconds=3600, **more)
    recorder.start()
    recorder.flush()
    return recorder


def prediction(request_id: str, user: str = "ann", digest: str = "d" * 32, label: str = "star") -> dict[str, object]:
    scores = {name: 0.8123456789 if name == label else 0.09 for name in LABELS}
    return {
        "request_id": request_id,
        "model": "shapes",
        "version": 1,
        "route": "rest",
        "user": user,
        "label": label,
        "score": scores[label],
        "scores": scores,
        "ood_score": None,
        "in_distribution": None,
        "digest": digest,
        "brightness": 0.5,
        "contrast": 0.25,
        "seconds": 0.001,
        "named": False,
        "source": user,
    }


def give_feedback(
    recorder: Recorder, request_id: str, label: object, note: object = None, by: str = "ann", **more: object
) -> dict[str, object]:
    return store_feedback(recorder.engine, recorder.find, request_id, label, note, by=by, **more)


def ids(settings: Settings) -> list[str]:
    """Return the request ids in the database."""
    engine = open_engine(settings)
    found = [row["request_id"] for row in read_predictions(engine)]
    engine.dispose()
    return found


def open_records(settings: Settings) -> Engine:
    """Open the database of the settings and create its tables."""
    settings.records_folder.mkdir(parents=True, exist_ok=True)
    engine = open_engine(settings)
    migrate(engine, settings.records_folder)
    return engine


def write_answers(
    engine: Engine, version: int, *, right: np.ndarray, users: np.ndarray | None = None, hours: float = 10.0, **columns
) -> None:
    """Write one prediction with feedback for each entry of `right`, evenly over the last hours.

    Args:
        engine: see `open_records`.
        version: the version that predicted.
        right: `(n,)` `bool`, whether the feedback confirms the prediction.
        users: `(n,)`, the users. Default: a new one each time.
        hours: the age of the oldest one.
        columns: values of columns of `predictions`, one or `(n,)`. Default: random ones.
    """
    dice, count = np.random.default_rng(version), len(right)
    labels = dice.integers(0, 10, count)
    made = {
        "label": [CLASS_NAMES[label] for label in labels],
        "user": [f"user {version} {name}" for name in (range(count) if users is None else users)],
        "at": time.time() - np.linspace(hours * 3600, 60, count),
        "score": dice.beta(5, 1, count),
        "in_distribution": dice.random(count) < 0.9,
        "brightness": dice.normal(0.47, 0.1, count).clip(0, 1),
        "contrast": dice.normal(0.21, 0.05, count).clip(0, 1),
        "seconds": dice.gamma(4, 0.001, count),
    } | columns
    same = {"model": "cifar_classifier", "version": version, "route": "rest", "scores": {}, "digest": "0" * 32}
    rows = [
        {"request_id": f"{version}-{at}-{hours}", "ood_score": 0.5, **same}
        | {name: _plain(values, at) for name, values in made.items()}
        for at in range(count)
    ]
    wrong = {name: CLASS_NAMES[(at + 1) % 10] for at, name in enumerate(CLASS_NAMES)}
    answers = [
        {"request_id": row["request_id"], "at": row["at"] + 1, "note": "", "by": row["user"]}
        | {"label": row["label"] if good else wrong[row["label"]]}
        for row, good in zip(rows, right, strict=True)
    ]
    with engine.begin() as connection:
        connection.execute(insert(predictions), rows)
        connection.execute(insert(feedback), answers)


def _plain(values, at: int):
    value = values[at] if isinstance(values, list | np.ndarray) else values
    return value.item() if isinstance(value, np.generic) else value


def write_comparisons(
    engine: Engine, version: int, shadow_version: int, *, agrees: list[bool], distance: float
) -> None:
    """Write comparisons of a shadow version with the version that answered."""
    rows = [
        {"id": f"{shadow_version}-{at}", "at": time.time() - 60, "model": "cifar_classifier", "version": version}
        | {"shadow_version": shadow_version, "agrees": same, "distance": distance}
        for at, same in enumerate(agrees)
    ]
    with engine.begin() as connection:
        connection.execute(insert(comparisons), rows)


def write_a_day(engine: Engine) -> None:
    """Write records of two versions, of which the second is better, and of its shadow traffic."""
    dice = np.random.default_rng(0)
    write_answers(engine, 1, right=dice.random(3000) < 0.66, hours=10.0)
    write_answers(engine, 2, right=dice.random(1200) < 0.9, hours=10.1)
    write_comparisons(engine, 1, 2, agrees=[True] * 70 + [False] * 30, distance=0.25)


SHIPPED = ROOT / "saved_model" / "cifar_classifier" / "1"


def write_two_versions(registry: Path) -> Path:
    """Write two versions into `registry`: the shipped version 1 without test results and history, and an invented version 2.

    Version 2 is version 1 with the names of its first two classes exchanged, so that the two disagree on those only.
    """
    base = registry / "cifar_classifier"
    base.mkdir(parents=True)
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    metrics = {name: value for name, value in manifest["metrics"].items() if name not in {"test", "history"}}
    copy_version(SHIPPED, base / "1", metrics=metrics)
    first, second, *others = manifest["class_names"]
    exchanged = [second, first, *others]
    metrics = {**metrics, "test": invented_measures(exchanged), "history": invented_history()}
    copy_version(SHIPPED, base / "2", version=2, class_names=exchanged, metrics=metrics)
    return registry


def copy_version(source: Path, folder: Path, **changes: object) -> Path:
    """Copy the folder of a version to `folder`, with `changes` of its manifest, and return `folder`."""
    shutil.copytree(source, folder)
    change_manifest(folder, **changes)
    return folder


def change_manifest(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def invented_measures(class_names: list[str]) -> dict:
    """Return the measures of invented answers to 10,000 images, most of them right."""
    labels = np.repeat(np.arange(len(class_names)), 1000)
    signals = np.random.default_rng(0).normal(2.6 * np.eye(len(class_names))[labels], 1)
    powers = np.exp(2.6 * signals)  # calibrated: these are the odds of the classes
    return measure(powers / powers.sum(axis=1, keepdims=True), labels, class_names)


def invented_history() -> list[dict]:
    """Return the invented history of eight epochs."""
    return [
        {
            "epoch": epoch,
            "loss": 1.8 / epoch**0.6,
            "accuracy": 0.4 + 0.25 * np.log10(epoch + 0.5),
            "val_loss": 1.9 / epoch**0.5,
            "val_accuracy": 0.4 + 0.22 * np.log10(epoch + 0.5),
            "seconds": 20.0,
        }
        for epoch in range(1, 9)
    ]
