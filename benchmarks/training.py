"""Compare the accuracy of the tutorial's recipe and of the fast recipe after the same training time on this machine.

    PYTHONPATH=. python benchmarks/training.py --data SOURCE [--rounds N] [--keep DIR]

Each round trains the tutorial's ten epochs, then the fast recipe with a time budget of the same length. The peak rate of the
processor is measured with a product of two 2048 x 2048 float32 matrices. The share of the peak counts the multiplications and
additions of convolutions and dense layers, three times those of the forward pass for each image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from cifar.settings import ROOT
from cifar.training.network.architectures import build_model

SIDE = 2048


def peak() -> float:
    """Measure the GFLOP/s of a float32 matrix product, the best of ten."""
    matrix = tf.random.normal((SIDE, SIDE))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        tf.matmul(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / min(seconds) / 1e9


def gflop_per_image(model: keras.Model) -> float:
    """Count the operations of one forward pass."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = layer.output.shape[1] * layer.output.shape[2] if len(layer.output.shape) == 4 else 1
            total += 2 * positions * int(tf.size(layer.kernel))
    return total / 1e9


def train(data: str, run: Path, *options: str) -> dict[str, Any]:
    subprocess.run(
        [sys.executable, "-m", "cifar", "train", "--data", data, "--out", str(run), *options],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((run / "metrics.json").read_text())


def row(name: str, metrics: dict[str, Any], model: keras.Model, peak_gflops: float) -> list[str]:
    low, high = metrics["test"]["accuracy_interval"]
    history = metrics["history"]
    steady = history[1:-1] or history
    seconds = statistics.median(entry["seconds"] for entry in steady)
    trained = metrics["fitted_images"] * 3 * gflop_per_image(model)
    return [
        name,
        f"{metrics['training_seconds']:.0f} s",
        f"{metrics['test_accuracy']:.3f} ({low:.3f} to {high:.3f}, n = {metrics['test_images']})",
        f"{trained / seconds / peak_gflops:.0%} of {peak_gflops:.0f} GFLOP/s, {metrics['precision']}",
        f"{metrics['data_wait_share']:.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cifar10, or an image folder with its classes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, help="time budget of the fast recipe (default: the training time of the tutorial's)"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder to keep the runs in, for training_curve.py (default: they are removed)"
    )
    arguments = parser.parse_args()
    print("| recipe | training | test accuracy (95 %) | share of the float32 peak | waiting for data |")
    print("|---|---|---|---|---|")
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            runs = (arguments.keep or Path(folder)) / str(number)
            seed = ["--seed", str(number)]
            tutorial = train(arguments.data, runs / "tutorial", "--arch", "tutorial", *seed)
            budget = arguments.seconds or tutorial["training_seconds"]
            before = peak()
            fast = train(arguments.data, runs / "fast", "--time-budget", str(budget), *seed)
            best = max(before, peak())
            for name, metrics in (("tutorial", tutorial), ("fast", fast)):
                print("|", " | ".join(row(name, metrics, build_model(name, 10), best)), "|", flush=True)


if __name__ == "__main__":
    main()
