"""Output of commands: data to stdout, messages to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def say(message: str) -> None:
    print(f"cifar: {message}", file=sys.stderr)


def with_notes(error: Exception) -> str:
    """Return an error's message with its notes, which are for operators and not for HTTP clients."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])


def json_text(data: Any) -> str:
    return json.dumps(data, indent=2)


def print_table(columns: Iterable[str], rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print these columns of the rows below a header line, separated by tabs so that `cut` can read them; or all as JSON."""
    if as_json:
        print(json_text(rows))
        return
    print(*columns, sep="\t")
    for row in rows:
        print(*(row[name] for name in columns), sep="\t")


def print_report(report: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values, one a line, or JSON. A value may itself be a dictionary."""
    if as_json:
        print(json_text(report))
        return
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name:<20} {entry}")
        else:
            print(f"{key}: {value}")
