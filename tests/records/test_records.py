"""The records: journal, database, retention, export. On SQLite and on a real PostgreSQL."""

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
from sqlalchemy import event, inspect, text, update
from sqlalchemy.exc import SQLAlchemyError
from support.pictures import encoded, noise
from support.postgres import Cluster, real_postgres

from cifar.errors import BadParameter, RecordsError, RequestNotFound, SettingsError
from cifar.records.database import migrate, open_engine
from cifar.records.export import export_images, export_table
from cifar.records.feedback import give
from cifar.records.images import KeptImages, kept_path
from cifar.records.journal import journals
from cifar.records.reader import read_comparisons, read_predictions
from cifar.records.recorder import Recorder
from cifar.records.retention import sweep
from cifar.records.tables import NONE, metadata, predictions
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
    """The thread never wakes by itself: a test says when."""
    return Settings(records_folder=folder / "var", **{"records_flush_seconds": 3600, **more})


@pytest.fixture
def recorder(settings) -> Iterator[Recorder]:
    recorder = started(settings)
    yield recorder
    recorder.stop()


def started(settings: Settings, **more: object) -> Recorder:
    """A recorder whose thread has had its first turn."""
    recorder = Recorder(settings, **more)
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


def say(recorder: Recorder, request_id: str, label: object, note: object = None, by: str = "ann", **more: object):
    return give(recorder, request_id, label, note, by=by, most_characters=100, **more)


def ids(settings: Settings) -> list[str]:
    """What is in the database."""
    engine = open_engine(settings)
    found = [row["request_id"] for row in read_predictions(engine)]
    engine.dispose()
    return found


def test_a_prediction_is_in_the_database_after_a_flush_as_it_was_given(recorder):
    """Every column, scores rounded to six digits, and the time of the answer."""
    before = time.time()
    recorder.add(prediction("a"))
    recorder.flush()
    (row,) = read_predictions(recorder.engine)
    assert before - 0.001 <= row.pop("at") <= time.time()
    assert {row.pop(f"feedback_{name}") for name in ("label", "note", "at")} == {None}
    scores = {"circle": 0.09, "square": 0.09, "star": 0.812346}
    assert row == {**prediction("a"), "score": 0.812346, "scores": scores}
    assert list(row["scores"]) == list(LABELS) or recorder.engine.dialect.name == "postgresql"


def test_the_tables_are_those_that_the_migrations_make(recorder):
    """A column added to one and forgotten in the other would be found by the first user."""
    with recorder.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert set(inspect(recorder.engine).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_many_processes_that_start_at_once_migrate_once(settings):
    """Workers start together, on several hosts too; a second CREATE TABLE would end one of them."""
    settings.records_folder.mkdir(exist_ok=True)

    def start(_: int) -> str:
        engine = open_engine(settings)
        try:
            return migrate(engine, settings.records_folder)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(start, range(8))) == {"0001"}


def test_tables_of_a_newer_version_are_a_database_that_cannot_be_used(recorder, settings, caplog):
    """After a step back: said once and shown as failing, nothing is lost, and it goes on with the next step forward."""
    with recorder.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    older = started(settings)
    older.add(prediction("a"))
    for _ in range(3):
        older.flush()
    assert older.dependency.failing
    (said,) = [record.getMessage() for record in caplog.records if "revision 9999" in record.getMessage()]
    assert "the tables are of revision 9999, which this version does not know" in said
    with pytest.raises(SQLAlchemyError):
        older.find("a")
    with recorder.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    older.flush()
    assert not older.dependency.failing
    assert ids(settings) == ["a"]
    older.stop()


def test_of_two_predictions_under_one_id_the_first_stays(recorder):
    """Callers may choose ids: nobody can put an answer of theirs in the place of somebody else's."""
    recorder.add(prediction("a", user="ann"))
    recorder.flush()
    recorder.add(prediction("a", user="eve", label="circle"))
    recorder.add(prediction("b"))
    recorder.flush()
    rows = {row["request_id"]: row for row in read_predictions(recorder.engine)}
    assert (rows["a"]["user"], rows["a"]["label"]) == ("ann", "star")
    assert set(rows) == {"a", "b"}


def test_feedback_is_kept_with_its_prediction_and_replaces_what_was_said_before(recorder):
    """One opinion an answer: the last."""
    recorder.add(prediction("a"))
    assert say(recorder, "a", "circle", "a coin")["label"] == "circle"
    say(recorder, "a", NONE)
    (row,) = read_predictions(recorder.engine)
    assert (row["feedback_label"], row["feedback_note"]) == (NONE, "")


def test_feedback_is_taken_from_who_asked_and_from_nobody_else(recorder):
    """Not even that there was such a request is said to others; an administrator may correct everybody's."""
    recorder.add(prediction("a"))
    say(recorder, "a", "circle")
    with pytest.raises(RequestNotFound) as others:
        say(recorder, "a", "square", by="eve")
    with pytest.raises(RequestNotFound) as unknown:
        say(recorder, "b", "square", by="eve")
    assert str(others.value).replace("'a'", "'b'") == str(unknown.value)
    (row,) = read_predictions(recorder.engine)
    assert row["feedback_label"] == "circle"
    say(recorder, "a", "square", by="root", for_anybody=True)
    (row,) = read_predictions(recorder.engine)
    assert row["feedback_label"] == "square"


@pytest.mark.parametrize(
    ("label", "note", "words"),
    [
        ("hexagon", None, "label must be one of circle, square, star, none; got 'hexagon'"),
        (None, None, "got 'None'"),
        ("star", "x" * 101, "note has 101 characters; at most 100"),
        ("star", 7, "note must be text; got int"),
        ("star", "a\0b", "without NUL"),
        ("star", "\ud800", "halves of surrogate pairs"),
    ],
)
def test_feedback_with_a_wrong_label_or_note_is_refused_and_changes_nothing(recorder, label, note, words):
    """The sentence says what is allowed, and the state is as before."""
    recorder.add(prediction("a"))
    say(recorder, "a", "circle", "kept")
    with pytest.raises(BadParameter, match=words):
        say(recorder, "a", label, note)
    (row,) = read_predictions(recorder.engine)
    assert (row["feedback_label"], row["feedback_note"]) == ("circle", "kept")


def test_looking_for_an_id_moves_no_other_record(recorder, settings):
    """Whatever word it is: whoever asked for `rest` had all that waited moved into the database, each time anew."""
    for place in range(3):
        recorder.add(prediction(f"a{place}"))
    for word in ("rest", "star", "request_id"):
        with pytest.raises(RequestNotFound):
            say(recorder, word, "star")
    assert ids(settings) == []
    say(recorder, "a1", "star")
    assert ids(settings) == ["a1"]


@pytest.mark.parametrize("request_id", ["", "x", "x" * 65, "a b", "a'; DROP TABLE feedback; --", "a\0", "\ud800"])
def test_feedback_for_an_id_that_never_was_is_not_found(recorder, request_id):
    """Whatever the id holds, the answer is the same."""
    with pytest.raises(RequestNotFound):
        say(recorder, request_id, "star")


def test_another_process_finds_what_was_answered_a_moment_ago(recorder, settings):
    """The worker that gets the feedback need not be the one that answered, and nothing was flushed yet."""
    other = started(settings)
    recorder.add(prediction("a"))
    assert say(other, "a", "circle")["label"] == "circle"
    recorder.flush()
    assert ids(settings) == ["a"]
    other.stop()


def test_the_journal_of_a_process_that_died_is_moved_by_whoever_finds_it(recorder, settings):
    """Also its last line, cut off by a full disk; the others are in the database, and the file is gone."""
    code = (
        "import os, sys, pathlib; sys.path[:0] = ['tests', 'tests/records']; from test_records import *\n"
        "s = records_settings(pathlib.Path(sys.argv[1])); r = Recorder(s); r._open()\n"
        "for i in range(300): r.add(prediction(f'dead-{i}'))\n"
        "r.add_comparison(model='shapes', version=1, shadow_version=2, agrees=True, distance=0.25)\n"
        'os.write(r._journal._file, b\'["predictions", {"request_id\')\n'
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(settings.records_folder.parent)], cwd=ROOT, check=False)
    assert done.returncode == -9
    dropped = []
    recorder._on_drop = dropped.append
    recorder.flush()
    assert sorted(ids(settings)) == sorted(f"dead-{i}" for i in range(300))
    (comparison,) = read_comparisons(recorder.engine)
    assert (comparison["shadow_version"], comparison["agrees"], comparison["distance"]) == (2, True, 0.25)
    assert dropped == [1]
    assert list(journals(settings.records_folder)) == [recorder._journal.path]


def test_a_journal_that_another_process_just_took_over_is_no_failure(tmp_path, monkeypatch):
    """Two workers find a dead one's file, and one is done with it before the other has locked what it opened."""
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


def test_the_journal_of_a_living_process_is_left_to_it(recorder, settings):
    """Taken away, what it writes next would be lost."""
    other = started(settings)
    other.add(prediction("a"))
    recorder.flush()
    assert ids(settings) == []
    assert other._journal.path.exists()
    other.add(prediction("b"))
    other.stop()
    assert sorted(ids(settings)) == ["a", "b"]


def test_no_record_is_lost_between_threads_that_write_and_one_that_flushes(recorder, settings):
    """A new journal begins with each flush: nothing may be written to the old one after it was read."""

    def write(k: int) -> None:
        for i in range(500):
            recorder.add(prediction(f"{k}-{i}"))

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write, k) for k in range(4)]
        while not all(task.done() for task in done):
            recorder.flush()
    recorder.flush()
    assert len(ids(settings)) == 2000


def test_a_record_that_the_database_refuses_holds_up_no_other(recorder, settings):
    """It is dropped and counted; else the journal would never end."""
    dropped = []
    recorder._on_drop = dropped.append
    of_another_version = {name: value for name, value in prediction("d").items() if name != "seconds"}
    wrong = ({**prediction("b"), "label": None}, of_another_version)
    for row in (prediction("a"), *wrong, prediction("c")):
        recorder.add(row)
    recorder.flush()
    assert sorted(ids(settings)) == ["a", "c"]
    assert dropped == [1, 1]
    assert not recorder.dependency.failing


@pytest.mark.parametrize("line", ["5", '["predictions", null]', '["predictions", {"score": null, "scores": {}}]'])
def test_a_line_of_json_that_is_no_record_holds_up_no_other(tmp_path, line):
    """What another version of ours left, or a model that answered no numbers, is counted as dropped, once."""
    settings, dropped = records_settings(tmp_path), []
    recorder = started(settings, on_drop=dropped.append)
    (settings.records_folder / "journal-0.jsonl").write_text(f"{line}\n")
    recorder.add(prediction("a"))
    recorder.flush()
    assert ids(settings) == ["a"]
    assert (dropped, len(list(journals(settings.records_folder)))) == ([1], 1)
    recorder.stop()


@pytest.mark.slow
def test_while_postgresql_is_away_records_wait_and_nothing_is_lost(tmp_path, caplog):
    """The journal keeps them, one line in the log says so, and one that it is over."""
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
        said = [record.getMessage() for record in caplog.records if record.name == "cifar.records.recorder"]
        assert len(said) == 2, said
        recorder.stop()


def test_a_full_journal_takes_no_more_and_counts_what_it_dropped(tmp_path):
    """It is bounded in bytes; the oldest records stay, for feedback on them is on its way."""
    settings = records_settings(tmp_path, max_journal_bytes=4096)
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    for i in range(100):
        recorder.add(prediction(f"a{i}"))
    assert recorder._journal.path.stat().st_size <= 4096
    recorder.stop()
    kept = ids(settings)
    assert kept[0] == "a0"
    assert len(kept) + sum(dropped) == 100
    assert len(dropped) > 50


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    """As in a container without a volume: the recorder says that it fails, once, and takes up its work when it can."""
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


def test_users_are_hashed_with_a_key_that_processes_share_and_others_lack(tmp_path):
    """Who has the database alone cannot try addresses; feedback by another worker needs the same hash."""
    one, two = started(records_settings(tmp_path)), started(records_settings(tmp_path))
    elsewhere = started(records_settings(tmp_path / "other"))
    named = started(records_settings(tmp_path, records_key="k" * 32))
    also_named = started(records_settings(tmp_path / "other", records_key="k" * 32))
    assert one.user("192.0.2.1") == two.user("192.0.2.1") != elsewhere.user("192.0.2.1")
    assert one.user("192.0.2.1") != named.user("192.0.2.1") == also_named.user("192.0.2.1")
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
def test_another_kind_of_database_is_refused_without_saying_its_password(url):
    """At the start, with one sentence that says what is expected."""
    with pytest.raises(SettingsError, match=r"expected postgresql\+psycopg://") as error:
        open_engine(Settings(database_url=url))
    assert "hunter2" not in str(error.value)


def test_what_is_too_old_is_swept_with_its_feedback_and_its_image(recorder, settings):
    """After the days that the settings name nothing is left of a person."""
    for name in ("old", "new"):
        recorder.add(prediction(name, digest=name * 8))
        say(recorder, name, "circle")
        KeptImages(settings).keep(name * 8, b"photo")
    recorder.flush()
    long_ago = time.time() - 91 * 24 * 3600
    with recorder.engine.begin() as connection:
        connection.execute(update(predictions).where(predictions.c.request_id == "old").values(at=long_ago))
        os.utime(kept_path(settings, "old" * 8), (long_ago, long_ago))
    assert sweep(recorder.engine, settings) == (1, 0, 1)
    (row,) = read_predictions(recorder.engine)
    assert (row["request_id"], row["feedback_label"]) == ("new", "circle")
    assert not kept_path(settings, "old" * 8).exists()
    assert kept_path(settings, "new" * 8).exists()
    with pytest.raises(RequestNotFound):
        say(recorder, "old", "circle")


def test_many_old_records_are_swept_some_at_a_time(recorder, settings):
    """One statement for all would take longer than a statement may: then nothing would ever go, and the records count as failing."""
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


def test_the_daily_sweep_is_done_once_a_day_by_one_of_all_workers(recorder, settings):
    """It happened when the first started; the next is due a day later."""
    with recorder.engine.begin() as connection:
        connection.execute(predictions.insert().values(**{**prediction("old"), "at": 0.0}))
    recorder.flush()
    assert ids(settings) == ["old"]
    yesterday = time.time() - 25 * 3600
    os.utime(settings.records_folder / "swept", (yesterday, yesterday))
    recorder.flush()
    assert ids(settings) == []


def test_kept_images_stay_within_number_and_bytes(tmp_path):
    """A full disk would end more than the records."""
    few = KeptImages(records_settings(tmp_path, max_kept_images=2))
    assert [few.keep(name * 32, b"x") for name in "aabc"] == [True, True, True, False]
    again = KeptImages(records_settings(tmp_path, max_kept_bytes=1024))
    again.count()
    assert not again.keep("d" * 32, b"x" * 1023)
    assert again.keep("e" * 32, b"x" * 1022)
    assert again.keep("a" * 32, b"x" * 5000), "it is there already"


@pytest.mark.parametrize("taken", ["images", "images/dd"])
def test_an_image_that_cannot_be_kept_is_no_error(tmp_path, taken):
    """Its answer leaves all the same: here a file is where a folder should be."""
    settings = records_settings(tmp_path, keep_uploads=True)
    path = settings.records_folder / taken
    path.parent.mkdir(parents=True)
    path.touch()
    assert not KeptImages(settings).keep("d" * 32, b"image")


def test_the_table_has_every_prediction_with_its_feedback_as_csv_and_parquet(recorder, tmp_path):
    """What an analyst opens: the same rows and columns in both, times in UTC."""
    from pyarrow import parquet

    for i in range(3):
        recorder.add(prediction(f"a{i}"))
    say(recorder, "a1", "circle", 'a "coin",\n半')
    say(recorder, "a2", "circle", "=1+1")
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


def test_the_images_that_people_spoke_of_become_a_folder_to_train_on(recorder, settings, tmp_path):
    """The last word counts; what is none of the classes, or no longer kept, is left out and counted."""
    from cifar.training.data.dataset import load_dataset, summarize

    kept = KeptImages(settings)
    said = {"a": "circle", "b": "circle", "c": "square", "d": "square", "e": NONE, "gone": "star"}
    for place, (name, label) in enumerate(said.items()):
        recorder.add(prediction(name, digest=name))
        if name != "gone":
            kept.keep(name, encoded(noise(40, 40, seed=place), "JPEG" if place % 2 else "PNG"))
        say(recorder, name, "star")
        say(recorder, name, label)
    recorder.add(prediction("asked again", digest="a"))
    recorder.flush()
    written, left_out = export_images(recorder.engine, settings, tmp_path / "said")
    assert written == {"circle": 2, "square": 2}
    assert left_out == {"of none of the classes": 1, "not kept": 1}
    summary = summarize(load_dataset(str(tmp_path / "said"), settings))
    assert summary["train_images_by_class"] == {"circle": 2, "square": 2}
    assert {file.suffix for file in (tmp_path / "said").rglob("*.*")} == {".jpg", ".png"}
    with pytest.raises(RecordsError, match="exists"):
        export_images(recorder.engine, settings, tmp_path / "said")


def test_images_of_a_class_named_none_are_trained_on_like_others(recorder, settings, tmp_path):
    """Where a version has such a class, feedback with its label says which class it is."""
    recorder.add({**prediction("a", digest="a"), "scores": {"circle": 0.9, NONE: 0.1}})
    KeptImages(settings).keep("a", encoded(noise(40, 40), "PNG"))
    say(recorder, "a", NONE)
    assert export_images(recorder.engine, settings, tmp_path / "said") == ({NONE: 1}, {})
    with pytest.raises(BadParameter, match="one of circle, none; got"):
        say(recorder, "a", "star")


def test_an_image_folder_that_cannot_be_written_whole_is_not_there(recorder, settings, tmp_path):
    """Half a folder would be trained on as if it were all; here the second image is none that we can read."""
    kept = KeptImages(settings)
    for name, content in {"a": encoded(noise(40, 40), "PNG"), "b": b"no image"}.items():
        recorder.add(prediction(name, digest=name))
        kept.keep(name, content)
        say(recorder, name, "circle")
    with pytest.raises(OSError, match="cannot identify"):
        export_images(recorder.engine, settings, tmp_path / "new" / "said")
    assert list((tmp_path / "new").iterdir()) == []


def test_images_without_any_feedback_are_no_folder_but_a_sentence(recorder, settings, tmp_path):
    """An empty folder would fail later, in training."""
    with pytest.raises(RecordsError, match="CIFAR_KEEP_UPLOADS"):
        export_images(recorder.engine, settings, tmp_path / "said")
    assert not (tmp_path / "said").exists()


@pytest.mark.slow
def test_the_command_line_exports_and_sweeps_what_the_server_recorded(tmp_path):
    """The operator's way to the same functions; a wrong database is one sentence and status 1."""
    recorder = started(records_settings(tmp_path))
    recorder.add(prediction("a"))
    recorder.stop()
    environment = {**os.environ, "CIFAR_RECORDS_FOLDER": str(tmp_path / "var")}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cifar", "records", *words]
        return subprocess.run(
            command, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True, check=False
        )

    assert run("migrate").stdout == "0001\n"
    assert "1 predictions" in run("export", "--out", str(tmp_path / "table.csv")).stderr
    assert (tmp_path / "table.csv").read_text().count("\n") == 2
    assert json.loads(run("sweep", "--json").stdout) == {"predictions": 0, "comparisons": 0, "images": 0}
    images = run("images", "--out", str(tmp_path / "said"))
    assert (images.returncode, images.stdout) == (1, "")
    away = run("sweep", CIFAR_DATABASE_URL="postgresql+psycopg://cifar:hunter2@127.0.0.1:1/x")
    assert away.returncode == 1
    assert away.stderr.startswith("cifar: The records' database cannot be used: ")
    assert "hunter2" not in away.stderr
    shutil.rmtree(tmp_path / "var")
