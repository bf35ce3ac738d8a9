"""The output of the command `data`: counts, pictures that were left out, and a sheet of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cifar.files import replacing
from cifar.format import text_table
from cifar.training.data.dataset import Dataset
from cifar.training.data.findings import LEFT_OUT
from cifar.training.data.folders.contents import some
from cifar.training.data.split import evenly_spaced

_SHEET_CLASSES = 40
_SHEET_COLUMNS = 10
_SIDE = 96
_MARGIN = 4
_TEXT = 18


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Return the content of a data set: counts by part and class, what was left out and why, and what to know about it."""
    validation = dataset.validation if dataset.validation is not None else np.array([], np.int64)
    contents = dataset.contents
    summary: dict[str, Any] = {
        "source": dataset.source,
        "image": "x".join(map(str, dataset.image_shape)),
        "classes": len(dataset.class_names),
    }
    for part, labels in (
        ("train", np.delete(dataset.train_labels, validation)),
        ("validation", dataset.train_labels[validation]),
        ("test", dataset.test_labels),
    ):
        if part != "validation" or len(labels):
            counts = np.bincount(labels, minlength=len(dataset.class_names)).tolist()
            summary[f"{part}_images"] = len(labels)
            summary[f"{part}_images_by_class"] = dict(zip(dataset.class_names, counts, strict=True))
    return summary | {
        "formats": contents.formats,
        "conversions": contents.conversions,
        "left_out": {reason: len(names) for reason, names in contents.left_out.items()},
        "damaged": len(contents.damaged),
        "findings": dataset.findings(),
    }


def as_text(summary: dict[str, Any], dataset: Dataset) -> str:
    """Format a summary for a terminal: a table of classes and parts, a table of what was left out, and the findings."""
    parts = [part for part in ("train", "validation", "test") if f"{part}_images" in summary]
    rows = [[name, *(summary[f"{part}_images_by_class"][name] for part in parts)] for name in dataset.class_names]
    rows.append(["all", *(summary[f"{part}_images"] for part in parts)])
    sections = [
        f"{summary['source']}: {summary['classes']} classes, {summary['image']}",
        text_table(["class", *parts], rows),
    ]
    left_out = [(len(names), reason, some(names, 2)) for reason, names in dataset.contents.left_out.items()]
    if damaged := dataset.contents.damaged:
        left_out.append(
            (len(damaged), "damaged pictures", some([f"{name} ({why})" for name, why in damaged.items()], 2))
        )
    if left_out:
        sections.append(
            "left out\n" + "\n".join(f"{count:>6,}  {reason}: {names}" for count, reason, names in left_out)
        )
    if summary["formats"]:
        sections.append("formats: " + ", ".join(f"{name} {count:,}" for name, count in summary["formats"].items()))
    if known := [sentence for sentence in summary["findings"] if not sentence.startswith(LEFT_OUT)]:
        sections.append("\n".join(known))
    return "\n\n".join(sections)


def write_sheet(dataset: Dataset, path: Path) -> None:
    """Write a PNG with a row of pictures of each class, as the model sees them: ten evenly spaced ones of the training part.

    Of more than 40 classes the first 40 are shown.
    """
    names = dataset.class_names[:_SHEET_CLASSES]
    height = _SIDE + _TEXT + _MARGIN
    sheet = Image.new("RGB", (_SHEET_COLUMNS * (_SIDE + _MARGIN) + _MARGIN, len(names) * height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT - 5)
    for row, name in enumerate(names):
        positions = np.flatnonzero(dataset.train_labels == row)
        top = _MARGIN + row * height
        draw.text((_MARGIN, top), f"{name}: {len(positions):,} images", "black", font)
        for column, position in enumerate(positions[evenly_spaced(len(positions), _SHEET_COLUMNS)]):
            pixels = dataset.train_images[position]
            picture = Image.fromarray(pixels.squeeze() if pixels.shape[2] == 1 else pixels)
            picture = picture.resize(
                (_SIDE, _SIDE), Image.Resampling.NEAREST if picture.width < _SIDE else Image.Resampling.BOX
            )
            sheet.paste(picture, (_MARGIN + column * (_SIDE + _MARGIN), top + _TEXT))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary:
        sheet.save(temporary, "PNG")


def write_damaged(dataset: Dataset, path: Path) -> None:
    """Write the name and the problem of every damaged picture, one a line, separated by a tab."""
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(f"{name}\t{reason}\n" for name, reason in dataset.contents.damaged.items()),
            encoding="utf-8",
            errors="replace",
        )
