"""Profile one worker under load: how its time per request is divided between parts of the code, at 64 connections.

    python benchmarks/request_profile.py [--payload "32x32 PNG"] [--seconds 7]

`py-spy` samples the stacks of the worker. Each sample counts for the part of its innermost frame. The shares, divided by
the requests answered in that time, give microseconds per request.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import serving

PARTS = {
    "model": ("ai_edge_litert", "cifar/models/engines.py", "cifar/models/predictor.py"),
    "decoding": ("PIL/", "cifar/images/decode.py", "cifar/images/screening.py", "pillow_heif"),
    "form": ("python_multipart", "cifar/serving/rest/forms.py", "starlette/formparsers.py", "tempfile.py"),
    "framework and middleware": ("fastapi", "starlette", "pydantic", "anyio", "cifar/serving/asgi.py"),
    "our route and classifier": ("cifar/serving", "orjson", "json/"),
    "HTTP server and event loop": ("uvicorn", "uvloop", "httptools", "asyncio", "gunicorn", "concurrent/"),
}


def part(stack: str) -> str:
    """Return the part of the innermost frame that belongs to a part."""
    for frame in reversed(stack.split(";")):
        for name, files in PARTS.items():
            if any(file in frame for file in files):
                return name
    return "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payload", default="32x32 PNG")
    parser.add_argument("--seconds", type=int, default=7)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    payload = serving.payloads(folder)[arguments.payload]
    system = serving.space(1, "litert")
    with serving.running(system, payload) as (pid, _):
        worker = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout.split()[0]
        record = ["py-spy", "record", "-p", worker, "-d", str(arguments.seconds), "-r", "400", "-f", "raw"]
        sampler = subprocess.Popen(
            [Path(sys.executable).parent / record[0], *record[1:], "-o", folder / "raw"], stdout=subprocess.DEVNULL
        )
        time.sleep(0.5)
        figures = serving.drive(system, payload, 64, arguments.seconds)
        sampler.wait(60)
    counts: Counter[str] = Counter()
    for line in (folder / "raw").read_text().splitlines():
        stack, samples = line.rsplit(" ", 1)
        counts[part(stack)] += int(samples)
    total = sum(counts.values())
    microseconds = 1e6 / figures["requests_per_second"]
    print(f"{arguments.payload}, 64 connections, one worker: {figures['requests_per_second']:.0f} requests/s\n")
    print("| part | share | microseconds a request |\n|---|---|---|")
    for name, samples in counts.most_common():
        print(f"| {name} | {samples / total:.0%} | {microseconds * samples / total:.0f} |")


if __name__ == "__main__":
    main()
