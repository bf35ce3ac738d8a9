"""The records: journal, database and feedback, with SQLite and with a real PostgreSQL."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from support.databases import real_postgres
from support.samples import LABELS, give_feedback, ids, prediction, records_settings, started

from cifar.errors import BadParameter, RequestNotFound
from cifar.records.database import migrate, open_engine
from cifar.records.feedback import MAX_NOTE_CHARACTERS
from cifar.records.journal import journals
from cifar.records.reader import read_predictions
from cifar.records.tables import comparisons, metadata
from cifar.settings import ROOT


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
        assert set(pool.map(start, range(8))) == {"0003"}


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
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    older.flush()
    assert not older.dependency.failing
    assert ids(settings) == ["a"]
    older.stop()


def test_the_indexes_of_reports_can_be_added_and_removed_without_losing_records(recorder, settings):
    """An operator may have to go back to the release before."""
    recorder.add(prediction("a"))
    recorder.flush()
    found = []
    for step in (None, command.downgrade, command.upgrade):
        with recorder.engine.begin() as connection:
            if step:
                config = Config(attributes={"connection": connection})
                config.set_main_option("script_location", str(ROOT / "cifar/records/migrations"))
                step(config, "0001" if step is command.downgrade else "head")
            tables = ("predictions", "feedback")
            found.append({index["name"] for table in tables for index in inspect(connection).get_indexes(table)})
    new, old, again = found
    assert again == new == {"predictions_at", "predictions_model_at", "feedback_at"}
    assert old == {"predictions_at", "predictions_version_at"}
    assert ids(settings) == ["a"]


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


def test_feedback_with_a_wrong_label_or_note_is_refused_and_changes_nothing(recorder):
    """The message says what is allowed, and earlier feedback stays."""
    recorder.add(prediction("a"))
    give_feedback(recorder, "a", "circle", "kept")
    for label, note, words in (
        ("hexagon", None, "label must be one of circle, square, star, none; got 'hexagon'"),
        (None, None, "got 'None'"),
        ("star", "x" * (MAX_NOTE_CHARACTERS + 1), "note has 1,001 characters; at most 1,000"),
        ("star", 7, "note must be text; got int"),
        ("star", "a\0b", "without NUL"),
        ("star", "\ud800", "halves of surrogate pairs"),
    ):
        with pytest.raises(BadParameter, match=words):
            give_feedback(recorder, "a", label, note)
        (row,) = read_predictions(recorder.engine)
        assert (row["feedback_label"], row["feedback_note"]) == ("circle", "kept"), words


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


def test_feedback_for_an_unknown_id_is_not_found(recorder):
    """The error is the same for any content of the id."""
    for request_id in ("", "x", "x" * 65, "a b", "a'; DROP TABLE feedback; --", "a\0", "\ud800"):
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
        "import os, sys, pathlib; sys.path[:0] = ['tests']; from support.samples import *; from cifar.records.journal import journals; from cifar.records.recorder import Recorder\n"
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
