"""Export of the records: a table of the predictions, and an image folder for training."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import orjson
from PIL import Image
from sqlalchemy import Engine

from cifar.errors import RecordsError
from cifar.files import new_folder, replacing
from cifar.images.decode import FORMATS
from cifar.records.images import image_path
from cifar.records.reader import read_predictions
from cifar.records.tables import predictions
from cifar.records.values import NONE_LABEL, Row
from cifar.settings import Settings

COLUMNS = (*(column.name for column in predictions.columns), "feedback_label", "feedback_note", "feedback_at")
_TIMES = ("at", "feedback_at")
_ROWS_IN_MEMORY = 10_000


def export_table(engine: Engine, out: Path, kind: str) -> int:
    """Write all predictions with their feedback to a file, and return their number. Times are in UTC, and the scores are a JSON object.

    The file is of the `kind` `csv` or `parquet`. An existing one is replaced, but only when the new one is complete.

    Raises:
        RecordsError: the library for Parquet is not installed.
    """
    with replacing(out) as file:
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
        # RFC 4180's line ends: with another one, `csv` does not quote a note with "\r", which ends a row in spreadsheets
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
        writer.writeheader()
        for row in rows:
            times = {name: row[name] and row[name].isoformat() for name in _TIMES}
            # so that a spreadsheet does not run a note such as "=1+1" as a formula
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
    number, time = pa.float64(), pa.timestamp("us", tz="UTC")
    types = {
        "version": pa.int64(),
        **dict.fromkeys(("in_distribution", "named"), pa.bool_()),
        **dict.fromkeys(("score", "ood_score", "brightness", "contrast", "seconds"), number),
        **dict.fromkeys(_TIMES, time),
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(rows, _ROWS_IN_MEMORY)):
            writer.write_table(pa.Table.from_pylist(some, schema))
            count += len(some)
    return count


def export_images(engine: Engine, settings: Settings, out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Write the stored images that have feedback as an image folder: `train/<class>/*`.

    The latest feedback counts for an image that was uploaded several times. Images of none of the classes are left out. The folder is
    created only when all images could be written.

    Returns:
        The numbers of written images by class, and of omitted images by reason.

    Raises:
        RecordsError: the folder exists already, or there is nothing to write.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordsError(f"{out} exists. Name a new folder with --out.")
    latest: dict[str, Row] = {}
    for row in read_predictions(engine):
        before = latest.get(row["digest"])
        if row["feedback_label"] is not None and (before is None or row["feedback_at"] >= before["feedback_at"]):
            latest[row["digest"]] = row
    written, omitted = Counter[str](), Counter[str]()
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out.resolve()) as new:
        for digest, row in sorted(latest.items()):
            label, source = row["feedback_label"], image_path(settings, digest)
            if label == NONE_LABEL and NONE_LABEL not in row["scores"]:  # otherwise it is a class of that name
                omitted["of none of the classes"] += 1
            elif not source.is_file():
                omitted["not kept"] += 1
            else:
                _copy(source, new / "train" / _folder_name(label))
                written[label] += 1
        if not written:
            raise RecordsError(
                "There is no stored image with feedback. Images are stored while CIFAR_KEEP_UPLOADS=true; feedback is given "
                "on the page and by POST /feedback."
            )
    return written, omitted


def _folder_name(label: str) -> str:
    if label.startswith(".") or "/" in label or os.sep in label:
        raise RecordsError(f"The class {label!r} cannot be a folder's name.")
    return label


def _copy(source: Path, folder: Path) -> None:
    """Copy an image under a name with the extension of its format. People expect one; training reads the content."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(source.read_bytes()), formats=FORMATS) as image:
        suffix = {"JPEG": "jpg", "MPO": "jpg"}.get(str(image.format), str(image.format).lower())
    shutil.copyfile(source, folder / f"{source.name}.{suffix}")
