"""What recording costs a request: `PYTHONPATH=. python benchmarks/recording.py 2>/dev/null`.

`Classifier.classify` of a small JPEG whose answer is in the cache, so that nothing else takes long; with and without recording, in turn.
Processor time of the thread, the system's part included: other programs may run. The thread that moves the journal into the database
sleeps meanwhile, and is timed at the end.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from cifar.models.registry import Registry
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recording import Records
from cifar.settings import ROOT, Settings

ROUNDS, REQUESTS = 15, 1000
IMAGE = (ROOT / "examples/cat.jpg").read_bytes()


async def microseconds(classifier: Classifier, first: int, *, record: bool) -> float:
    started = time.thread_time()
    for i in range(first, first + REQUESTS):
        await classifier.classify(IMAGE, channel="rest", requester=Requester(f"{i:032x}", "192.0.2.1"), record=record)
    return (time.thread_time() - started) / REQUESTS * 1e6


async def main(folder: Path) -> None:
    settings = Settings(records_folder=folder, records_flush_seconds=3600)
    registry = Registry(settings.registry, settings.model_name)
    versions = LoadedVersions(registry, registry.get(), settings)
    versions.load_default()
    records = Records(settings)
    records.recorder.start()
    records.recorder.flush()
    cache = AnswerCache(images=10, lifetime_seconds=3600, redis=None)
    classifier = Classifier(versions, settings, cache, records)
    times = {False: [], True: []}
    for turn in range(ROUNDS):
        for record, spent in times.items():
            spent.append(await microseconds(classifier, turn * REQUESTS, record=record))
    differences = [recorded - bare for bare, recorded in zip(times[False], times[True], strict=True)]
    print(f"more for each request: {statistics.median(differences):.1f} us (least {min(differences):.1f})")
    started = time.thread_time()
    records.recorder.flush()
    spent = (time.thread_time() - started) / (ROUNDS * REQUESTS) * 1e6
    print(f"then in the thread: {spent:.1f} us of processor time for each record, into SQLite")
    records.recorder.stop()


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))
