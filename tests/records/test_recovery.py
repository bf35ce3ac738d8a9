"""Failures that records survive: a folder or a database file that is deleted under way, odd journals, a wrong key, a wrong clock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
from sqlalchemy import inspect, text
from support.samples import give_feedback, ids, prediction, records_settings, started

from cifar.records.database import migrate, open_engine
from cifar.records.journal import journals
from cifar.records.tables import predictions
from cifar.settings import ROOT, Settings

DAY = 24 * 3600


def test_a_deleted_records_folder_comes_back_with_what_the_journal_held(tmp_path):
    """Somebody clears `var/` under a running server: answers since are kept, and users keep their hashes."""
    settings = records_settings(tmp_path)
    recorder = started(settings)
    user = recorder.user_hash("ann")
    recorder.add(prediction("before"))
    shutil.rmtree(settings.records_folder)
    recorder.add(prediction("after"))
    recorder.flush()
    assert not recorder.dependency.failing
    assert ids(settings) == ["before", "after"]
    assert recorder.user_hash("ann") == user
    give_feedback(recorder, "after", "circle")
    restarted = started(settings)
    assert restarted.user_hash("ann") == user
    for each in (restarted, recorder):
        each.stop()


def test_stopping_after_the_folder_was_deleted_loses_no_record(tmp_path):
    """The journal is a file without a name then, which only its process can read."""
    settings = records_settings(tmp_path)
    recorder = started(settings)
    recorder.add(prediction("a"))
    shutil.rmtree(settings.records_folder)
    recorder.stop()
    assert ids(settings) == ["a"]


def test_a_deleted_database_file_is_created_again(tmp_path):
    """SQLite would go on writing to the file without a name, which is gone at the end."""
    settings = records_settings(tmp_path)
    recorder = started(settings)
    recorder.add(prediction("a"))
    recorder.flush()
    (settings.records_folder / "records.sqlite").unlink()
    recorder.add(prediction("b"))
    give_feedback(recorder, "b", "circle")
    recorder.stop()
    assert ids(settings) == ["b"]


@pytest.mark.parametrize("kind", ["folder", "folder with a file", "pipe", "link to a device", "too large"])
def test_what_cannot_be_a_journal_is_set_aside_and_counted_and_stops_nothing(tmp_path, kind, caplog):
    """A pipe would be read for ever, and a folder made each flush and each feedback fail."""
    settings, dropped = records_settings(tmp_path), []
    recorder = started(settings, on_drop=dropped.append)
    path = settings.records_folder / "journal-x.jsonl"
    if kind.startswith("folder"):
        path.mkdir()
        if "file" in kind:
            (path / "a").touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 65 * 1024**2)
    recorder.add(prediction("a"))
    give_feedback(recorder, "a", "circle")
    recorder.flush()
    recorder.flush()
    assert not recorder.dependency.failing
    assert (ids(settings), dropped) == (["a"], [1])
    (aside,) = settings.records_folder.glob("*.bad")
    assert aside.name.startswith("journal-x.jsonl.")
    assert caplog.text.count("was set aside") == 1
    recorder.stop()


ODD_LINES = {
    "a list": b"[]",
    "an empty object": b"{}",
    "an empty row": b'{"predictions":{}}',
    "a row that is a list": b'{"predictions":[1]}',
    "two tables": b'{"predictions":{},"comparisons":{}}',
    "an earlier row of a nested value": b'["predictions",{"score":{},"scores":{"a":{}}}]',
    "an earlier row of a huge number": b'["predictions",{"score":1,"scores":{"a":1' + b"0" * 400 + b"}}]",
    "deeper than SQLite reads": b'{"predictions":' + b'{"a":' * 1010 + b"1" + b"}" * 1011,
    "no text": b"\xff\xfe",
    "NUL": b'{"predictions":{"label":"\\u0000"}}',
}


@pytest.mark.parametrize("name", ODD_LINES)
def test_an_odd_line_is_dropped_and_counted_and_the_others_are_stored(settings, name):
    """One such line used to stop records for good: feedback was refused at each flush again."""
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    (settings.records_folder / "journal-0.jsonl").write_bytes(ODD_LINES[name] + b"\n")
    recorder.add(prediction("a"))
    recorder.flush()
    assert not recorder.dependency.failing
    assert (ids(settings), dropped) == (["a"], [1])
    assert len(list(journals(settings.records_folder))) == 1
    recorder.stop()


def test_a_number_that_no_column_holds_stops_no_other_record(recorder, settings):
    """2**63 is no integer of SQLite or PostgreSQL; the sweep must also go on."""
    recorder.add({**prediction("big"), "version": 2**63})
    recorder.add(prediction("a"))
    recorder.flush()
    assert not recorder.dependency.failing
    assert "a" in ids(settings)


@pytest.mark.parametrize("size", [0, 31, 33, 65])
def test_a_key_file_of_the_wrong_length_leaves_records_off_and_says_so(tmp_path, size, caplog):
    """Users would be hashed with a weak key or none, and longer keys made every prediction fail."""
    settings, dropped = records_settings(tmp_path), []
    settings.records_folder.mkdir()
    (settings.records_folder / "users.key").write_bytes(b"k" * size)
    recorder = started(settings, on_drop=dropped.append)
    recorder.user_hash("ann")
    recorder.add(prediction("a"))
    assert recorder.dependency.failing
    assert dropped == [1]
    assert f"users.key has {size} bytes instead of 32" in caplog.text
    recorder.stop()
    assert (settings.records_folder / "users.key").read_bytes() == b"k" * size


def test_a_sweep_that_was_marked_in_the_future_is_made_again(recorder, settings):
    """The clock was wrong once at boot: otherwise nothing would be deleted until then."""
    with recorder.engine.begin() as connection:
        connection.execute(predictions.insert().values(**{**prediction("old"), "at": 0.0}))
    ahead = time.time() + 365 * DAY
    os.utime(settings.records_folder / "swept", (ahead, ahead))
    recorder.flush()
    assert ids(settings) == []
    assert (settings.records_folder / "swept").stat().st_mtime < time.time() + DAY


def test_a_long_sweep_is_made_in_steps_between_which_records_are_moved(recorder, settings):
    """A million old rows used to hold the flush, and SIGTERM, for minutes."""
    old = [{**prediction(str(number)), "at": 0.0} for number in range(2500)]
    with recorder.engine.begin() as connection:
        connection.execute(predictions.insert(), old)
    (settings.records_folder / "swept").unlink()
    left = []
    for number in range(4):
        recorder.add(prediction(f"new-{number}"))
        recorder.flush()
        left.append(len(ids(settings)))
    assert left == [1501, 502, 3, 4]


def test_the_newest_migration_is_undone_by_the_documented_command_and_made_again(settings):
    """An operator goes back to the release before, and later forward again, without losing rows."""
    recorder = started(settings)
    recorder.add(prediction("a"))
    recorder.stop()
    page = (ROOT / "docs/operations.md").read_text().partition("**Undo migrations**")[2]
    command = page.partition("```sh\n")[2].partition("```")[0].replace(".venv/bin/python", sys.executable)
    environment = os.environ | {"CIFAR_RECORDS_FOLDER": str(settings.records_folder)}
    if settings.database_url:
        environment["CIFAR_DATABASE_URL"] = settings.database_url.get_secret_value()
    subprocess.run(["sh", "-euc", command], cwd=ROOT, env=environment, check=True)
    engine = open_engine(settings)
    columns = {column["name"] for column in inspect(engine).get_columns("predictions")}
    assert not {"named", "source"} & columns
    started(settings).stop()
    with engine.connect() as connection:
        found = connection.execute(text("SELECT request_id, named, source FROM predictions")).all()
    assert found == [("a", None, None)]
    engine.dispose()


def test_the_journal_of_the_release_before_is_stored_without_the_new_columns(recorder, settings):
    """Its process may still run, or have died, while this release starts."""
    before = prediction("a")
    del before["named"], before["source"]
    recorder.add(before)
    recorder.flush()
    assert ids(settings) == ["a"]


def test_the_database_is_readable_by_its_owner_only(tmp_path):
    """It holds notes and keyed hashes, as private as the key beside it."""
    engine = open_engine(Settings(records_folder=tmp_path))
    migrate(engine, tmp_path)
    with engine.connect():
        files = [file for file in tmp_path.iterdir() if file.name.startswith("records.sqlite")]
        assert len(files) == 3, "the database, its log and its index"
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    engine.dispose()
