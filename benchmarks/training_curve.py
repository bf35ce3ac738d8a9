"""Plot accuracy over minutes of training, one line for each run: `python benchmarks/training_curve.py runs/a runs/b`.

Reads history.csv of each run (`seconds` of each epoch, and `val_accuracy` on the images held out from training).
"""

from __future__ import annotations

import argparse
import csv
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure


def read_curve(run: Path) -> tuple[list[float], list[float]]:
    """Return the minutes since the start and the validation accuracy in [0, 1] after each epoch."""
    file = run / "history.csv"
    try:
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        minutes = list(accumulate(float(row["seconds"]) / 60 for row in rows))
        accuracy = [float(row["val_accuracy"]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(
            f"{file} is not a history of a run ({type(error).__name__}: {error}). Pass run folders."
        ) from error
    if not rows:
        raise SystemExit(f"{file} has no epoch yet.")
    return minutes, accuracy


def draw(runs: list[Path], out: Path) -> None:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        minutes, accuracy = read_curve(run)
        label = f"{run.name}: {accuracy[-1] * 100:.1f} % after {minutes[-1]:.1f} min"
        axes.plot(minutes, accuracy, "o-", markersize=3, label=label)
    axes.set(xlabel="minutes of training", ylabel="accuracy of the held-out images", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(out, dpi=120, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("training.png"), help="default: %(default)s")
    arguments = parser.parse_args()
    draw([run.resolve() for run in arguments.runs], arguments.out)
    print(arguments.out)
