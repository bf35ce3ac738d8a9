"""Measures the cost of recording, for a request and for those beside it: `python -m benchmarks.recording [--rounds 15] [--seconds 2]`.

Two workers serve the default version with default settings. `wrk` sends distinct pictures to the same processes, alternately recorded
and with `record=false`. Prints requests per second at 64 connections, the 99th percentile at one, and the ratios within the rounds.
Then it measures processor time, which other programs affect less: of recording one answer, and of moving the records into SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import secrets
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.load import LOADS, Load, running
from benchmarks.serving import space
from cifar import CLASS_NAMES
from cifar.models.predictor import Prediction
from cifar.records.recorder import Recorder
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.classify import Classification
from cifar.serving.inference.recording import FLUSH_SECONDS, Records
from cifar.settings import Settings

FIGURES = {64: "requests_per_second", 1: "p99_ms"}
PATHS = {"recorded": "/predict", "not recorded": "/predict?record=false"}
REQUESTS = 1000


def measure_neighbours(rounds: int, seconds: int, folder: Path) -> None:
    load = Load("32x32 PNG", *LOADS["32x32 PNG"])
    load.write(folder)
    found = {load_and_path: [] for load_and_path in itertools.product(FIGURES, PATHS)}
    with running(space(2)):
        load.drive(8, 2)  # warm
        for number, (connections, figure) in itertools.product(range(rounds), FIGURES.items()):
            for name in sorted(PATHS, reverse=bool(number % 2)):
                time.sleep(2 * FLUSH_SECONDS)  # until earlier records are in the database
                found[connections, name].append(load.drive(connections, seconds, PATHS[name])[figure])
    for connections, figure in FIGURES.items():
        recorded, not_recorded = (found[connections, name] for name in PATHS)
        ratios = sorted(a / b for a, b in zip(recorded, not_recorded, strict=True))
        print(
            f"{figure} at {connections}: {statistics.median(recorded):.2f} recorded, {statistics.median(not_recorded):.2f} not; "
            f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def invented_answers() -> list[Classification]:
    dice = np.random.default_rng(0)
    answers = []
    for _ in range(REQUESTS):
        scores = dict(zip(CLASS_NAMES, dice.dirichlet(np.full(10, 0.1)).tolist(), strict=True))
        best = sorted(scores.items(), key=lambda item: -item[1])[:3]
        pixels = dice.integers(0, 256, (32, 32, 3), np.uint8)
        prediction = Prediction(scores, best, 0.5, in_distribution=True)
        answers.append(Classification("cifar_classifier", 2, prediction, pixels[None], 1.0, secrets.token_hex(16)))
    return answers


async def measure_call(recorder: Recorder, records: Records, rounds: int) -> None:
    """The time of `Records.add` in the event loop, and of one flush afterwards."""
    answers, calls, flushes = invented_answers(), [], {1: [], REQUESTS: []}
    for count in [1, REQUESTS] * rounds:
        requesters = [Requester(secrets.token_hex(16), "192.0.2.1") for _ in range(count)]
        started = time.thread_time()
        for answer, requester in zip(answers, requesters, strict=False):
            await records.add(answer, b"", requester=requester, channel="rest", started=0.0)
        moving = time.thread_time()
        recorder.flush()
        flushes[count].append(time.thread_time() - moving)
        calls += [(moving - started) / count] if count > 1 else []
    one, many = (statistics.median(times) * 1e6 for times in flushes.values())
    print(f"recording one answer: {statistics.median(calls) * 1e6:.1f} us of processor time in the event loop")
    print(f"moving records in a thread: {one:.0f} us for one, {many / REQUESTS:.1f} us for each of {REQUESTS}")


def measure_parts(rounds: int, folder: Path) -> None:
    records = Records(Settings(records_folder=folder))
    recorder = records._recorder  # whose thread stays off
    recorder.flush()
    asyncio.run(measure_call(recorder, records, rounds))
    recorder.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=2, help="of load for each figure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure_parts(arguments.rounds, Path(name, "records"))
        measure_neighbours(arguments.rounds, arguments.seconds, Path(name))
