"""Measure the throughput and the peak memory of bulk runs.

    PYTHONPATH=. python benchmarks/bulk.py --data DIR

DIR is searched recursively for JPEG files. The upper limit is the Predictor alone, on decoded arrays and with the same number of
threads. Each size runs in a process of its own, so that its peak memory can be measured; if there are too few images, they are repeated.
The output is a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cifar.bulk.run import predict_many
from cifar.cpus import available_cpus
from cifar.images.decode import preprocess
from cifar.models.engines import engine_of
from cifar.models.predictor import Predictor
from cifar.models.rollout import RolloutLog
from cifar.settings import load_settings

BATCH = 32


def model_alone(files: list[Path]) -> float:
    """Return the images per second of the model alone, on decoded images."""
    settings = load_settings()
    predictor = Predictor.load(RolloutLog.of(settings).stable_version(), engine_of(settings))
    pixels = [preprocess(file.read_bytes(), predictor.image, max_pixels=settings.max_image_pixels) for file in files]
    batches = [np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    with ThreadPoolExecutor(available_cpus()) as pool:
        started = time.perf_counter()
        list(pool.map(predictor.answers, batches))
        return len(files) / (time.perf_counter() - started)


def bulk_run(manifest: Path) -> dict[str, float]:
    settings = load_settings()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        predict_many(manifest, Path(folder) / "out", RolloutLog.of(settings).stable_version(), settings)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.manifest:
        print(json.dumps(bulk_run(options.manifest)))
        return
    files = sorted(options.data.resolve().rglob("*.jpg"))
    print("| images | images/s | share of the model alone | peak memory |\n|---|---|---|---|")
    for size in options.sizes:
        alone = model_alone((files * (1 + 4000 // len(files)))[:4000])
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as manifest:
            manifest.writelines(f"{files[i % len(files)]}\n" for i in range(size))
            manifest.flush()
            command = [sys.executable, __file__, "--data", str(options.data), "--manifest", manifest.name]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        measured = json.loads(result.stdout)
        rate = size / measured["seconds"]
        print(
            f"| {size:,} | {rate:,.0f} | {rate / alone:.0%} of {alone:,.0f} | {measured['mebibytes']:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
