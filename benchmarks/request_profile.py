"""Show what holds the interpreter lock of one worker under load, in microseconds a request.

    python -m benchmarks.request_profile [--pictures "512x512 JPEG"] [--seconds 10] [--settings CIFAR_RECORDS=false]

The server has its default settings and gets distinct pictures over 64 connections. `py-spy` samples the thread that holds the lock. A
sample counts for the part of its innermost frame that belongs to one, so a library counts for its caller. On a busy machine quote the
shares only: a thread keeps the lock while it waits for a core.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks.load import LOADS, Load, System, running

RATE, CONNECTIONS, MARGIN_SECONDS = 250, 64, 1
PARTS = {
    "reading the form": r"serving/rest/forms\.py|multipart|starlette/formparsers",
    "opening and screening": r"images/screening\.py|^open_image .*images/decode\.py",
    "decoding and resizing": r"cifar/images/",
    "digest and cache": r"inference/cache\.py",
    "the model": r"models/engines\.py|ai_edge_litert",
    "ranking": r"models/predictor\.py",
    "waiting for the model": r"inference/(batcher|queue_slots)\.py|concurrent/futures",
    "recording": r"cifar/records/|inference/recording\.py|shadow\.py",
    "counting": r"process/metrics\.py|prometheus_client",
    "access log": r"logging/|process/logs\.py",
    "middleware": r"serving/(front|auth|asgi)\b",
    "the rest of classifying": r"serving/inference/",
    "answer and framework": r"serving/rest/|fastapi|starlette|pydantic|contextlib",
    "HTTP, and sending": r"uvicorn/protocols|httptools|process/http_protocol\.py",
    "event loop": r"uvicorn|uvloop|asyncio|app\.py",
}


def part(stack: str) -> str:
    """Return the part of a stack, and whether another thread than the event loop's ran it."""
    thread, *frames = stack.split(";")
    where = "" if "MainThread" in thread else ", in a thread"
    for frame in reversed(frames):
        for name, pattern in PARTS.items():
            if re.search(pattern, frame):
                return name + where
    return f"other{where}"


def sample(pid: int, load: Load, seconds: int) -> tuple[dict[str, float], float]:
    """Return for how many microseconds a request each part holds the lock, and the requests per second meanwhile."""
    figures: dict[str, float] = {}
    client = threading.Thread(target=lambda: figures.update(load.drive(CONNECTIONS, seconds + 2 * MARGIN_SECONDS)))
    client.start()
    time.sleep(MARGIN_SECONDS)
    with tempfile.NamedTemporaryFile("r") as raw:
        command = [Path(sys.executable).with_name("py-spy"), "record", "--pid", str(pid), "--gil", "--threads"]
        command += ["--duration", str(seconds), "--rate", str(RATE), "--format", "raw", "--output", raw.name]
        subprocess.run(command, check=True, capture_output=True)
        lines = raw.read().splitlines()
    client.join()
    counts: Counter[str] = Counter()
    for line in lines:
        stack, samples = line.rsplit(" ", 1)
        counts[part(stack)] += int(samples)
    microseconds = 1e6 / (seconds * RATE) / figures["requests_per_second"]
    return {name: count * microseconds for name, count in counts.most_common()}, figures["requests_per_second"]


def processor_seconds(pid: int) -> tuple[float, float]:
    """Return the processor time of the event loop's thread, and of all others."""
    spent = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        spent[int(thread.name)] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return spent.pop(pid), sum(spent.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", choices=LOADS, default="32x32 PNG")
    parser.add_argument("--seconds", type=int, default=10, help="of sampling")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="VARIABLE=VALUE", help="that differ from the defaults"
    )
    options = parser.parse_args()
    load = Load(options.pictures, *LOADS[options.pictures])
    changes = dict(change.split("=", 1) for change in options.settings)
    command = (sys.executable, "-m", "cifar", "serve", "--workers", "1")
    with tempfile.TemporaryDirectory() as folder:
        load.write(Path(folder))
        with running(System("Space", command, changes)) as (pid, _):
            load.drive(8, 1)  # warm
            before = processor_seconds(pid)
            plain = load.drive(CONNECTIONS, options.seconds)
            spent = [
                (after - so_far) / plain["requests"] * 1e6
                for after, so_far in zip(processor_seconds(pid), before, strict=True)
            ]
            held, rate = sample(pid, load, options.seconds)
    locked = sum(held.values())
    print(
        f"{options.pictures}, {CONNECTIONS} connections, 1 worker {' '.join(options.settings)}: {plain['requests_per_second']:.0f} requests/s; "
        f"{spent[0]:.0f} us of processor time a request in the event loop's thread and {spent[1]:.0f} us in others. Sampled "
        f"{RATE} times a second for {options.seconds} s ({rate:.0f} requests/s): the lock is held for {locked * rate / 1e4:.0f} % of the time.\n"
    )
    print("| part | share of the samples | holds the interpreter lock, us a request |\n|---|---|---|")
    for name, microseconds in held.items():
        print(f"| {name} | {microseconds / locked:.1%} | {microseconds:.0f} |")
    print(f"| **all** | | **{locked:.0f}** |")


if __name__ == "__main__":
    main()
