"""The record of reading a folder of pictures: the files that were read and left out, and notes for the user."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PARTS = TRAIN, VALIDATION, TEST = "train", "validation", "test"

HIDDEN_FILES = "hidden files and files of operating systems"
HIDDEN_FOLDERS = "hidden folders"
HIDDEN_PICTURES = "pictures in hidden folders"
SIDE_FILES = "files that are not pictures"
BROKEN_LINKS = "broken links"
UNOPENED = "folders that cannot be opened"
NO_FILES = "entries that are neither file nor folder"
LOOPS = "links to a folder that contains them"
TOO_DEEP = "folders that are nested too deep"
NO_PICTURES = "folders without pictures"
OUTSIDE_CLASSES = "pictures outside the class folders"
BESIDE_PARTS = "pictures in folders beside the parts"
WITHOUT_CLASSES = "pictures of parts without class folders"
UNSAFE_MEMBERS = "members of the archive with unsafe or repeated paths"
MISSING_ROWS = "rows whose picture is missing or not unique"
UNLABELLED_ROWS = "rows without a label"
UNLISTED = "pictures that the table does not list"
OTHER_ROWS = "rows whose part is not known"
REPEATED_ROWS = "rows that repeat another row"

OTHER_TABLES = (".json", ".jsonl", ".parquet", ".feather", ".xls", ".xlsx", ".ods", ".csv.gz", ".mat")
"""Endings of tables that are not read."""


@dataclass
class Contents:
    """The findings of reading a folder, an archive or a table of pictures."""

    names: list[str] = field(default_factory=list)
    """The path of each training picture and then of each test picture, relative to the source."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """The relative paths of files and folders that were left out, by reason."""
    damaged: dict[str, str] = field(default_factory=dict)
    """The reason why a picture could not be decoded, by its relative path."""
    formats: dict[str, int] = field(default_factory=dict)
    """Number of pictures of each file format."""
    conversions: dict[str, int] = field(default_factory=dict)
    """Number of pictures that lose something in the conversion to 8-bit RGB, by what they lose."""
    notes: list[str] = field(default_factory=list)
    """Sentences that say how the folder was understood."""
    few_photographs: bool = False
    """True if the pictures are photographs, and too few to train a network on them alone."""

    @property
    def hint(self) -> str:
        """A sentence on files that may contain the labels, with a space in front; empty if there are none."""
        tables = [name for name in self.left_out.get(SIDE_FILES, []) if name.lower().endswith(OTHER_TABLES)]
        return f" {some(tables, 1)} may hold labels: save it as a .csv file, with a column of paths." if tables else ""

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(printable(name))

    def leave_out_paths(self, reason: str, paths: Iterable[Path], root: Path) -> None:
        """Record paths below the folder that names are relative to."""
        for path in paths:
            self.leave_out(reason, path.relative_to(root).as_posix())


def printable(name: str) -> str:
    """Return a file name that can be printed and stored: one that is not UTF-8 gets replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")


def some(names: list[str], shown: int = 3) -> str:
    """List the first names and the number of the others."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
