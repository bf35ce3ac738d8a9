"""The records: journal, database, feedback, retention and export, with SQLite and with a real PostgreSQL."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, inspect, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from support.cli import cifar
from support.databases import Cluster, real_postgres
from support.pictures import encoded, noise

from cifar.errors import BadParameter, RecordsError, RequestNotFound, SettingsError
from cifar.records.database import migrate, open_engine
from cifar.records.export import export_images, export_table
from cifar.records.feedback import MAX_NOTE_CHARACTERS, store_feedback
from cifar.records.images import KeptImages, image_path
from cifar.records.journal import journals
from cifar.records.reader import read_predictions
from cifar.records.recorder import Recorder
from cifar.records.retention import sweep
from cifar.records.tables import comparisons, metadata, predictions
from cifar.records.values import NONE_LABEL
from cifar.settings import ROOT, Settings

LABELS = ("circle", "square", "star")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with real_postgres() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path) -> Settings:
    """Settings of records in a new, empty database of each kind."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster").new_database(f"t{time.monotonic_ns()}")
    return records_settings(tmp_path, database_url=url)


def records_settings(folder: Path, **more: object) -> Settings:
    return Settings(records_folder=folder / "var", **more)


@pytest.fixture
def recorder(settings) -> Iterator[Recorder]:
    recorder = started(settings)
    yield recorder
    recorder.stop()


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


def test_a_flush_moves_a_prediction_into_the_database(recorder):
    """With every column, the time of the answer, and scores rounded to six digits."""
    before = time.time()
    recorder.add(prediction("a"))
    recorder.flush()
    (row,) = read_predictions(recorder.engine)
    assert before - 0.001 <= row.pop("at") <= time.time()
    assert {row.pop(f"feedback_{name}") for name in ("label", "note", "at")} == {None}
    scores = {"circle": 0.09, "square": 0.09, "star": 0.812346}
    assert row == {**prediction("a"), "score": 0.812346, "scores": scores}
    assert list(row["scores"]) == list(LABELS) or recorder.engine.dialect.name == "postgresql"


def test_the_migrations_create_the_tables_that_the_code_uses(recorder):
    """A column that is added to one of them and forgotten in the other would fail in production."""
    with recorder.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert set(inspect(recorder.engine).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_processes_that_start_at_the_same_time_migrate_once(settings):
    """Workers start together, also on several hosts. A second CREATE TABLE would fail."""
    settings.records_folder.mkdir(exist_ok=True)

    def start(_: int) -> str:
        engine = open_engine(settings)
        try:
            return migrate(engine, settings.records_folder)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(start, range(8))) == {"0001"}


def test_tables_of_a_newer_release_make_the_database_unusable_without_losing_records(recorder, settings, caplog):
    """After a downgrade, this is logged once and reported as failing. After the next upgrade, recording continues."""
    with recorder.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    older = started(settings)
    older.add(prediction("a"))
    for _ in range(3):
        older.flush()
    assert older.dependency.failing
    (line,) = [record.getMessage() for record in caplog.records if "revision 9999" in record.getMessage()]
    assert "the tables are of revision 9999, which this version does not know" in line
    with pytest.raises(SQLAlchemyError):
        older.find("a")
    with recorder.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    older.flush()
    assert not older.dependency.failing
    assert ids(settings) == ["a"]
    older.stop()


def test_of_two_predictions_under_one_id_the_first_stays(recorder):
    """Clients may choose ids, and must not be able to replace the prediction of another user."""
    recorder.add(prediction("a", user="ann"))
    recorder.flush()
    recorder.add(prediction("a", user="eve", label="circle"))
    recorder.add(prediction("b"))
    recorder.flush()
    rows = {row["request_id"]: row for row in read_predictions(recorder.engine)}
    assert (rows["a"]["user"], rows["a"]["label"]) == ("ann", "star")
    assert set(rows) == {"a", "b"}


def test_feedback_is_stored_with_its_prediction_and_replaces_earlier_feedback(recorder):
    """Each prediction has at most one feedback, the last one."""
    recorder.add(prediction("a"))
    assert give_feedback(recorder, "a", "circle", "a coin")["label"] == "circle"
    give_feedback(recorder, "a", NONE_LABEL)
    (row,) = read_predictions(recorder.engine)
    assert (row["feedback_label"], row["feedback_note"]) == (NONE_LABEL, "")


def test_only_the_user_of_a_prediction_and_an_administrator_can_give_feedback_on_it(recorder):
    """Others get the same error as for an id that does not exist, so they do not learn that it exists."""
    recorder.add(prediction("a"))
    give_feedback(recorder, "a", "circle")
    with pytest.raises(RequestNotFound) as others:
        give_feedback(recorder, "a", "square", by="eve")
    with pytest.raises(RequestNotFound) as unknown:
        give_feedback(recorder, "b", "square", by="eve")
    assert str(others.value).replace("'a'", "'b'") == str(unknown.value)
    (row,) = read_predictions(recorder.engine)
    assert row["feedback_label"] == "circle"
    give_feedback(recorder, "a", "square", by="root", for_any_user=True)
    (row,) = read_predictions(recorder.engine)
    assert row["feedback_label"] == "square"


@pytest.mark.parametrize(
    ("label", "note", "words"),
    [
        ("hexagon", None, "label must be one of circle, square, star, none; got 'hexagon'"),
        (None, None, "got 'None'"),
        ("star", "x" * (MAX_NOTE_CHARACTERS + 1), "note has 1,001 characters; at most 1,000"),
        ("star", 7, "note must be text; got int"),
        ("star", "a\0b", "without NUL"),
        ("star", "\ud800", "halves of surrogate pairs"),
    ],
)
def test_feedback_with_a_wrong_label_or_note_is_refused_and_changes_nothing(recorder, label, note, words):
    """The message says what is allowed, and earlier feedback stays."""
    recorder.add(prediction("a"))
    give_feedback(recorder, "a", "circle", "kept")
    with pytest.raises(BadParameter, match=words):
        give_feedback(recorder, "a", label, note)
    (row,) = read_predictions(recorder.engine)
    assert (row["feedback_label"], row["feedback_note"]) == ("circle", "kept")


def test_a_search_for_an_id_moves_no_other_record_into_the_database(recorder, settings):
    """Every line of the journal contains words such as `rest`, which may also be an id. They must not match."""
    for number in range(3):
        recorder.add(prediction(f"a{number}"))
    for word in ("rest", "star", "request_id"):
        with pytest.raises(RequestNotFound):
            give_feedback(recorder, word, "star")
    assert ids(settings) == []
    give_feedback(recorder, "a1", "star")
    assert ids(settings) == ["a1"]


@pytest.mark.parametrize("request_id", ["", "x", "x" * 65, "a b", "a'; DROP TABLE feedback; --", "a\0", "\ud800"])
def test_feedback_for_an_unknown_id_is_not_found(recorder, request_id):
    """The error is the same for any content of the id."""
    with pytest.raises(RequestNotFound):
        give_feedback(recorder, request_id, "star")


def test_another_process_finds_a_prediction_before_it_was_flushed(recorder, settings):
    """The worker that gets the feedback may be another than the one that answered."""
    other = started(settings)
    recorder.add(prediction("a"))
    assert give_feedback(other, "a", "circle")["label"] == "circle"
    recorder.flush()
    assert ids(settings) == ["a"]
    other.stop()


def test_the_journal_of_a_dead_process_is_moved_by_another_process(settings):
    """Its last line was cut off. The other lines are in the database, and the file is deleted."""
    code = (
        "import os, sys, pathlib; sys.path[:0] = ['tests', 'tests/records']; from test_records import *\n"
        "s = records_settings(pathlib.Path(sys.argv[1])); r = Recorder(s, flush_seconds=3600); r.start(); r.flush()\n"
        "for i in range(300): r.add(prediction(f'dead-{i}'))\n"
        "r.add_comparison(dict(model='shapes', version=1, shadow_version=2, agrees=True, distance=0.25))\n"
        "(journal,) = journals(s.records_folder)\n"
        'journal.open("ab").write(b\'["predictions", {"request_id\')\n'
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(settings.records_folder.parent)], cwd=ROOT, check=False)
    assert done.returncode == -9
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    assert sorted(ids(settings)) == sorted(f"dead-{i}" for i in range(300))
    with recorder.engine.connect() as connection:
        (comparison,) = connection.execute(select(comparisons)).mappings()
    assert (comparison["shadow_version"], comparison["agrees"], comparison["distance"]) == (2, True, 0.25)
    assert dropped == [1]
    assert len(list(journals(settings.records_folder))) == 1, "its own"
    recorder.stop()


def test_a_journal_that_another_process_has_just_taken_over_is_no_failure(tmp_path, monkeypatch):
    """Two workers find the file of a dead one, and one deletes it before the other has locked what it opened."""
    settings = records_settings(tmp_path)
    recorder = started(settings)
    path = settings.records_folder / "journal-0.jsonl"
    path.touch()

    def slow_lock(file, how):
        if file.name == str(path):
            path.unlink()
        return flock(file, how)

    flock = fcntl.flock
    monkeypatch.setattr("cifar.records.journal.fcntl.flock", slow_lock)
    recorder.flush()
    assert not recorder.dependency.failing
    monkeypatch.undo()
    recorder.stop()


def test_the_journal_of_a_living_process_is_left_alone(recorder, settings):
    """If it were deleted, further records would be lost."""
    other = started(settings)
    other.add(prediction("a"))
    recorder.flush()
    assert ids(settings) == []
    assert len(list(journals(settings.records_folder))) == 2
    other.add(prediction("b"))
    other.stop()
    assert sorted(ids(settings)) == ["a", "b"]


def test_no_record_is_lost_when_threads_write_during_a_flush(recorder, settings):
    """Each flush begins a new journal, and nothing may be written to the old one after it was read."""

    def write(k: int) -> None:
        for i in range(500):
            recorder.add(prediction(f"{k}-{i}"))

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, k) for k in range(4)]
        while not all(task.done() for task in done):
            recorder.flush()
    recorder.flush()
    assert len(ids(settings)) == 2000


def test_a_record_that_the_database_refuses_does_not_block_the_others(settings):
    """It is dropped and counted. Otherwise the journal would never become empty."""
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    of_another_version = {name: value for name, value in prediction("d").items() if name != "seconds"}
    wrong = ({**prediction("b"), "label": None}, of_another_version)
    for row in (prediction("a"), *wrong, prediction("c")):
        recorder.add(row)
    recorder.flush()
    assert sorted(ids(settings)) == ["a", "c"]
    assert dropped == [1, 1]
    assert not recorder.dependency.failing
    recorder.stop()


@pytest.mark.parametrize("line", ["5", '["predictions", null]', '["predictions", {"score": null, "scores": {}}]'])
def test_a_line_of_the_journal_that_is_no_record_does_not_block_the_others(tmp_path, line):
    """It may come from another release, or from a model whose answer is no number. It is counted once as dropped."""
    settings, dropped = records_settings(tmp_path), []
    recorder = started(settings, on_drop=dropped.append)
    (settings.records_folder / "journal-0.jsonl").write_text(f"{line}\n")
    recorder.add(prediction("a"))
    recorder.flush()
    assert ids(settings) == ["a"]
    assert (dropped, len(list(journals(settings.records_folder)))) == ([1], 1)
    recorder.stop()


@pytest.mark.slow
def test_no_record_is_lost_while_postgresql_is_down(tmp_path, caplog):
    """The journal holds them. One line in the log says that it is down, and one that it is back."""
    caplog.set_level("INFO")
    with real_postgres() as cluster:
        settings = records_settings(tmp_path, database_url=cluster.new_database("away"))
        recorder = started(settings)
        cluster.stop()
        for i in range(50):
            recorder.add(prediction(f"a{i}"))
            if i % 20 == 0:
                recorder.flush()
        assert recorder.dependency.failing
        cluster.start()
        recorder.flush()
        assert not recorder.dependency.failing
        assert len(ids(settings)) == 50
        lines = [record.getMessage() for record in caplog.records if record.name == "cifar.dependency"]
        assert len(lines) == 2, lines
        recorder.stop()


def test_a_full_journal_drops_further_records_and_counts_them(tmp_path):
    """The oldest records stay, because their users may be giving feedback already."""
    settings = records_settings(tmp_path)
    dropped = []
    recorder = started(settings, on_drop=dropped.append, max_journal_bytes=4096)
    for i in range(100):
        recorder.add(prediction(f"a{i}"))
    (journal,) = journals(settings.records_folder)
    assert journal.stat().st_size <= 4096
    recorder.stop()
    kept = ids(settings)
    assert kept[0] == "a0"
    assert len(kept) + sum(dropped) == 100
    assert len(dropped) > 50


def test_a_folder_that_cannot_be_written_does_not_stop_the_recorder(tmp_path):
    """It reports the failure, as in a container without a volume, and records again when the folder can be written."""
    (tmp_path / "var").write_text("a file in the way")
    dropped = []
    recorder = started(records_settings(tmp_path), on_drop=dropped.append)
    recorder.add(prediction("a"))
    assert recorder.dependency.failing
    assert dropped == [1]
    (tmp_path / "var").unlink()
    recorder.flush()
    assert not recorder.dependency.failing
    recorder.add(prediction("b"))
    recorder.stop()
    assert ids(records_settings(tmp_path)) == ["b"]


def test_users_are_stored_as_hashes_with_a_secret_key_that_the_processes_share(tmp_path):
    """The database alone is not enough to test guessed addresses. Feedback in another worker needs the same hash."""
    one, two = started(records_settings(tmp_path)), started(records_settings(tmp_path))
    elsewhere = started(records_settings(tmp_path / "other"))
    named = started(records_settings(tmp_path, records_key="k" * 32))
    also_named = started(records_settings(tmp_path / "other", records_key="k" * 32))
    assert one.user_hash("192.0.2.1") == two.user_hash("192.0.2.1") != elsewhere.user_hash("192.0.2.1")
    assert one.user_hash("192.0.2.1") != named.user_hash("192.0.2.1") == also_named.user_hash("192.0.2.1")
    assert (tmp_path / "var/users.key").stat().st_mode & 0o777 == 0o600
    for recorder in (one, two, elsewhere, named, also_named):
        recorder.stop()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root:hunter2@db/x",
        "hunter2",
        "postgresql+psycopg://cifar:hunter2@db:x/x",
        "postgresql://cifar:hunter2@db/x",
    ],
)
def test_an_unsupported_database_is_refused_without_showing_its_password(url):
    """At the start, with a message that says what is expected."""
    with pytest.raises(SettingsError, match=r"expected postgresql\+psycopg://") as error:
        open_engine(Settings(database_url=url))
    assert "hunter2" not in str(error.value)


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
    give_feedback(recorder, "a1", "circle", 'a "coin",\n半')
    give_feedback(recorder, "a2", "circle", "=1+1")
    recorder.flush()
    for kind in ("csv", "parquet"):
        assert export_table(recorder.engine, tmp_path / kind, kind) == 3
    with (tmp_path / "csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "parquet").to_pylist()
    assert [row["request_id"] for row in rows] == [row["request_id"] for row in table] == ["a0", "a1", "a2"]
    assert list(rows[0]) == list(table[0])
    assert rows[1]["feedback_note"] == table[1]["feedback_note"] == 'a "coin",\n半'
    assert (rows[2]["feedback_note"], table[2]["feedback_note"]) == ("'=1+1", "=1+1")  # no formula in a spreadsheet
    assert rows[1]["at"] == table[1]["at"].isoformat()
    assert rows[1]["at"].endswith("+00:00")
    assert (rows[0]["feedback_label"], table[0]["feedback_label"]) == ("", None)


def test_images_with_feedback_are_exported_as_a_folder_for_training(recorder, settings, tmp_path):
    """The last feedback counts. Images of none of the classes, and images that are not stored, are omitted and counted."""
    from cifar.training.data.dataset import load_dataset, summarize

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

    assert run("migrate").stdout == "0001\n"
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
