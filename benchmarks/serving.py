"""How fast the Space answers, beside the tutorial's stack, in one run on one machine.

    python benchmarks/serving.py [--seconds 3] [--rounds 2] [--out benchmarks/results]

Each system serves the same SavedModel in turn; rounds are interleaved, so that a slow minute of the machine meets all
of them. `wrk` drives it over loopback for a bounded time. Prints Markdown and saves it with the raw figures as JSON.
Ratios are to the tutorial's stack in the same round; quote those, not the requests a second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from cifar.training.libraries import library_versions

ROOT = Path(__file__).resolve().parent.parent
PORT = 7990
CONNECTIONS = (1, 8, 64)
LONGEST_START_SECONDS = 120
REFERENCE = "tutorial, 4 sync workers"


@dataclass(frozen=True)
class System:
    """A server to start: what gunicorn runs, and its settings."""

    name: str
    arguments: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)


def space(workers: int, engine: str) -> System:
    settings = {"CIFAR_WORKERS": str(workers), "CIFAR_ENGINE": engine}
    return System(
        f"Space, {engine}, {workers} worker{'s' * (workers > 1)}", ("-c", "gunicorn.conf.py", "app:app"), settings
    )


SYSTEMS = (
    System(REFERENCE, ("-c", "/dev/null", "-w", "4", "-b", f"127.0.0.1:{PORT}", "benchmarks.tutorial_stack:app")),
    space(4, "tensorflow"),
    space(1, "litert"),
    space(2, "litert"),
    space(4, "litert"),
    System("constant, 2 workers", ("-c", "gunicorn.conf.py", "benchmarks.constant_model:app"), {"CIFAR_WORKERS": "2"}),
)


def payloads(folder: Path) -> dict[str, Path]:
    """A small picture, a web picture and a phone's, from one blurred noise."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    made = {}
    for name, size, encoder in (
        ("32x32 PNG", (32, 32), "PNG"),
        ("512x512 JPEG", (512, 512), "JPEG"),
        ("12-megapixel JPEG", (4000, 3000), "JPEG"),
    ):
        buffer = io.BytesIO()
        noise.resize(size, Image.Resampling.BICUBIC).save(buffer, encoder, quality=90)
        made[name] = folder / name.replace(" ", "-")
        made[name].write_bytes(buffer.getvalue())
    return made


@contextmanager
def running(system: System, probe: Path) -> Iterator[tuple[int, float]]:
    """Start a system; yields its process id and the seconds to its first answer."""
    environment = {**os.environ, **system.settings, "CIFAR_PORT": str(PORT), "CIFAR_HOST": "127.0.0.1"}
    command = [sys.executable, "-m", "gunicorn", *system.arguments]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(probe):
            if process.poll() is not None or time.monotonic() - started > LONGEST_START_SECONDS:
                sys.exit(f"{system.name} did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield process.pid, time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(probe: Path) -> bool:
    try:
        response = httpx.post(f"http://127.0.0.1:{PORT}/predict", files={"image": probe.read_bytes()}, timeout=30)
    except httpx.TransportError:
        return False
    return response.status_code == httpx.codes.OK


def drive(payload: Path, connections: int, seconds: int) -> dict[str, float]:
    """Load for a bounded time with `wrk`."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", "benchmarks/post.lua"]
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{PORT}/predict", "--", str(payload)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
    )
    figures: dict[str, float] = json.loads(result.stderr.splitlines()[-1])
    return figures


def memory_mb(pid: int) -> float:
    """PSS over a process and its children: shared pages are counted once."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    kilobytes = 0
    for process in (str(pid), *children):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def measure(systems: tuple[System, ...], files: dict[str, Path], rounds: int, seconds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for round_ in range(rounds):
        for system in systems:
            with running(system, files["32x32 PNG"]) as (pid, first_answer):
                drive(files["32x32 PNG"], 8, 1)  # warm
                for payload, file in files.items():
                    for connections in CONNECTIONS:
                        figures = drive(file, connections, seconds)
                        rows.append(
                            {
                                "round": round_,
                                "system": system.name,
                                "payload": payload,
                                "connections": connections,
                                **figures,
                            }
                        )
                rows.append(
                    {
                        "round": round_,
                        "system": system.name,
                        "memory_mb": memory_mb(pid),
                        "first_answer_seconds": first_answer,
                    }
                )
            print(f"round {round_ + 1} of {rounds}: {system.name}", file=sys.stderr)
    return rows


def as_markdown(rows: list[dict[str, object]], systems: tuple[System, ...], files: dict[str, Path]) -> str:
    """A table for each load: medians over the rounds, least and most, and the ratio to the tutorial's stack."""

    def values(system: str, figure: str, **load: object) -> list[float]:
        wanted = {"system": system, **load}
        return [row[figure] for row in rows if figure in row and all(row.get(k) == v for k, v in wanted.items())]  # type: ignore[misc]

    def cell(system: str, figure: str, digits: int, **load: object) -> str:
        found, reference = values(system, figure, **load), values(REFERENCE, figure, **load)
        ratio = statistics.median(a / b for a, b in zip(found, reference, strict=True) if b)
        return (
            f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f} to {max(found):.{digits}f}) | {ratio:.2f}"
        )

    lines = []
    for payload in files:
        for connections in CONNECTIONS:
            load = {"payload": payload, "connections": connections}
            lines += [f"\n**{payload}, {connections} connections**\n"]
            lines += [
                "| system | requests/s | ratio | p50 ms | ratio | p99 ms | ratio | errors |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for system in systems:
                cells = [
                    cell(system.name, figure, digits, **load)
                    for figure, digits in (("requests_per_second", 0), ("p50_ms", 2), ("p99_ms", 1))
                ]
                lines.append(
                    f"| {system.name} | {' | '.join(cells)} | {sum(values(system.name, 'errors', **load)):.0f} |"
                )
    lines += [
        "\n**Memory and start**\n",
        "| system | PSS of all processes, MB | ratio | start to first answer, s | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.name} | {cell(s.name, 'memory_mb', 0)} | {cell(s.name, 'first_answer_seconds', 1)} |" for s in systems
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="of load for each figure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = payloads(arguments.out)
    try:
        rows = measure(SYSTEMS, files, arguments.rounds, arguments.seconds)
    finally:
        for file in files.values():
            file.unlink()
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "libraries": library_versions(),
    }
    head = f"{about['date']}, {about['cores']} cores {about['processor']}, {arguments.rounds} rounds of {arguments.seconds} s; medians, least and most; "
    head += "ratios to the tutorial's stack in the same round.\n"
    text = head + as_markdown(rows, SYSTEMS, files) + "\n"
    (arguments.out / "serving.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    (arguments.out / "serving.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
