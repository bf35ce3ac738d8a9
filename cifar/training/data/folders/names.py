"""What the name of a folder, a table or a cell says: which part it stands for, and which names are the same."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath

from cifar.training.data.folders.contents import TEST, TRAIN, VALIDATION

_PART = re.compile(
    r"(?:\d+[ ._-]*|seg[ _-])?(?:(train(?:ing|val)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?|eval(?:uation)?|holdout))"
    r"(?:[ _-]?(?:set|data|dataset|split|images|imgs|labels))?(?:[ _-]?\d+)?"
)


def part_of(name: str) -> str | None:
    """Return which part a name stands for, in any case."""
    found = _PART.fullmatch(name.strip().casefold())
    return (TRAIN, VALIDATION, TEST)[(found.lastindex or 1) - 1] if found else None


def part_of_folders(path: PurePath) -> str | None:
    """Return the part of the outermost folder of a path that is called like one."""
    return next((part for folder in path.parts[:-1] if (part := part_of(folder))), None)


def key_of(name: str) -> str:
    """Equal for names that differ only in case, in spaces at the ends, or in how a file system writes accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()
