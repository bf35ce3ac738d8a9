"""Plots of loss and accuracy by epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar.training.run.run_folder import Row


def save_curves(history: Sequence[Row], file: Path | BinaryIO) -> None:
    """Plot loss and accuracy of training and validation by epoch, and save the plot as a PNG."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy", "accuracy"), strict=True
    ):
        training_label = "training (augmented, with its own loss)"
        axes.plot(epochs, [row[name] for row in history], "o-", markersize=3, label=training_label)
        axes.plot(epochs, [row[f"val_{name}"] for row in history], "o-", markersize=3, label="validation")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=120, format="png")


class LivePlot:
    """A plot in a notebook that is updated after each epoch: `train(..., on_epoch=LivePlot())`."""

    def __init__(self) -> None:
        self._display: Any = None

    def __call__(self, history: Sequence[Row]) -> None:
        """Show the rows of all epochs so far, in place of the previous plot."""
        from IPython import display  # installed wherever notebooks run; nothing else needs it

        picture = io.BytesIO()
        save_curves(history, picture)
        image = display.Image(picture.getvalue())  # type: ignore[no-untyped-call]
        if self._display is None:
            self._display = display.display(image, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._display.update(image)
