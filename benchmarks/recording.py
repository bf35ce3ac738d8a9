"""Cost of recording a prediction: `PYTHONPATH=. python benchmarks/recording.py 2>/dev/null`.

Classifies a small JPEG whose answer is cached, so that recording is a large part of the time, alternately with and without recording.
Measures processor time of the event loop's thread, system time included, so other programs may run. Then it measures the thread that
moves the records into the database.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from fastapi import FastAPI

from cifar.models.registry import Registry
from cifar.records.reader import read_predictions
from cifar.records.recorder import Recorder
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.inference.recording import Records
from cifar.settings import ROOT, Settings

ROUNDS, REQUESTS = 15, 1000
IMAGE = (ROOT / "examples/cat.jpg").read_bytes()


async def microseconds(classifier: RecordedClassifier, first: int, *, record: bool) -> float:
    started = time.thread_time()
    for i in range(first, first + REQUESTS):
        await classifier.classify(IMAGE, channel="rest", requester=Requester(f"{i:032x}", "192.0.2.1"), record=record)
    return (time.thread_time() - started) / REQUESTS * 1e6


async def measure_requests(settings: Settings) -> None:
    versions = LoadedVersions(Registry(settings.registry, settings.model_name), settings)
    versions.load_default()
    records, api = Records(settings), FastAPI()
    records.record_while_serving(api)
    classifier = RecordedClassifier(Classifier(versions, settings, AnswerCache(images=10)), records)
    times = {False: [], True: []}
    async with api.router.lifespan_context(api):
        for turn in range(ROUNDS):
            for record, spent in times.items():
                spent.append(await microseconds(classifier, turn * REQUESTS, record=record))
    differences = [recorded - bare for bare, recorded in zip(times[False], times[True], strict=True)]
    print(f"each request: {statistics.median(differences):.1f} us more (minimum {min(differences):.1f})")


def measure_flush(settings: Settings, copy: Settings) -> None:
    """Record the predictions of `settings` once more in the database of `copy`."""
    rows = list(read_predictions(Recorder(settings, flush_seconds=3600).engine))
    recorder = Recorder(copy, flush_seconds=3600)
    recorder.start()
    recorder.flush()
    for row in rows:
        recorder.add({str(name): value for name, value in row.items() if not name.startswith("feedback_")})
    started = time.thread_time()
    recorder.flush()
    spent = (time.thread_time() - started) / len(rows) * 1e6
    print(f"each record: {spent:.1f} us of processor time to move it into SQLite, in a thread")
    recorder.stop()


with tempfile.TemporaryDirectory() as folder:
    settings = Settings(records_folder=Path(folder) / "one")
    asyncio.run(measure_requests(settings))
    measure_flush(settings, Settings(records_folder=Path(folder) / "two"))
