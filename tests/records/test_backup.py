"""Backup and restore of the records, by the commands of docs/operations.md."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

from support.databases import PROGRAMS
from support.samples import give_feedback, prediction, records_settings, started

from cifar.records.database import open_engine
from cifar.records.reader import read_predictions
from cifar.settings import ROOT, Settings


def documented(name: str) -> str:
    """Return the block of commands that follows this heading in docs/operations.md."""
    page = (ROOT / "docs/operations.md").read_text()
    found = re.search(rf"\*\*{name}\*\*.*?```sh\n(.*?)```", page, re.DOTALL)
    assert found, name
    return found[1]


def run(commands: str, folder: Path, **environment: str) -> None:
    path = os.pathsep.join([os.environ["PATH"], *map(str, PROGRAMS), str(ROOT / ".venv/bin")])
    done = subprocess.run(
        ["sh", "-euc", commands],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def rows(settings: Settings) -> list[dict[str, object]]:
    engine = open_engine(settings)
    found = sorted(read_predictions(engine), key=lambda row: str(row["request_id"]))
    engine.dispose()
    return found


def recorded(settings: Settings) -> tuple[list[dict[str, object]], str]:
    """Record ten predictions with one feedback, and one that is still in the journal. Return the rows and a user's hash."""
    recorder = started(settings)
    for i in range(10):
        recorder.add(prediction(f"a{i}"))
    recorder.flush()
    give_feedback(recorder, "a3", "circle", "it is round")
    user = recorder.user_hash("192.0.2.1")
    recorder.stop()
    return rows(settings), user


def test_records_in_sqlite_survive_the_loss_of_their_folder(tmp_path):
    """The same records, feedback and hashes of users, so that a user keeps the right to give feedback."""
    settings = records_settings(tmp_path)
    before, user = recorded(settings)
    shutil.copytree(ROOT / "saved_model/cifar_classifier/2", tmp_path / "saved_model/cifar_classifier/2")
    writer = sqlite3.connect(settings.records_folder / "records.sqlite")  # the server goes on
    run(documented("Back up SQLite"), tmp_path)
    writer.close()
    shutil.rmtree(settings.records_folder)
    shutil.rmtree(tmp_path / "saved_model")
    run(documented("Restore SQLite"), tmp_path)
    assert rows(settings) == before
    recorder = started(settings)
    assert recorder.user_hash("192.0.2.1") == user
    recorder.stop()
    assert (tmp_path / "saved_model/cifar_classifier/2/manifest.json").exists()


def test_records_in_postgresql_survive_the_loss_of_the_database(tmp_path, cluster):
    """With PostgreSQL's own programs, which know no `postgresql+psycopg://`."""
    settings = records_settings(tmp_path, database_url=cluster.new_database("saved"), records_key="k" * 32)
    before, _ = recorded(settings)
    assert settings.database_url
    url = settings.database_url.get_secret_value()
    assert "+psycopg" in url
    run(documented("Back up PostgreSQL"), tmp_path, CIFAR_DATABASE_URL=url)
    empty = cluster.new_database("restored")
    run(documented("Restore PostgreSQL"), tmp_path, CIFAR_DATABASE_URL=empty)
    assert rows(records_settings(tmp_path, database_url=empty)) == before
