"""Finds the files that the cells of a table refer to."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from cifar.training.data.folders.names import key_of, part_of

_MAX_ALIKE = 20
"""Of more files that fit equally well, none is meant."""

Tails = dict[tuple[str, ...], list[Path]]


class Files:
    """Finds files below a folder by relative paths, paths of another machine, addresses, and names without folder or ending.

    Case and the encoding of accents do not matter if only one file fits.
    """

    def __init__(self, folder: Path, *, contained: bool, part: str | None = None, below: Path | None = None) -> None:
        """Look for paths relative to `folder`.

        Args:
            folder: the table's folder.
            contained: no path may lead out of `folder`.
            part: of files that fit equally well, the one in a folder of this part is meant.
            below: the folder in which names are looked for; by default `folder`.
        """
        self._folder = folder
        self._contained = contained
        self._part = part
        self._below = below or folder
        self._by_name: dict[str, list[Path]] | None = None
        self._by_tail: dict[str, Tails] = {}
        self.repeated: dict[str, list[Path]] = {}
        """The files of each cell for which more than one fits."""

    def find(self, cell: str) -> Path | None:
        """Return the file, or None if there is none, or more than one that fits equally well."""
        written = cell.strip().replace("\\", "/")
        if not written.strip("./") or "\0" in cell:
            return None
        leads_outside = Path(written).is_absolute() or ".." in written.split("/")
        try:
            path = Path(os.path.normpath(self._folder / written))
            if not (self._contained and leads_outside) and path.is_file():
                return path
        except OSError:  # a name that is too long
            return None
        for name in (written, unquote(written), unquote(re.split("[?#]", written)[0])):
            parts = [part for part in name.split("/") if part not in {"", "."}]
            if parts and (candidates := self._index().get(key_of(parts[-1]))):
                return self._best(candidates, parts, cell)
        return None

    def _best(self, candidates: list[Path], parts: Sequence[str], cell: str) -> Path | None:
        """Return the candidate that has the most of the written folders in common; of several, the one that other signs point to."""
        if len(candidates) > 1:
            tails = self._tails(key_of(parts[-1]), candidates)
            written = tuple(map(key_of, reversed(parts[:-1])))
            candidates = next(
                tails[written[:count]] for count in range(len(written), -1, -1) if written[:count] in tails
            )
        for sign in (
            lambda path: path.is_relative_to(self._folder),
            lambda path: self._part in map(part_of, path.relative_to(self._below).parts[:-1]),
            lambda path: parts[-1] in {path.name, path.stem},
        ):
            if 1 < len(candidates) <= _MAX_ALIKE:
                candidates = [path for path in candidates if sign(path)] or candidates
        if len(candidates) > 1:
            self.repeated[cell] = candidates
            return None
        return candidates[0]

    def _tails(self, name: str, candidates: list[Path]) -> Tails:
        """Return the files of this name by their last folders, from the file upwards, for each number of folders."""
        if name not in self._by_tail:
            tails = self._by_tail[name] = defaultdict(list)
            for path in candidates:
                folders = tuple(map(key_of, reversed(path.relative_to(self._below).parts[:-1])))
                for count in range(len(folders) + 1):
                    tails[folders[:count]].append(path)
        return self._by_tail[name]

    def _index(self) -> dict[str, list[Path]]:
        """Return the files by name with and without ending."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in sorted(self._below.rglob("*")):
                if path.is_file() and path.suffix.lower() not in {".csv", ".tsv", ".txt", ".xml", ".json"}:
                    for name in {key_of(path.name), key_of(path.stem)}:
                        self._by_name[name].append(path)
        return self._by_name
