"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def save_curves(history: Sequence[dict[str, float]], file: Path | BinaryIO) -> None:
    """Draw loss and accuracy by epoch, training against validation, and save them as a PNG."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy", "accuracy"), strict=True
    ):
        axes.plot(epochs, [row[name] for row in history], "o-", markersize=3, label="training (its own views and loss)")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], "o-", markersize=3, label="validation")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=120, format="png")
