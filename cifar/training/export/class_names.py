"""Reads class names from a list, from a file of any common kind, or from the folders of a data set."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar.errors import ExportError
from cifar.training.data.folders.contents import TRAIN
from cifar.training.data.folders.names import part_of

_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_FILES = frozenset({".txt", ".json", ".csv", ".tsv", ".names", ".labels"})
_HEADERS = frozenset({"class", "classes", "class_name", "label", "labels", "name", "names"})
_KEYS = ("labels", "classes", "class_names", "names", "id2label")
_MAX_CHARACTERS = 200
_LONGEST_FILE_NAME = 255
"""In bytes. Systems refuse to look for a file with a longer name."""


def read_class_names(text: str) -> tuple[str, ...]:
    """Return class names in the order of a model's outputs. A repeated name gets a number: `crane`, `crane (2)`.

    Args:
        text: names separated by commas; or a file: one name a line (also Teachable Machine's `0 name`), a JSON list, a JSON
            object from number to name or from name to number, or a CSV file of one column, or of number and name; or an image
            folder, whose folders are taken in the order of Keras' `image_dataset_from_directory`.

    Raises:
        ExportError: a name is missing or unusable. The message says which one.
    """
    path = Path(text)
    if len(text) < 1000 and all(len(part.encode()) <= _LONGEST_FILE_NAME for part in path.parts):
        if path.is_dir():
            return _checked(_folders(path), text)
        if path.is_file():
            return _checked(_from_file(path), text)
        if path.suffix.lower() in _FILES:
            raise ExportError(f"The file of class names, {text}, does not exist.")
    return _checked([name.strip() for name in text.removesuffix(",").split(",")], "--classes")


def _checked(names: Sequence[Any], source: str) -> tuple[str, ...]:
    """Return usable names, all different.

    Raises:
        ExportError: a name is empty, too long or no text, or there is only one.
    """
    plain = []
    for number, name in enumerate(names, 1):
        text = unicodedata.normalize("NFC", str(name)).strip() if isinstance(name, str | int | float) else ""
        if not text:
            raise ExportError(f"{source}: class name {number} of {len(names)} is empty or no text.")
        if not text.isprintable() and any(unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} for each in text):
            raise ExportError(f"{source}: class name {number} holds a control character: {_short(text)!r}.")
        if len(text) > _MAX_CHARACTERS:
            raise ExportError(
                f"{source}: class name {number} has more than {_MAX_CHARACTERS} characters: {_short(text)!r}."
            )
        plain.append(text)
    if len(plain) < 2:
        raise ExportError(f"{source}: expected at least two class names; got {_short(', '.join(plain))!r}.")
    return _numbered(plain)


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    taken = set(names)
    seen: dict[str, None] = {}
    for name in names:
        new = name
        number = 2
        while new in seen or (new != name and new in taken):
            new = f"{name} ({number})"
            number += 1
        seen[new] = None
    return tuple(seen)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _folders(folder: Path) -> list[str]:
    """Return the names of the class folders. In a data set with parts, they are those of the training part."""
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    names = [name for name in names if name != "__MACOSX"]
    training = [name for name in names if part_of(name) == TRAIN]
    if training and all(map(part_of, names)):
        return _folders(folder / training[0])
    if len(names) == 1:
        return _folders(folder / names[0])
    if not names:
        raise ExportError(f"{folder} holds no folders whose names could be class names.")
    return names


def _from_file(path: Path) -> list[Any]:
    content = path.read_bytes()
    encoding = next((name for mark, name in _ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ExportError(f"{path}, line {line}: this is not UTF-8 text. Save the file as UTF-8.") from error
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in {"[", "{"}:
        return _from_json(text, path)
    lines = text.splitlines()
    if path.suffix.lower() in {".csv", ".tsv"} or sum(map(bool, map(str.strip, lines))) == 1:
        semicolon = bool(lines) and ";" in lines[0] and "," not in lines[0]
        delimiter = "\t" if "\t" in text else ";" if semicolon else ","
        return _from_rows(list(csv.reader(lines, delimiter=delimiter)), path)
    numbered = [re.fullmatch(r"\s*(\d+)(?:\s*[:,;]\s*|\s+)(.*\S)\s*", line) for line in lines if line.strip()]
    if numbered and all(numbered):
        pairs = [(int(match[1]), match[2]) for match in numbered if match]
        if sorted(number for number, _ in pairs) == list(range(len(pairs))):
            return [name for _, name in sorted(pairs)]
    return _without_empty_ends(lines, path)


def _without_empty_ends(lines: list[str], path: Path) -> list[str]:
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    empty = next((number for number, line in enumerate(lines[:last], 1) if not line.strip()), None)
    if empty:
        raise ExportError(
            f"{path}, line {empty}: this line is empty. Write one class name a line, in the order of the outputs."
        )
    return lines[:last]


def _from_json(text: str, path: Path) -> list[Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ExportError(f"{path}, line {error.lineno}: this is not JSON ({error.msg}).") from error
    if isinstance(data, dict):
        data = next((data[key] for key in _KEYS if isinstance(data.get(key), list | dict)), data)
    if isinstance(data, list):
        return data
    if isinstance(data, dict):
        return _by_number(data, path)
    raise ExportError(f'{path}: expected a list of names, or an object such as {{"0": "cat"}} or {{"cat": 0}}.')


def _by_number(data: dict[str, Any], path: Path) -> list[Any]:
    """Return the names of an object `{"0": "cat"}`, `{"cat": 0}` or, as Keras has for ImageNet, `{"0": ["n02", "cat"]}`."""
    by_name = data and all(isinstance(value, int) and not isinstance(value, bool) for value in data.values())
    pairs = [
        (value, key) if by_name else (key, value[-1] if isinstance(value, list) and value else value)
        for key, value in data.items()
    ]
    numbers = {int(number): name for number, name in pairs if str(number).isdecimal()}
    missing = next((number for number in range(len(data)) if number not in numbers), None)
    if missing is not None:
        raise ExportError(
            f"{path}: {len(data)} entries, but none for class {missing}. They are numbered 0 to {len(data) - 1}, each once."
        )
    return [numbers[number] for number in range(len(data))]


def _from_rows(rows: list[list[str]], path: Path) -> list[str]:
    """Return the names in a CSV file: in its one column, in that beside a column of numbers from 0, or in its one row."""
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows.pop()
    if len(rows) == 1:
        return [cell for cell in rows[0] if cell.strip()]
    if rows and rows[0] and rows[0][-1].strip().casefold() in _HEADERS:
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) not in {1, 2} or len(row) != len(rows[0]):
            raise ExportError(
                f"{path}, row {number}: expected one name, or a number and a name; got {_short(','.join(row))!r}."
            )
    if not rows or len(rows[0]) == 1:
        return [row[0] for row in rows]
    first = [row[0].strip() for row in rows]
    by_number = all(cell.isdecimal() for cell in first)
    pairs = [(number, name) if by_number else (name, number) for number, name in rows]
    return [str(name) for name in _by_number({number.strip(): name for number, name in pairs}, path)]


def name_for(names: Sequence[str]) -> str:
    """Return a model's name, allowed in the registry and on a command line, made from its class names."""
    ascii_names = unicodedata.normalize("NFKD", "-".join(names[:4])).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", ascii_names)[:40].strip("-_") or "my-model"


def abridged(names: Sequence[str]) -> str:
    """Return the number of classes and the first three names."""
    shown = ", ".join(_short(name) for name in names[:3])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 3 else ''})"
