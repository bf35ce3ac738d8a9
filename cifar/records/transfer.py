"""Moves journal lines into the database: one statement for each table, in which the database parses the lines itself.

Reading the lines in Python would hold the interpreter lock, for which the event loop of the same process waits up to 5 ms at a time.
Inside the statement, the lock is free. Only when the database refuses the lines does Python look at them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import JSON, Engine, Text, bindparam, cast, column, func, select, true
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from cifar.records.database import insert
from cifar.records.tables import comparisons, predictions

log = logging.getLogger(__name__)

TABLES = {"predictions": predictions, "comparisons": comparisons}
"""The tables whose rows pass the journal."""


def line_of(table: str, row: dict[str, Any]) -> bytes:
    """Return a row as a line of the journal. `scores` must be JSON in a string, so that the database only copies it."""
    return orjson.dumps({table: row}, option=orjson.OPT_APPEND_NEWLINE)


def insert_lines(engine: Engine, lines: list[bytes], *, on_drop: Callable[[int], object]) -> None:
    """Insert the rows in lines of a journal (`line_of`), except those that exist.

    Other lines, and rows that the database refuses, are left out; `on_drop` is called with their number.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the lines are not the cause: the database is down or has other tables.
    """
    if not lines:
        return
    try:
        _insert(engine, lines)
    except (SQLAlchemyError, UnicodeDecodeError) as error:
        readable = [line for line in map(_readable, lines) if line]
        if readable != lines:
            insert_lines(engine, readable, on_drop=on_drop)
            if dropped := len(lines) - len(readable):
                on_drop(dropped)
        elif not isinstance(error, DataError | IntegrityError):
            raise
        elif len(lines) > 1:
            for half in (lines[: len(lines) // 2], lines[len(lines) // 2 :]):
                insert_lines(engine, half, on_drop=on_drop)
        else:
            log.warning("the database refused a record: %s", str(error.orig).partition("\n")[0])
            on_drop(1)


def _insert(engine: Engine, lines: list[bytes]) -> None:
    array = f"[{b','.join(lines).decode()}]"
    with engine.begin() as connection:
        for table in TABLES:
            if table == "predictions" or f'"{table}":' in array:  # never inside a string: its quotes are escaped
                connection.execute(_statement(connection.dialect.name, table), {"lines": array})


@lru_cache
def _statement(dialect: str, table: str) -> Any:
    """Return the statement that inserts the rows of one table from `lines`, a JSON array of objects `{table: row}`.

    A line that is not a comparison counts as a prediction, so that none is lost silently: the database refuses a row without columns.
    """
    columns = TABLES[table].columns
    values: list[Any]
    if dialect == "sqlite":
        line: Any = func.json_each(bindparam("lines")).table_valued("value", name="line")
        source, comparison = line, func.json_type(line.c.value, "$.comparisons")
        values = [func.json_extract(line.c.value, f"$.{table}.{each.name}") for each in columns]
    else:
        array = cast(bindparam("lines"), postgresql.JSONB)
        line = func.jsonb_array_elements(array).table_valued(column("value", postgresql.JSONB), name="line")
        typed = [column(each.name, Text() if isinstance(each.type, JSON) else each.type) for each in columns]
        row = func.jsonb_to_record(line.c.value[table]).table_valued(*typed, name="row")
        row = row.render_derived(with_types=True)
        source, comparison = line.join(row, true()), line.c.value["comparisons"]
        values = [cast(row.c[each.name], each.type) for each in columns]
    belongs = comparison.is_not(None) if table == "comparisons" else comparison.is_(None)
    rows = select(*values).select_from(source).where(belongs)
    return insert(dialect, TABLES[table]).from_select(columns.keys(), rows).on_conflict_do_nothing()


def _readable(line: bytes) -> bytes | None:
    """Return a line as `line_of` writes it; None when it was cut off by a power failure or is not of this project."""
    try:
        content = orjson.loads(line)
        if isinstance(content, list):  # until 2026-11-26: [table, row], with scores that were not rounded
            name, row = content
            return line_of(name, rounded(row) if name == "predictions" else row)
        ((name, row),) = content.items()
        flat = not any(isinstance(value, dict | list) for value in row.values())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return line if name in TABLES and flat else None


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Round the scores of a prediction to six digits, in place, and turn `scores` into JSON in a string."""
    scores = row["scores"]
    row["score"] = round(row["score"], 6)
    row["scores"] = _scores_format(tuple(scores)) % tuple(scores.values())
    return row


@lru_cache
def _scores_format(labels: tuple[str, ...]) -> str:
    """Return a format that writes scores as JSON. It takes a third of the time of `round` for each of ten scores."""
    names = (orjson.dumps(label).decode().replace("%", "%%") for label in labels)
    return "{" + ",".join(f"{name}:%.6f" for name in names) + "}"
