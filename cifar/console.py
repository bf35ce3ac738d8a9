"""How commands speak: data to stdout, words to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def say(words: str) -> None:
    """Words for a person."""
    print(f"cifar: {words}", file=sys.stderr)


def print_json(data: Any) -> None:
    """Data for a program."""
    print(json.dumps(data, indent=2))


def print_table(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """These columns of the rows, below their names, for a person and for `cut`."""
    print(*names, sep="\t")
    for row in rows:
        print(*(row[name] for name in names), sep="\t")
