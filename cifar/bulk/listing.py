"""List the input of a bulk run, a folder or a file of paths. The paths are yielded one by one, never all held in memory."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from cifar.errors import BulkError


def paths(source: Path) -> Iterator[str]:
    """Yield the paths of the images, each absolute or relative to `root_of(source)`.

    The source is a folder, which is searched recursively without files and folders whose names begin with a dot; a `.csv` file with
    a column `path`; or a text file with one path per line.

    Raises:
        BulkError: `source` does not exist, cannot be read, or is not such a file.
    """
    try:
        if source.is_dir():
            yield from _files(source, "")
        elif source.suffix.lower() == ".csv":
            yield from _column(source)
        else:
            with source.open(encoding="utf-8-sig") as lines:
                yield from (path for line in lines if (path := line.strip("\r\n")))
    except UnicodeDecodeError as error:
        raise BulkError(f"{source} is not a text file. --input takes a folder, or a file of paths in UTF-8.") from error
    except csv.Error as error:
        raise BulkError(f"{source} is not a valid CSV file: {error}.") from error
    except OSError as error:
        raise BulkError(f"{error.filename or source} cannot be listed: {error.strerror}.") from error


def root_of(source: Path) -> Path:
    """Return the folder that relative paths refer to: the folder itself, or the folder of the file of paths."""
    return (source if source.is_dir() else source.parent).resolve()


def _files(root: Path, below: str) -> Iterator[str]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(below, entry.name)  # noqa: PTH118 - pathlib takes three times as long
            if entry.is_dir(follow_symlinks=False):  # symbolic links to folders may form a cycle
                yield from _files(root, path)
            elif _is_file(entry):
                yield path


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder without permission: its row gets the error
        return True


def _column(source: Path) -> Iterator[str]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        if "path" not in (rows.fieldnames or []):
            raise BulkError(f"{source} has no column path. Its columns: {', '.join(rows.fieldnames or ['none'])}.")
        yield from (row["path"] for row in rows if row["path"])
