"""Retention, stored images and export of the records, with SQLite and with a real PostgreSQL."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import time

import pytest
from sqlalchemy import event, update
from support.cli import cifar
from support.pictures import encoded, noise
from support.samples import give_feedback, ids, prediction, records_settings, started

from cifar.errors import BadParameter, RecordsError, RequestNotFound
from cifar.records.export import export_images, export_table
from cifar.records.images import KeptImages, image_path
from cifar.records.reader import read_predictions
from cifar.records.retention import sweep
from cifar.records.tables import predictions
from cifar.records.values import NONE_LABEL


def test_an_old_prediction_is_deleted_with_its_feedback_and_its_image(recorder, settings):
    """After the retention time, nothing of a user is left."""
    for name in ("old", "new"):
        recorder.add(prediction(name, digest=name * 8))
        give_feedback(recorder, name, "circle")
        KeptImages(settings).put(name * 8, b"photo")
    recorder.flush()
    long_ago = time.time() - 91 * 24 * 3600
    with recorder.engine.begin() as connection:
        connection.execute(update(predictions).where(predictions.c.request_id == "old").values(at=long_ago))
        os.utime(image_path(settings, "old" * 8), (long_ago, long_ago))
    assert sweep(recorder.engine, settings) == (1, 0, 1)
    (row,) = read_predictions(recorder.engine)
    assert (row["request_id"], row["feedback_label"]) == ("new", "circle")
    assert not image_path(settings, "old" * 8).exists()
    assert image_path(settings, "new" * 8).exists()
    with pytest.raises(RequestNotFound):
        give_feedback(recorder, "old", "circle")


def test_many_old_records_are_deleted_in_steps(recorder, settings):
    """One statement for all of them could exceed the time limit, and then none would ever be deleted."""
    sizes = []
    event.listen(recorder.engine, "after_cursor_execute", lambda *found: sizes.append((found[2], found[1].rowcount)))
    for at in range(2500):
        recorder.add(prediction(str(at)))
    recorder.flush()
    with recorder.engine.begin() as connection:
        connection.execute(update(predictions).values(at=1.0))
    assert sweep(recorder.engine, settings).predictions == 2500
    assert [rows for statement, rows in sizes if "DELETE FROM predictions" in statement] == [1000, 1000, 500]
    assert ids(settings) == []


def test_old_records_are_deleted_once_a_day_by_one_of_the_workers(recorder, settings):
    """The first time is at the start; the next one is a day later."""
    with recorder.engine.begin() as connection:
        connection.execute(predictions.insert().values(**{**prediction("old"), "at": 0.0}))
    recorder.flush()
    assert ids(settings) == ["old"]
    yesterday = time.time() - 25 * 3600
    os.utime(settings.records_folder / "swept", (yesterday, yesterday))
    recorder.flush()
    assert ids(settings) == []


def test_stored_images_stay_within_the_limits_of_number_and_bytes(tmp_path):
    """A full disk would affect more than the records."""
    few = KeptImages(records_settings(tmp_path, max_kept_images=2))
    assert [few.put(name * 32, b"x") for name in "aabc"] == [True, True, True, False]
    again = KeptImages(records_settings(tmp_path, max_kept_bytes=1024))
    again.count()
    assert not again.put("d" * 32, b"x" * 1023)
    assert again.put("e" * 32, b"x" * 1022)
    assert again.put("a" * 32, b"x" * 5000), "it is stored already"


@pytest.mark.parametrize("taken", ["images", "images/dd"])
def test_an_image_that_cannot_be_stored_is_no_error(tmp_path, taken):
    """Its answer is sent anyway. Here, a file has the name of the folder."""
    settings = records_settings(tmp_path, keep_uploads=True)
    path = settings.records_folder / taken
    path.parent.mkdir(parents=True)
    path.touch()
    assert not KeptImages(settings).put("d" * 32, b"image")


def test_the_exported_table_has_every_prediction_with_its_feedback(recorder, tmp_path):
    """CSV and Parquet have the same rows and columns, and times in UTC."""
    from pyarrow import parquet

    for i in range(3):
        recorder.add(prediction(f"a{i}"))
    give_feedback(recorder, "a1", "circle", "a coin\r半")
    give_feedback(recorder, "a2", "circle", "=1+1")
    recorder.flush()
    for kind in ("csv", "parquet"):
        assert export_table(recorder.engine, tmp_path / kind, kind) == 3
    with (tmp_path / "csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "parquet").to_pylist()
    assert [row["request_id"] for row in rows] == [row["request_id"] for row in table] == ["a0", "a1", "a2"]
    assert list(rows[0]) == list(table[0])
    assert rows[1]["feedback_note"] == table[1]["feedback_note"] == "a coin\r半"
    assert (rows[2]["feedback_note"], table[2]["feedback_note"]) == ("'=1+1", "=1+1")  # no formula in a spreadsheet
    assert rows[1]["at"] == table[1]["at"].isoformat()
    assert rows[1]["at"].endswith("+00:00")
    assert (rows[0]["feedback_label"], table[0]["feedback_label"]) == ("", None)


def test_images_with_feedback_are_exported_as_a_folder_for_training(recorder, settings, tmp_path):
    """The last feedback counts. Images of none of the classes, and images that are not stored, are omitted and counted."""
    from cifar.training.data.dataset import load_dataset
    from cifar.training.data.overview import summarize

    kept = KeptImages(settings)
    feedback = {"a": "circle", "b": "circle", "c": "square", "d": "square", "e": NONE_LABEL, "gone": "star"}
    for position, (name, label) in enumerate(feedback.items()):
        recorder.add(prediction(name, digest=name))
        if name != "gone":
            kept.put(name, encoded(noise(40, 40, seed=position), "JPEG" if position % 2 else "PNG"))
        give_feedback(recorder, name, "star")
        give_feedback(recorder, name, label)
    recorder.add(prediction("asked again", digest="a"))
    recorder.flush()
    written, omitted = export_images(recorder.engine, settings, tmp_path / "out")
    assert written == {"circle": 2, "square": 2}
    assert omitted == {"of none of the classes": 1, "not kept": 1}
    summary = summarize(load_dataset(str(tmp_path / "out"), settings))
    assert summary["train_images_by_class"] == {"circle": 2, "square": 2}
    assert {file.suffix for file in (tmp_path / "out").rglob("*.*")} == {".jpg", ".png"}
    with pytest.raises(RecordsError, match="exists"):
        export_images(recorder.engine, settings, tmp_path / "out")


def test_images_of_a_class_that_is_named_none_are_exported_like_others(recorder, settings, tmp_path):
    """For a version with such a class, the feedback label `none` means this class."""
    recorder.add({**prediction("a", digest="a"), "scores": {"circle": 0.9, NONE_LABEL: 0.1}})
    KeptImages(settings).put("a", encoded(noise(40, 40), "PNG"))
    give_feedback(recorder, "a", NONE_LABEL)
    assert export_images(recorder.engine, settings, tmp_path / "out") == ({NONE_LABEL: 1}, {})
    with pytest.raises(BadParameter, match="one of circle, none; got"):
        give_feedback(recorder, "a", "star")


def test_an_image_folder_that_cannot_be_completed_is_not_created(recorder, settings, tmp_path):
    """Training would not notice that half of it is missing. Here, the second image cannot be read."""
    kept = KeptImages(settings)
    for name, content in {"a": encoded(noise(40, 40), "PNG"), "b": b"no image"}.items():
        recorder.add(prediction(name, digest=name))
        kept.put(name, content)
        give_feedback(recorder, name, "circle")
    with pytest.raises(OSError, match="cannot identify"):
        export_images(recorder.engine, settings, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_an_export_without_any_image_is_an_error(recorder, settings, tmp_path):
    """An empty folder would fail only later, in training."""
    with pytest.raises(RecordsError, match="CIFAR_KEEP_UPLOADS"):
        export_images(recorder.engine, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_line_exports_and_sweeps_the_records(tmp_path):
    """A database that cannot be used gives an error message and exit status 1."""
    recorder = started(records_settings(tmp_path))
    recorder.add(prediction("a"))
    recorder.stop()

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return cifar("records", *arguments, CIFAR_RECORDS_FOLDER=tmp_path / "var", **more)

    assert run("migrate").stdout == "0003\n"
    assert "1 predictions" in run("export", "--out", str(tmp_path / "table.csv")).stderr
    assert (tmp_path / "table.csv").read_text().count("\n") == 2
    assert json.loads(run("sweep", "--json").stdout) == {"predictions": 0, "comparisons": 0, "images": 0}
    images = run("images", "--out", str(tmp_path / "out"))
    assert (images.returncode, images.stdout) == (1, "")
    away = run("sweep", CIFAR_DATABASE_URL="postgresql+psycopg://cifar:hunter2@127.0.0.1:1/x")
    assert away.returncode == 1
    assert away.stderr.startswith("cifar: The records' database cannot be used: ")
    assert "hunter2" not in away.stderr
    shutil.rmtree(tmp_path / "var")
