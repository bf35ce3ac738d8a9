"""Records on their way from the journal into the database, with SQLite and with a real PostgreSQL: nothing is lost, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text
from support.databases import real_postgres
from support.samples import ids, prediction, records_settings, started

from cifar.records.journal import journals
from cifar.records.reader import read_predictions
from cifar.settings import ROOT, Settings

WRITER = """
import os, pathlib, sys
sys.path[:0] = ["tests"]
from support.samples import prediction
from cifar.records.recorder import Recorder
from cifar.settings import Settings
settings = Settings(records_folder=pathlib.Path(sys.argv[1]), database_url=sys.argv[2] or None)
recorder = Recorder(settings, flush_seconds=0.002)
recorder.start()
number = 0
while True:
    recorder.add(prediction(f"{os.getpid()}-{number}"))
    os.write(1, b"%d-%d\\n" % (os.getpid(), number))  # as an answer that has been sent
    number += 1
"""


def python(code: str, settings: Settings, **more) -> subprocess.Popen[str]:
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    return subprocess.Popen([sys.executable, "-c", code, settings.records_folder, url], cwd=ROOT, text=True, **more)


def write_journal(settings: Settings, *lines: bytes) -> None:
    """Write the journal of a dead process."""
    (settings.records_folder / "journal-0.jsonl").write_bytes(b"".join(lines))


def good_lines(settings: Settings, count: int) -> list[bytes]:
    """Return the lines of the predictions `0`, `1`, ..., as a process wrote them."""
    recorder = started(settings)
    for number in range(count):
        recorder.add(prediction(str(number)))
    (journal,) = journals(settings.records_folder)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"")
    recorder.stop()
    return lines


def python_events(work) -> int:
    """Count the calls, returns and calls of C functions while Python runs `work`."""
    count = 0

    def profile(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_python_does_not_work_longer_for_more_records(recorder):
    """The event loop of the same process waits while Python works, so the database takes the lines apart."""
    events = {}
    for count in (1, 2, 400):  # the first flush compiles the statement
        for number in range(count):
            recorder.add(prediction(f"{count}-{number}"))
        events[count] = python_events(recorder.flush)
    assert events[400] <= events[2] + 20
    assert len(list(read_predictions(recorder.engine))) == 403


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_scores_are_stored_as_round_rounds_them(recorder, classes):
    """Whatever the names of the classes are, and whatever their number."""
    dice = random.Random(classes)
    labels = ['a "quoted" 100 % label', "\u732b\n\\", *map(str, range(classes - 2))]
    for number, exponent in enumerate((0, 1, 5, 8, 30)):
        scores = {label: dice.random() / 10**exponent for label in labels}
        recorder.add({**prediction(str(number)), "label": labels[0], "score": scores[labels[0]], "scores": scores})
        recorder.flush()
        row = {row["request_id"]: row for row in read_predictions(recorder.engine)}[str(number)]
        assert row["scores"] == {label: round(score, 6) for label, score in scores.items()}
        assert list(row["scores"]) == labels
        assert row["score"] == row["scores"][labels[0]]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_prediction_whose_scores_are_no_numbers_is_dropped_and_counted(settings, number):
    """JSON knows no such numbers, so whoever reads the records later would fail."""
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    recorder.add({**prediction("a"), "scores": {"circle": number, "square": 0.5, "star": 0.5}})
    recorder.add(prediction("b"))
    recorder.stop()
    assert (ids(settings), dropped) == (["b"], [1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line[: len(line) // 2] + b"\n",
        lambda line: line[:-2] + b"\n",
        lambda line: line[:40] + bytes(40) + line[80:],
        lambda line: bytes(len(line) - 1) + b"\n",
        lambda line: line[:60] + b"\xff\xfe" + line[62:],
        lambda line: line.replace(b'"version":1', b'"version":null'),
        lambda _: b"\n",
        lambda _: b"{}\n",
        lambda _: b'["comparisons",{"id":1}]\n',
        lambda _: b'{"strangers":{"request_id":"x"}}\n',
    ],
    ids=[
        "cut",
        "cut line",
        "brace",
        "zeros inside",
        "zeros",
        "no UTF-8",
        "no version",
        "empty",
        "object",
        "row",
        "table",
    ],
)
def test_a_damaged_line_costs_its_own_record_only(settings, damage):
    """A power failure can leave any bytes. The other records are stored, and the loss is counted."""
    lines, lost = good_lines(settings, 20), set()
    for at in (0, 7, 19):  # the first line, one in the middle, and the last
        lines[at] = damage(lines[at])
        lost |= {at} if lines[at].endswith(b"\n") else {at, at + 1}
    write_journal(settings, *lines)
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    assert sorted(map(int, ids(settings))) == [number for number in range(20) if number not in lost]
    assert sum(dropped) == 3
    assert not recorder.dependency.failing
    recorder.stop()
    assert list(journals(settings.records_folder)) == []


def test_the_journal_of_another_release_is_read(settings):
    """Until 2026-11-26, lines were lists, and scores were rounded on the way. A newer release may have further columns."""
    old, new = ({"at": 1.0, **prediction(name)} for name in ("old", "new"))
    new |= {"score": 0.812346, "scores": '{"circle":0.09,"square":0.09,"star":0.812346}', "colour": "red"}
    lines = (["predictions", old], {"predictions": new}, ["visits", {"id": 1}], {"predictions": {"id": 1}})
    started(settings).stop()
    write_journal(settings, *(json.dumps(line).encode() + b"\n" for line in lines))
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    rows = {row.pop("request_id"): row for row in read_predictions(recorder.engine)}
    assert rows["old"] == rows["new"]
    assert rows["old"]["scores"] == {"circle": 0.09, "square": 0.09, "star": 0.812346}
    assert (len(rows), sum(dropped)) == (2, 2)
    recorder.stop()


def test_records_stay_in_the_journal_while_the_database_has_other_tables(settings):
    """A statement that fails for its table looks like one that fails for its lines. No line may be dropped for it."""
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    for number in range(100):
        recorder.add(prediction(str(number)))
    for tables in (("predictions", "away"), ("away", "predictions")):
        with recorder.engine.begin() as connection:
            connection.execute(text("ALTER TABLE {} RENAME TO {}".format(*tables)))
        recorder.flush()
        assert recorder.dependency.failing == (tables[1] == "away")
    assert (len(ids(settings)), dropped) == (100, [])
    recorder.stop()


@pytest.mark.slow
def test_no_record_is_lost_when_workers_are_killed_while_they_move_records(settings):
    """Two at a time move records all the time and are killed anywhere, three times. What was acknowledged is stored once."""
    started(settings).stop()
    acknowledged: set[str] = set()
    for seconds in (0.05, 0.12, 0.2):
        workers = [python(WRITER, settings, stdout=subprocess.PIPE) for _ in range(2)]
        for worker in workers:
            acknowledged.add(worker.stdout.readline().strip())
        time.sleep(seconds)
        for worker in workers:
            worker.kill()
            acknowledged.update(worker.stdout.read().splitlines())
            worker.wait()
    dropped = []
    recorder = started(settings, on_drop=dropped.append)
    stored = ids(settings)
    assert len(acknowledged) > 100
    assert acknowledged <= set(stored)
    assert (
        len(stored) == len(set(stored)) <= len(acknowledged) + 8
    )  # a record of which the killed process did not say so
    assert sum(dropped) <= 6, "of each killed process at most the line that it was writing"
    recorder.stop()
    assert list(journals(settings.records_folder)) == []


@pytest.mark.slow
def test_no_record_is_lost_when_postgresql_crashes_while_records_are_moved(tmp_path):
    """Three times, while another thread records all the time. Afterwards, each record is stored, and none twice."""
    with real_postgres() as cluster:
        settings = records_settings(tmp_path, database_url=cluster.new_database("crashing"))
        dropped, done = [], threading.Event()
        recorder = started(settings, on_drop=dropped.append)
        count = 0

        def flush() -> None:
            while not done.is_set():
                recorder.flush()

        mover = threading.Thread(target=flush)
        mover.start()
        for _ in range(3):
            for _ in range(400):
                recorder.add(prediction(str(count)))
                count += 1
                time.sleep(0.0005)
            cluster.stop()
            cluster.start()
        done.set()
        mover.join()
        recorder.stop()
        assert sorted(ids(settings), key=int) == [str(number) for number in range(count)]
        assert dropped == []


FULL = """
import pathlib, resource, sys
sys.path[:0] = ["tests"]
from support.samples import ids, prediction, started
from cifar.settings import Settings
settings, dropped = Settings(records_folder=pathlib.Path(sys.argv[1])), []
recorder = started(settings, on_drop=dropped.append)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
for number in range(100):
    recorder.add(prediction(str(number)))
recorder.flush()
failing = recorder.dependency.failing
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
recorder.add(prediction("later"))
recorder.stop()
found = ids(settings)
assert failing and not recorder.dependency.failing
assert found[-1] == "later" and found[:-1] == [str(number) for number in range(len(found) - 1)], found
assert 20 < len(found) and len(found) + sum(dropped) == 101, (len(found), dropped)
"""


def test_a_disk_that_is_full_costs_only_what_does_not_fit(tmp_path):
    """Neither journal nor database can grow for a while. What is in the journal then is stored later, in whole lines."""
    settings = records_settings(tmp_path)
    process = python(FULL, settings, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert Path(settings.records_folder).exists()
