"""The plots of an evaluation report, on a white background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from cifar.format import percent

_BLUE, _RED, _GREY = "#1f5fa8", "#b3261e", "#666666"
_MAX_CLASSES_WITH_NUMBERS = 25
_COLUMNS = 6
_MAX_NAME_CHARACTERS = 16
"""Longer class names are cut, so that neighbouring names do not overlap."""


def draw_report(report: dict[str, Any], images: np.ndarray, folder: Path) -> list[str]:
    """Draw the plots of a report, the result of `evaluate` on the images `(n, height, width, channels)` `uint8`, as PNG files.

    Returns:
        The names of the files: `confusion_matrix.png`, `reliability.png`, and, if the report holds their figures,
        `robustness.png` and `mistakes.png`.
    """
    drawings: dict[str, Callable[[], Figure]] = {
        "confusion_matrix.png": lambda: _confusion_matrix(report),
        "reliability.png": lambda: _reliability(report),
    }
    if report["robustness"]:
        drawings["robustness.png"] = lambda: _robustness(report["robustness"])
    if report["mistakes"]:
        drawings["mistakes.png"] = lambda: _mistakes(report["mistakes"], images)
    with rc_context({"text.parse_math": False}):  # a class name may contain $
        for name, draw in drawings.items():
            draw().savefig(folder / name, dpi=110, facecolor="white")
    return list(drawings)


def _confusion_matrix(report: dict[str, Any]) -> Figure:
    names = [_short(name) for name in report["per_class"]]
    counts = np.array(report["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.55 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class", title="Predictions for each class, in percent")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= _MAX_CLASSES_WITH_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share * 100:.0f}", ha="center", va="center", color=colour, fontsize=9)
    return figure


def _reliability(report: dict[str, Any]) -> Figure:
    bins = report["reliability"]
    filled = [entry for entry in bins if entry["images"]]
    bars = {"width": 1 / len(bins), "align": "edge", "color": _BLUE, "edgecolor": "white"}
    confidence, accuracy = ([entry[name] for entry in filled] for name in ("confidence", "accuracy"))
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar([entry["low"] for entry in filled], accuracy, label="accuracy", **bars)
    above.plot([0, 1], [0, 1], "--", color=_GREY, label="perfect calibration")
    above.plot(confidence, accuracy, "o", color=_RED, markersize=4, label="at the mean confidence of the bin")
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"Calibration error {percent(report['ece'])}")
    above.legend(loc="upper left", fontsize=9)
    below.bar([entry["low"] for entry in bins], [entry["images"] for entry in bins], **bars)
    below.set(xlabel="confidence", ylabel="images")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def _robustness(robustness: dict[str, Any]) -> Figure:
    disturbances = robustness["disturbances"]
    figure = Figure(figsize=(3.0 * len(disturbances), 3.3), layout="constrained")
    undisturbed = robustness["undisturbed"]["accuracy"]
    row = figure.subplots(1, len(disturbances), sharey=True, squeeze=False)[0]
    for axes, (name, disturbance) in zip(row, disturbances.items(), strict=True):
        points = disturbance["points"]
        positions = range(len(points))
        low, high = zip(*(point["interval"] for point in points), strict=True)
        axes.axhline(undisturbed, color=_GREY, linestyle="--", label="accuracy without disturbance")
        axes.fill_between(positions, low, high, color=_BLUE, alpha=0.2)
        axes.plot(positions, [point["accuracy"] for point in points], "o-", color=_BLUE, markersize=4, label="accuracy")
        confidence = [point["confidence"] for point in points]
        axes.plot(positions, confidence, ":", color=_RED, linewidth=2, label="mean confidence")
        axes.set_xticks(positions, [f"{point['strength']:g}" for point in points])
        axes.set(title=name, ylim=(0, 1))
        axes.set_xlabel(disturbance["unit"], fontsize=8)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8, loc="lower left")
    return figure


def _mistakes(mistakes: list[dict[str, Any]], images: np.ndarray) -> Figure:
    rows = -(-len(mistakes) // _COLUMNS)
    figure = Figure(figsize=(1.6 * _COLUMNS, 2.2 * rows), layout="constrained")
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes in cells:
        axes.axis("off")
    for axes, mistake in zip(figure.axes, mistakes, strict=False):
        axes.imshow(images[mistake["image"]].squeeze(), cmap="gray", vmin=0, vmax=255)
        given, true = _short(mistake["given"]), _short(mistake["true"])
        axes.set_title(f"{given} {percent(mistake['confidence'])}\nis {true}", fontsize=8.5)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME_CHARACTERS else f"{name[: _MAX_NAME_CHARACTERS - 1]}…"
