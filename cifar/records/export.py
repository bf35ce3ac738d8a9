"""Records for other programs: a table of the predictions, and an image folder to train on."""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import orjson
from PIL import Image
from sqlalchemy import Engine

from cifar.errors import RecordsError
from cifar.images.decode import FORMATS
from cifar.records.images import kept_path
from cifar.records.reader import Row, read_predictions
from cifar.records.tables import NONE, predictions
from cifar.settings import Settings

COLUMNS = (*(column.name for column in predictions.columns), "feedback_label", "feedback_note", "feedback_at")
_TIMES = ("at", "feedback_at")
_ROWS_AT_ONCE = 10_000


def export_table(engine: Engine, out: Path, kind: str) -> int:
    """Write all predictions, with what was said of them, to a file: whole, or not at all.

    Args:
        engine: see `open_engine`.
        out: the file; one that is there is replaced.
        kind: `csv` or `parquet`.

    Returns:
        How many there were. Times are UTC; scores are a JSON object.

    Raises:
        RecordsError: Parquet's library is not installed.
    """
    with _replacing(out) as file:
        return {"csv": _write_csv, "parquet": _write_parquet}[kind](_cells(engine), file)


def _cells(engine: Engine) -> Iterator[Row]:
    for row in read_predictions(engine):
        row["scores"] = orjson.dumps(row["scores"]).decode()
        for name in _TIMES:
            row[name] = row[name] and datetime.fromtimestamp(row[name], UTC)
        yield row


def _write_csv(rows: Iterator[Row], file: Path) -> int:
    count = 0
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            times = {name: row[name] and row[name].isoformat() for name in _TIMES}
            # a spreadsheet would take a note such as "=1+1" for a formula
            note = re.sub(r"^(?=[=+\-@\t\r])", "'", row["feedback_note"] or "")
            writer.writerow({**row, **times, "feedback_note": note})
            count += 1
    return count


def _write_parquet(rows: Iterator[Row], file: Path) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise RecordsError("Parquet needs the package pyarrow: pip install pyarrow, or export --format csv.") from error
    kinds = {"version": pa.int64(), "in_distribution": pa.bool_()}
    kinds |= dict.fromkeys(("score", "ood_score", "brightness", "contrast", "seconds"), pa.float64())
    kinds |= dict.fromkeys(_TIMES, pa.timestamp("us", tz="UTC"))
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, schema))
            count += len(some)
    return count


def export_images(engine: Engine, settings: Settings, out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Write the kept images that somebody said something of as an image folder, whole or not at all: `train/<class>/*`.

    An image that was asked about several times has the label that was given last. Those of none of the classes have no folder.

    Args:
        engine: see `open_engine`.
        settings: where the images are.
        out: a new folder.

    Returns:
        How many images were written, by class, and how many were left out, by why.

    Raises:
        RecordsError: the folder is there already, or there is nothing to write.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordsError(f"{out} exists. Name a new folder with --out.")
    latest: dict[str, Row] = {}
    for row in read_predictions(engine):
        before = latest.get(row["digest"])
        if row["feedback_label"] is not None and (before is None or row["feedback_at"] >= before["feedback_at"]):
            latest[row["digest"]] = row
    written, left_out = Counter[str](), Counter[str]()
    with _replacing(out.resolve()) as new:
        for digest, row in sorted(latest.items()):
            label, source = row["feedback_label"], kept_path(settings, digest)
            if label == NONE and NONE not in row["scores"]:  # a class of that name is one to train on
                left_out["of none of the classes"] += 1
            elif not source.is_file():
                left_out["not kept"] += 1
            else:
                _copy(source, new / "train" / _folder_name(label))
                written[label] += 1
        if not written:
            raise RecordsError(
                "There is no kept image with feedback. Images are kept while CIFAR_KEEP_UPLOADS=true; feedback comes by the page and POST /feedback."
            )
    return written, left_out


def _folder_name(label: str) -> str:
    if label.startswith(".") or "/" in label or os.sep in label:
        raise RecordsError(f"The class {label!r} cannot be a folder's name.")
    return label


def _copy(source: Path, folder: Path) -> None:
    """Copy an image under a name that says its format, for people: our own reader goes by content."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(source.read_bytes()), formats=FORMATS) as image:
        suffix = {"JPEG": "jpg", "MPO": "jpg"}.get(str(image.format), str(image.format).lower())
    shutil.copyfile(source, folder / f"{source.name}.{suffix}")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A hidden sibling to write to, a file or a folder, which then takes the other's place; gone when writing fails."""
    temporary = out.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
