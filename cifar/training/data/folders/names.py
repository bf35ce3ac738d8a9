"""Interprets the names of folders and tables, and cells: the part that a name stands for, and whether two names are the same."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

from cifar.training.data.folders.contents import PARTS

_PART = re.compile(
    r"(?:\d+[ ._-]*|seg[ _-])?(?:(train(?:ing|val)?)|(val(?:id(?:ation)?)?|dev)|(test(?:s|ing)?|eval(?:uation)?|holdout))"
    r"(?:[ _-]?(?:set|data|dataset|split|images|imgs|labels))?(?:[ _-]?\d+)?"
)


def part_of(name: str) -> str | None:
    """Return the part that a name stands for, in upper or lower case."""
    found = _PART.fullmatch(name.strip().casefold())
    return PARTS[(found.lastindex or 1) - 1] if found else None


def part_of_folders(path: PurePath) -> str | None:
    """Return the part that the outermost of the folders named after a part stands for."""
    return next((part for folder in path.parts[:-1] if (part := part_of(folder))), None)


def key_of(name: str) -> str:
    """Return a key that is equal for names that differ only in case, in spaces at the ends, or in the encoding of accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()
