"""Measure the Space beside the tutorial's stack, in one run on one machine.

    python benchmarks/serving.py [--seconds 3] [--rounds 2] [--out benchmarks/results] [--peers PYTHON]

Each system serves the same SavedModel, the highest version, in turn. Rounds are interleaved, so that a slow minute of the
machine affects all systems. `wrk` drives it over loopback for a bounded time. Prints Markdown and saves it with the raw figures as JSON.
Ratios are to the tutorial's stack in the same round; quote those, not the requests a second. With `--peers`, the Python of
an environment that has them, plain Gradio, LitServe and BentoML are measured in place of the Space's variants.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from cifar.training.libraries import library_versions

ROOT = Path(__file__).resolve().parent.parent
PORT = 7990
CONNECTIONS = (1, 8, 64)
FORM = "multipart/form-data; boundary=part"
JSON = "application/json"
LONGEST_START_SECONDS = 120
PLAIN = {"CIFAR_CACHE_IMAGES": "0", "CIFAR_ACCESS_LOG": "false"}
"""The load is one image, which the cache would answer, and the other systems log no requests."""
REFERENCE = "tutorial, 4 sync workers"


@dataclass(frozen=True)
class System:
    """A server to start: its command and settings, and how its route is asked."""

    name: str
    command: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    route: str = "/predict"
    kind: str = FORM


def gunicorn(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gunicorn", *arguments)


def space(workers: int, engine: str) -> System:
    settings = {"CIFAR_WORKERS": str(workers), "CIFAR_ENGINE": engine, **PLAIN}
    return System(
        f"Space, {engine}, {workers} worker{'s' * (workers > 1)}",
        gunicorn("-c", "gunicorn.conf.py", "app:app"),
        settings,
    )


TUTORIAL = System(
    REFERENCE, gunicorn("-c", "/dev/null", "-w", "4", "-b", f"127.0.0.1:{PORT}", "benchmarks.tutorial_stack:app")
)
SYSTEMS = (
    TUTORIAL,
    space(2, "tensorflow"),
    space(4, "tensorflow"),
    space(1, "litert"),
    space(2, "litert"),
    space(4, "litert"),
    System(
        "constant, 2 workers",
        gunicorn("-c", "gunicorn.conf.py", "benchmarks.constant_model:app"),
        {"CIFAR_WORKERS": "2", **PLAIN},
    ),
)


def peers(python: str) -> tuple[System, ...]:
    """Beside the tutorial's stack and the Space: what others would take, each as its documentation shows."""
    service = ("-m", "bentoml", "serve", "benchmarks.peers.bento:Classify", "--host", "127.0.0.1", "--port", str(PORT))
    return (
        TUTORIAL,
        space(2, "litert"),
        space(2, "tensorflow"),
        System("LitServe", (python, "benchmarks/peers/lit.py", str(PORT))),
        System("BentoML, 2 workers", (python, *service)),
        System(
            "plain Gradio",
            (python, "benchmarks/peers/plain_gradio.py", str(PORT)),
            route="/gradio_api/run/predict",
            kind=JSON,
        ),
    )


def payloads(folder: Path) -> dict[str, dict[str, Path]]:
    """A small picture, a web picture and a phone's, from one blurred noise: request bodies by kind."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    made = {}
    for name, size, encoder in (
        ("32x32 PNG", (32, 32), "PNG"),
        ("512x512 JPEG", (512, 512), "JPEG"),
        ("12-megapixel JPEG", (4000, 3000), "JPEG"),
    ):
        buffer = io.BytesIO()
        noise.resize(size, Image.Resampling.BICUBIC).save(buffer, encoder, quality=90)
        made[name] = {kind: folder / f"{name}-{i}".replace(" ", "-") for i, kind in enumerate((FORM, JSON))}
        head = b'--part\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
        head += f"Content-Type: image/{encoder.lower()}\r\n\r\n".encode()
        made[name][FORM].write_bytes(head + buffer.getvalue() + b"\r\n--part--\r\n")
        url = f"data:image/{encoder.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        made[name][JSON].write_text(json.dumps({"data": [{"url": url, "meta": {"_type": "gradio.FileData"}}]}))
    return made


@contextmanager
def running(system: System, probe: dict[str, Path]) -> Iterator[tuple[int, float]]:
    """Start a system; yields its process id and the seconds to its first answer."""
    environment = {**os.environ, **system.settings, "CIFAR_PORT": str(PORT), "CIFAR_HOST": "127.0.0.1"}
    started = time.monotonic()
    process = subprocess.Popen(
        system.command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not answers(system, probe):
            if process.poll() is not None or time.monotonic() - started > LONGEST_START_SECONDS:
                sys.exit(f"{system.name} did not start: {' '.join(system.command)}")
            time.sleep(0.05)
        yield process.pid, time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):  # some leave children behind
            os.killpg(process.pid, signal.SIGKILL)


def answers(system: System, probe: dict[str, Path]) -> bool:
    content, headers = probe[system.kind].read_bytes(), {"Content-Type": system.kind}
    try:
        response = httpx2.post(f"http://127.0.0.1:{PORT}{system.route}", content=content, headers=headers, timeout=30)
    except httpx2.TransportError:
        return False
    return response.status_code == httpx2.codes.OK


def drive(system: System, payload: dict[str, Path], connections: int, seconds: int) -> dict[str, float]:
    """Load for a bounded time with `wrk`."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", "benchmarks/post.lua"]
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{PORT}{system.route}", "--", str(payload[system.kind]), system.kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
    )
    figures: dict[str, float] = json.loads(result.stderr.splitlines()[-1])
    return figures


def memory_mb(pid: int) -> float:
    """PSS over a process and all below it: shared pages are counted once."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return own + sum(memory_mb(int(child)) for child in children)


def measure(
    systems: tuple[System, ...], files: dict[str, dict[str, Path]], rounds: int, seconds: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for round_ in range(rounds):
        for system in systems:
            with running(system, files["32x32 PNG"]) as (pid, first_answer):
                drive(system, files["32x32 PNG"], 8, 1)  # warm
                for payload, file in files.items():
                    for connections in CONNECTIONS:
                        figures = drive(system, file, connections, seconds)
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


def as_markdown(rows: list[dict[str, object]], systems: tuple[System, ...], files: dict[str, dict[str, Path]]) -> str:
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
    parser.add_argument("--peers", help="Python of an environment that has gradio, litserve, bentoml and tensorflow")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    arguments.out.mkdir(parents=True, exist_ok=True)
    systems, name = (peers(arguments.peers), "peers") if arguments.peers else (SYSTEMS, "serving")
    with tempfile.TemporaryDirectory() as folder:
        files = payloads(Path(folder))
        rows = measure(systems, files, arguments.rounds, arguments.seconds)
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
    text = head + as_markdown(rows, systems, files) + "\n"
    (arguments.out / f"{name}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    (arguments.out / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
