"""Which images there are: a folder or a manifest as a stream of paths. No list of all is ever made."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from cifar.errors import BulkError


def paths(source: Path) -> Iterator[str]:
    """The images of a source, each relative to `root_of(source)` or absolute.

    Args:
        source: a folder, all of whose files are taken but those whose names begin with a dot; a `.csv` file with a
            column `path`; or a text file of a path a line.

    Raises:
        BulkError: it is not there, cannot be read, or is no such file.
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
        raise BulkError(f"{source} is no text: --input takes a folder, or a file of paths in UTF-8.") from error
    except csv.Error as error:
        raise BulkError(f"{source} is no CSV: {error}.") from error
    except OSError as error:
        raise BulkError(f"{error.filename or source} cannot be listed: {error.strerror}.") from error


def root_of(source: Path) -> Path:
    """What relative paths are relative to: the folder, or the one that the manifest is in."""
    return (source if source.is_dir() else source.parent).resolve()


def _files(root: Path, below: str) -> Iterator[str]:
    with os.scandir(root / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(below, entry.name)  # noqa: PTH118 - pathlib takes three times as long
            if entry.is_dir(follow_symlinks=False):  # a link may lead round in a circle
                yield from _files(root, path)
            elif _is_file(entry):
                yield path


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder that is closed to us: its row will say so
        return True


def _column(source: Path) -> Iterator[str]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        if "path" not in (rows.fieldnames or []):
            raise BulkError(f"{source} needs a column path; it has: {', '.join(rows.fieldnames or ['nothing'])}.")
        yield from (row["path"] for row in rows if row["path"])
