"""Reads tables of paths and labels: CSV, TSV and the text files that spreadsheets write."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cifar.errors import DataError
from cifar.training.data.folders.contents import (
    MISSING_ROWS,
    OTHER_ROWS,
    REPEATED_ROWS,
    TEST,
    TRAIN,
    UNLABELLED_ROWS,
    Contents,
    some,
)
from cifar.training.data.folders.layout import Classes, Layout, check_layout
from cifar.training.data.folders.lookup import Files
from cifar.training.data.folders.names import part_of, part_of_folders

TABLE_ENDINGS = frozenset({".csv", ".tsv", ".txt"})

_PATH_NAME = re.compile("(?!$)(image|img|file|picture|photo)?(path|file|filename|name|id|url)?s?")
_LABEL_NAME = re.compile(
    "(class|label|category)(name)?|labels|classes|categories|choice|target|species|breed|diagnosis|tag|kind|type|dx|y"
)
_BEST_LABEL_NAMES = (re.compile("(class|label|category)name"), re.compile("class|label"))
_PART_NAME = re.compile("splits?|(data)?set|subset|part|partition|usage|phase")
_FLAG = re.compile("is(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?:set)?")
"""Names of columns of yes and no for one part, such as is_valid."""
_ONE_HOT = {"0": False, "1": True, "0.0": False, "1.0": True, "-1": False, "false": False, "true": True}
_NO_LABEL = frozenset({"nan", "<na>"})
"""Texts that pandas writes for a missing label."""
_TRIED_ROWS = 50
"""Number of rows whose pictures are looked for, to find the column of the paths."""

Row = list[str]


@dataclass(frozen=True)
class _Columns:
    """The columns of a table, by their meaning."""

    path: int
    label: Callable[[Row], str]
    """Returns the label, empty if the row has none."""
    part: int | None
    """The column that names the part, if there is one."""
    unused: tuple[str, ...] = ()
    """The names of the other columns."""


def read_tables(
    tables: Mapping[str, Path], where: str, contents: Contents, *, contained: bool, below: Path | None = None
) -> Layout:
    """Read the pictures and labels that tables list.

    The delimiter, the encoding, the header and the columns are recognised. Paths are relative to the table's folder; a
    path of another machine, or a name without folder or ending, is looked for below that folder, or below another one.

    Args:
        tables: a table by part. A table of the training part may have a column that names the part of each row.
        where: what the tables belong to, for messages.
        contents: gets the rows that are left out.
        contained: only files below a table's folder may be read, since the table came out of an archive.
        below: the folder in which names are looked for; by default the table's.

    Raises:
        DataError: a file is no such table, none of its pictures exists, or a picture has two labels.
    """
    parts: dict[str, Classes] = {TRAIN: {}}
    for own_part, table in tables.items():
        for path, (label, part) in _read(table, contents, contained=contained, below=below).items():
            parts.setdefault(part or own_part, {}).setdefault(label, []).append(path)
    labels = parts[TRAIN].keys()
    if several := [label for label in labels if ({*re.split(r"[\s,;|]+", label)} - {label}) & labels]:
        contents.notes.append(
            f"Cells that seem to hold several labels are read as one class each: {some(several)}. Each picture has one class."
        )
    parts[TRAIN] = dict(sorted(parts[TRAIN].items(), key=lambda item: _by_number(item[0])))
    return check_layout(Layout(parts, unsplit=len(parts) == 1), where, contents)


def has_labels(table: Path, below: Path) -> bool:
    """Return whether a table has a column of pictures and one of labels. A competition's list of test pictures has no labels."""
    try:
        _recognise(table, _rows(table), Files(table.parent, contained=True, below=below))
    except DataError:
        return False
    return True


def _by_number(name: str) -> tuple[bool, int, str]:
    """Return a sort key: 10 after 9, and names after numbers."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def _read(
    table: Path, contents: Contents, *, contained: bool, below: Path | None
) -> dict[Path, tuple[str, str | None]]:
    """Return the label and the part of each picture that a table lists."""
    rows = _rows(table)
    files = Files(table.parent, contained=contained, part=part_of(table.stem), below=below)
    columns, rows = _recognise(table, rows, files)
    if columns.unused:
        contents.notes.append(f"Columns of {table.name} that are not used: {some(list(columns.unused))}.")
    found: dict[Path, tuple[str, str | None]] = {}
    conflicts: list[str] = []
    for row in rows:
        cell, label = row[columns.path].strip(), columns.label(row)
        part = None if columns.part is None else part_of(row[columns.part])
        path = files.find(cell)
        if path is None:
            contents.leave_out(MISSING_ROWS, cell or "(no path)")
        elif not label:
            contents.leave_out(UNLABELLED_ROWS, cell)
        elif columns.part is not None and not part:
            contents.leave_out(OTHER_ROWS, cell)
        elif path not in found:
            found[path] = label, part
        elif found[path] == (label, part):
            contents.leave_out(REPEATED_ROWS, cell)
        else:
            conflicts.append(cell)
    if conflicts:
        raise DataError(
            f"{table} has two labels for {some(conflicts)}. Each picture has one class: keep one row of each picture."
        )
    return found if columns.part is not None else _with_parts_of_folders(found, below or table.parent, contents)


def _with_parts_of_folders(
    found: dict[Path, tuple[str, str | None]], root: Path, contents: Contents
) -> dict[Path, tuple[str, str | None]]:
    """Take the parts from the folders if all pictures lie in folders that are called like parts."""
    parts = {path: part_of_folders(path.relative_to(root)) if path.is_relative_to(root) else None for path in found}
    if None in parts.values() or not {TRAIN} < {*parts.values()}:
        return found
    contents.notes.append("The table names no parts; they are those of the folders.")
    return {path: (label, parts[path]) for path, (label, _) in found.items()}


def _rows(table: Path) -> list[Row]:
    """Return the rows that are not empty, without empty columns, all of one length."""
    try:
        lines = _decoded(table.read_bytes()).splitlines(keepends=True)  # for line breaks in quotes
        first = next((line for line in lines if line.strip()), "")
        if first.lower().startswith("sep="):  # Excel's note of the delimiter
            lines.remove(first)
            first = next(iter(lines), "")
        delimiter = max("\t;,|", key=first.count)
        if delimiter in first:
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
            rows = [row for row in reader if any(map(str.strip, row))]
        else:  # a path, a space and a label
            rows = [row for line in lines if (row := line.rsplit(None, 1))]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table of paths and labels ({error}).") from error
    columns = [column for column in itertools.zip_longest(*rows, fillvalue="") if any(map(str.strip, column))]
    if len(columns) < 2:
        raise DataError(f"{table} does not have two columns. It needs a column of paths and a column of labels.")
    return [list(row) for row in zip(*columns, strict=True)]


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")  # Excel's "Unicode text"
    if b"\0" in content[:2]:
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _recognise(table: Path, rows: list[Row], files: Files) -> tuple[_Columns, list[Row]]:
    """Return the columns of a table, and its rows without the header."""
    plain = ["".join(character for character in cell.casefold() if character.isalnum()) for cell in rows[0]]
    named = [bool(_PATH_NAME.fullmatch(name)) for name in plain]
    path = _path_column(rows[: _TRIED_ROWS + 1], named, files)
    if path is None:
        raise DataError(_without_pictures(table, rows, files))
    # A first row whose picture is missing is not a header, and a header stays one if a picture has the name of its cell.
    first = rows[0][path]
    has_header = sum([named[path], not _ending(first), files.find(first) is None]) > 1
    others = [column for column in range(len(plain)) if column != path]
    if not has_header:
        if len(others) > 1:
            raise DataError(f"{table} has {len(plain)} columns and no header. Add a first row such as path,label.")
        return _Columns(path, _cell(others[0]), None), rows
    names, rows = rows[0], rows[1:]
    part = next((column for column in others if _is_part_column(plain[column], [row[column] for row in rows])), None)
    others = [column for column in others if column != part]
    flags = {column: part_of(found[1]) for column in others if (found := _FLAG.fullmatch(plain[column]))}
    if flags and part is None and all(_flag(row, column) is not None for row in rows for column in flags):
        other = TEST if TRAIN in flags.values() else TRAIN
        rows = [[*row, next((flags[column] or "" for column in flags if _flag(row, column)), other)] for row in rows]
        part = len(plain)
        others = [column for column in others if column not in flags]
    labels = [column for column in others if _LABEL_NAME.fullmatch(plain[column])]
    if labels or len(others) == 1:
        best = min(
            labels or others,
            key=lambda column: ([not name.fullmatch(plain[column]) for name in _BEST_LABEL_NAMES], column),
        )
        return _Columns(
            path,
            _cell(best),
            part,
            tuple(name for column in others if column != best and (name := names[column].strip())),
        ), rows
    if all(_flag(row, column) is not None for row in rows for column in others):
        return _Columns(path, _one_hot(table, {column: names[column].strip() for column in others}), part), rows
    raise DataError(
        f"{table} has no column that is called label or class; its columns: {some(names, 8)}. Rename the one with the class names."
    )


def _path_column(rows: list[Row], named: list[bool], files: Files) -> int | None:
    """Return the column whose cells name files. Numbers, such as an index or labels, may also be names of files by chance."""
    ranks = []
    for column, is_named in enumerate(named):
        found = {path: row[column] for row in rows if (path := files.find(row[column]))}
        ranks.append((any(map(_ending, found.values())), len(found), is_named))
    best = max(ranks)
    return ranks.index(best) if best[1] else None


def _ending(cell: str) -> str:
    return Path(cell.strip()).suffix


def _without_pictures(table: Path, rows: list[Row], files: Files) -> str:
    if files.repeated:
        cell, paths = next(iter(files.repeated.items()))
        return (
            f"{table} names pictures that are there more than once, such as {cell[:80]!r} ({some([str(path) for path in paths], 2)}). Write the "
            "folder into each path, or move the others away."
        )
    return (
        f"{table} lists no picture that exists below {table.parent}; a row begins with {rows[-1][0][:80]!r}. A table has a column of paths "
        "relative to its folder, or of names of files below it, and a column of labels."
    )


def _flag(row: Row, column: int) -> bool | None:
    return _ONE_HOT.get(row[column].strip().lower())


def _is_part_column(name: str, cells: list[str]) -> bool:
    return bool(_PART_NAME.fullmatch(name)) and any(map(part_of, cells))


def _cell(column: int) -> Callable[[Row], str]:
    return lambda row: "" if row[column].strip().lower() in _NO_LABEL else row[column].strip()


def _one_hot(table: Path, names: dict[int, str]) -> Callable[[Row], str]:
    """Read the label from a column for each class, with a 1 in one of them."""

    def label(row: Row) -> str:
        found = [name for column, name in names.items() if _ONE_HOT[row[column].strip().lower()]]
        if len(found) > 1:
            raise DataError(f"{table} gives a picture several classes ({some(found)}); each picture must have one.")
        return "".join(found)

    return label
