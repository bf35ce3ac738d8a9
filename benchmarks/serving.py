"""Measure the Space as shipped beside the tutorial's stack, in one run on one machine: `make bench`.

    python -m benchmarks.serving [--rounds 3] [--seconds 2] [--quick] [--out benchmarks/results]

Both serve the same versions: the first one and the one that is served by default. The Space has its default settings. Every picture
that `wrk` sends is another one. Rounds alternate between the systems, so that a slow minute of the machine affects all of them.
A second table takes one part away at a time; a third one loads the server with heat maps and batches at the same time. Prints
Markdown for docs/performance.md and saves it with the figures of each round. Quote the ratios, which are taken within each round.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.load import LOADS, PORT, ROOT, URL, Load, System, encoded, memory_mb, metric, picture, running
from cifar.models.registry import Registry, Version
from cifar.models.rollout import RolloutLog
from cifar.settings import Settings

TUTORIAL, ONE, TWO = "tutorial, 4 workers", "Space, 1 worker", "Space, 2 workers"
WHOLE = "as shipped"
CONNECTIONS = {"32x32 PNG": (1, 8, 64), "512x512 JPEG": (1, 8, 64), "12-megapixel JPEG": (1, 8)}
LIBRARIES = ("tensorflow-cpu", "ai-edge-litert", "numpy", "pillow", "uvicorn", "gunicorn", "flask")
UNITS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
Row = dict[str, Any]


def gunicorn(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gunicorn", *arguments)


def tutorial(version: Version) -> System:
    command = gunicorn("-c", "/dev/null", "-w", "4", "-b", f"127.0.0.1:{PORT}", "benchmarks.tutorial_stack:app")
    return System(TUTORIAL, command, {"BENCH_MODEL": str(version.path)})


def space(workers: int, version: int | None = None) -> System:
    """The Space. One worker is what `make run` starts."""
    command = (sys.executable, "-m", "cifar", "serve", "--workers", str(workers))
    chosen = {"CIFAR_MODEL_VERSION": str(version)} if version else {}
    return System(ONE if workers == 1 else TWO, command, chosen)


def without(part: str, **environment: str) -> System:
    """The default version on two workers, without one part."""
    stripped = "BENCH_WITHOUT" in environment
    command = gunicorn("-c", "gunicorn.conf.py", "benchmarks.stripped:app") if stripped else space(2).command
    return System(part, command, {"CIFAR_WORKERS": "2", **environment})


PARTS = (
    without(WHOLE),
    without("without records", CIFAR_RECORDS="false"),
    without("without the access log", CIFAR_ACCESS_LOG="false"),
    without("without middleware", BENCH_WITHOUT="middleware"),
    without("without the answer cache", CIFAR_CACHE_IMAGES="0"),
    without("a constant instead of the model", BENCH_WITHOUT="model"),
    without("with a rate limit (off by default)", CIFAR_RATE_LIMIT_PREDICT="1000000/second"),
)


# ---- measuring ----
class Bench:
    """The pictures, and the figures so far: one row for each load of each system in each round."""

    def __init__(self, folder: Path, seconds: int) -> None:
        self.loads = tuple(Load(name, *shape) for name, shape in LOADS.items())
        self.png, self.jpeg, _ = self.loads
        for load in self.loads:
            load.write(folder)
        self.batches = [zip_of(1000, seed) for seed in range(4)]
        self.seconds = seconds
        self.rows: list[Row] = []

    def compare(self, round_: int, version: int, system: System) -> None:
        """Measure a system with all pictures and numbers of connections, its memory and its start."""
        about: Row = {"table": "compare", "round": round_, "version": version, "system": system.name}
        with running(system) as (pid, first_answer):
            self.png.drive(8, 1)  # warm
            for load in self.loads:
                for connections in CONNECTIONS[load.name]:
                    self._measure(about, load, connections)
            figures = {"memory_mb": memory_mb(pid), "first_answer_seconds": first_answer}
            self.rows.append({**about, **figures, "cache_hits": cache_hits(system)})

    def take_away(self, round_: int, system: System) -> None:
        """Measure a system without one part. The whole one is then measured beside heat maps and batches too."""
        about: Row = {"table": "parts", "round": round_, "system": system.name}
        with running(system):
            self.png.drive(8, 1)
            self._measure(about, self.png, 1)
            self._measure(about, self.png, 64)
            if system.name == WHOLE:
                self._measure({**about, "table": "beside", "system": "nothing"}, self.png, 64)
                for other, run in (("heat maps", self._explain), ("batches", self._classify_batches)):
                    self._beside({**about, "table": "beside", "system": other}, run)

    def _beside(self, about: Row, other: Callable[[threading.Event, int], None]) -> None:
        ended = threading.Event()
        with ThreadPoolExecutor() as pool:
            clients = [pool.submit(other, ended, number) for number in range(2)]
            time.sleep(1)
            started, done = time.monotonic(), other_images()
            self._measure(about, self.png, 64)
            self.rows[-1]["beside_per_second"] = (other_images() - done) / (time.monotonic() - started)
            ended.set()
        for client in clients:
            client.result()  # raises if it failed

    def _measure(self, about: Row, load: Load, connections: int) -> None:
        figures = load.drive(connections, self.seconds)
        figures["tail"] = figures["p99_ms"] / figures["p50_ms"] if figures["p50_ms"] else 0
        self.rows.append({**about, "pictures": load.name, "connections": connections, **figures})

    def _explain(self, _: threading.Event, number: int) -> None:
        load = replace(self.jpeg, sent=(number + 1) * 10**9)  # other serial numbers
        load.drive(2, self.seconds + 2, "/explain")

    def _classify_batches(self, ended: threading.Event, number: int) -> None:
        with httpx2.Client(base_url=f"{URL}/gradio_api", timeout=120) as client:
            for archive in itertools.cycle(self.batches[number::2]):
                (path,) = client.post("/upload", files={"files": ("photos.zip", archive)}).raise_for_status().json()
                files = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
                call = client.post("/call/v2/predict_batch", json={"files": files}).raise_for_status().json()
                with client.stream("GET", f"/call/v2/predict_batch/{call['event_id']}") as stream:
                    for _ in stream.iter_raw():
                        if ended.is_set():
                            return


def zip_of(count: int, seed: int) -> bytes:
    random, buffer = np.random.default_rng(1000 + seed), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}.png", encoded(picture(random, 32, 32), "PNG"))
    return buffer.getvalue()


def cache_hits(system: System) -> float:
    return 0 if system.name == TUTORIAL else metric(r'cifar_cache_total\{.*result="hit"')


def other_images() -> float:
    """Images that batches have classified, and heat maps answered."""
    batches = metric(r'cifar_images_total\{.*route="batch"')
    return batches + metric(r'request_count(_total)?\{endpoint="/explain".*status="200"')


# ---- tables ----
class Tables:
    """Medians over the rounds with least and most, and ratios to another system in the same round."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def values(self, figure: str, **wanted: Any) -> list[float]:
        return [row[figure] for row in self.rows if figure in row and wanted.items() <= row.items()]

    def cell(self, figure: str, digits: int = 0, **wanted: object) -> str:
        return spread(self.values(figure, **wanted), digits)

    def ratio(self, figure: str, to: str, digits: int = 2, **wanted: object) -> str:
        pairs = zip(self.values(figure, **wanted), self.values(figure, **{**wanted, "system": to}), strict=True)
        return spread([mine / other for mine, other in pairs if other], digits)

    def against(self, figure: str, to: str, digits: int, **wanted: object) -> str:
        """The ratio, and the two medians that it compares."""
        both = [self.values(figure, **{**wanted, "system": system}) for system in (wanted["system"], to)]
        mine, other = (f"{statistics.median(values):,.{digits}f}" for values in both)
        return f"**{self.ratio(figure, to, **wanted)}**: {mine}, {other}"

    def summary(self, versions: list[int]) -> list[str]:
        """The Space with two workers against the tutorial's stack, and against one worker."""
        small, web, phone = ({"pictures": name} for name in LOADS)
        lines = table("", *(f"version {version}" for version in versions))
        for text, figure, digits, to, load in (
            ("requests/s, 32x32 PNG, 64 connections", "requests_per_second", 0, TUTORIAL, small | at(64)),
            ("requests/s, 512x512 JPEG, 64 connections", "requests_per_second", 0, TUTORIAL, web | at(64)),
            ("requests/s, 12-megapixel JPEG, 8 connections", "requests_per_second", 0, TUTORIAL, phone | at(8)),
            ("p50 in ms, 32x32 PNG, 1 connection", "p50_ms", 2, TUTORIAL, small | at(1)),
            ("p99 in ms, 32x32 PNG, 1 connection", "p99_ms", 2, TUTORIAL, small | at(1)),
            ("memory in MB, PSS of all processes", "memory_mb", 0, TUTORIAL, {}),
            ("seconds from the start to the first answer", "first_answer_seconds", 1, TUTORIAL, {}),
            ("p99 over p50, 32x32 PNG, 64 connections", "tail", 1, None, small | at(64)),
            ("p99 over p50, 512x512 JPEG, 64 connections", "tail", 1, None, web | at(64)),
            (
                "against one worker: requests/s, 32x32 PNG, 64 connections",
                "requests_per_second",
                0,
                ONE,
                small | at(64),
            ),
            (
                "against one worker: requests/s, 512x512 JPEG, 64 connections",
                "requests_per_second",
                0,
                ONE,
                web | at(64),
            ),
        ):
            keys = [{"table": "compare", "version": version, "system": TWO, **load} for version in versions]
            cells = [
                self.against(figure, to, digits, **key) if to else self.cell(figure, digits, **key) for key in keys
            ]
            lines.append(f"| {text} | {' | '.join(cells)} |")
        return lines

    def compared(self, version: int) -> list[str]:
        """All figures of one version."""
        systems = list(dict.fromkeys(row["system"] for row in self.rows if row.get("version") == version))
        lines = [f"\n### Version {version}\n"]
        lines += table(
            "picture, connections", "system", "requests/s", "ratio", "p50 ms", "ratio", "p99 ms", "p99/p50", "errors"
        )
        for name, numbers in CONNECTIONS.items():
            for connections, system in itertools.product(numbers, systems):
                key = {"table": "compare", "version": version, "system": system, "pictures": name, **at(connections)}
                rate, p50 = self.cell("requests_per_second", **key), self.cell("p50_ms", 2, **key)
                rates, p50s = self.ratio("requests_per_second", TUTORIAL, **key), self.ratio("p50_ms", TUTORIAL, **key)
                rest = f"{self.cell('p99_ms', 1, **key)} | {self.cell('tail', 1, **key)} | {sum(self.values('errors', **key)):.0f}"
                lines.append(f"| {name}, {connections} | {system} | {rate} | {rates} | {p50} | {p50s} | {rest} |")
        lines += ["", *table("system", "PSS of all processes, MB", "ratio", "start to first answer, s", "ratio")]
        for system in systems:
            key = {"table": "compare", "version": version, "system": system}
            memory = f"{self.cell('memory_mb', **key)} | {self.ratio('memory_mb', TUTORIAL, **key)}"
            start = (
                f"{self.cell('first_answer_seconds', 1, **key)} | {self.ratio('first_answer_seconds', TUTORIAL, **key)}"
            )
            lines.append(f"| {system} | {memory} | {start} |")
        return lines

    def parts(self) -> list[str]:
        lines = table(
            "", "requests/s at 64", f"times '{WHOLE}'", "p50 ms at 1", "p99 ms at 1", f"p99 at 1, times '{WHOLE}'"
        )
        for part in PARTS:
            many, single = ({"table": "parts", "system": part.name, **at(connections)} for connections in (64, 1))
            rate = f"{self.cell('requests_per_second', **many)} | {self.ratio('requests_per_second', WHOLE, **many)}"
            times = f"{self.cell('p50_ms', 2, **single)} | {self.cell('p99_ms', 2, **single)} | {self.ratio('p99_ms', WHOLE, **single)}"
            lines.append(f"| {part.name} | {rate} | {times} |")
        return lines

    def beside(self) -> list[str]:
        lines = table(
            "`POST /predict` beside",
            "requests/s at 64",
            "p50 ms",
            "p99 ms",
            "p99/p50",
            "errors",
            "of these images a second",
        )
        for other in ("nothing", "heat maps", "batches"):
            key = {"table": "beside", "system": other}
            cells = [
                self.cell(figure, digits, **key)
                for figure, digits in (("requests_per_second", 0), ("p50_ms", 1), ("p99_ms", 1), ("tail", 1))
            ]
            speed = self.cell("beside_per_second", 1, **key) if other != "nothing" else ""
            lines.append(f"| {other} | {' | '.join(cells)} | {sum(self.values('errors', **key)):.0f} | {speed} |")
        return lines


def at(connections: int) -> dict[str, int]:
    return {"connections": connections}


def table(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def spread(values: list[float], digits: int) -> str:
    if not values:  # in a short run, nothing was answered
        return "-"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}..{high})"


# ---- the run ----
def about_the_machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout.split()[1]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": cpu.get("model name", platform.machine()),
        "units": [unit for unit in UNITS if unit in cpu.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
        "libraries": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
            "wrk": wrk,
        },
        "command": f"python -m benchmarks.serving {' '.join(sys.argv[1:])}".strip(),
    }


def heading(about: dict[str, Any], bench: Bench, rounds: int) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in about["libraries"].items())
    pictures = ", ".join(f"{load.name} ({load.bytes_each / 1000:,.1f} kB)" for load in bench.loads)
    absent = ", ".join(unit for unit in UNITS if unit not in about["units"]) or "none"
    return (
        f"{about['date']}, {about['cores']} cores of {about['processor']} (has {', '.join(about['units'])}; lacks {absent}), load average "
        f"before the run {about['load_average_before']}; {libraries}. `{about['command']}`: n = {rounds} rounds of {bench.seconds} s for each figure. "
        f"Pictures: {pictures}; {sum(Tables(bench.rows).values('cache_hits')):.0f} answers came from the cache."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of load for each figure")
    parser.add_argument(
        "--quick", action="store_true", help="one round of 1 s, the default version only: about 2 minutes"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    rounds, seconds = (1, 1) if options.quick else (options.rounds, options.seconds)
    defaults = Settings.model_construct()  # whatever the environment says
    registry, default = Registry(defaults.registry, defaults.model_name), RolloutLog.of(defaults).stable_version()
    versions = (
        [default] if options.quick else [registry.get(n) for n in sorted({registry.numbers()[0], default.number})]
    )
    about = about_the_machine()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seconds)
        for round_ in range(rounds):
            for version in versions:
                chosen = None if version == default else version.number
                for system in (tutorial(version), space(1, chosen), space(2, chosen)):
                    print(f"round {round_ + 1} of {rounds}: version {version.number}, {system.name}", file=sys.stderr)
                    bench.compare(round_, version.number, system)
            for part in PARTS:
                print(f"round {round_ + 1} of {rounds}: {part.name}", file=sys.stderr)
                bench.take_away(round_, part)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serving.json").write_text(json.dumps({"about": about, "rows": bench.rows}, indent=1) + "\n")
    tables, numbers = Tables(bench.rows), [version.number for version in versions]
    text = "\n".join(
        [
            f"{heading(about, bench, rounds)}\n",
            *tables.summary(numbers),
            f"\n**One part less** (version {default.number}, 2 workers, 32x32 PNG)\n",
            *tables.parts(),
            f"\n**Beside other work** (version {default.number}, 2 workers, 32x32 PNG)\n",
            *tables.beside(),
            *itertools.chain.from_iterable(tables.compared(number) for number in numbers),
        ]
    )
    (options.out / "serving.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
