"""Reading what was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, select

from cifar.records.tables import comparisons, feedback, predictions

_AT_ONCE = 1000

Row = dict[str, Any]


def read_predictions(
    engine: Engine,
    *,
    model: str | None = None,
    version: int | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[Row]:
    """Predictions with what was said of them, the oldest first, a thousand in memory at a time.

    Args:
        engine: see `open_engine`.
        model: only this model's.
        version: only this version's.
        since: seconds since 1970, from which on.
        until: before which.

    Yields:
        The columns of `predictions`, and `feedback_label`, `feedback_note`, `feedback_at`: None where nobody said anything.
    """
    given = [feedback.c[name].label(f"feedback_{name}") for name in ("label", "note", "at")]
    query = select(predictions, *given).join_from(predictions, feedback, isouter=True)
    wanted = {"model": model, "version": version}
    conditions = [predictions.c[name] == value for name, value in wanted.items() if value is not None]
    return _rows(engine, query, predictions, [*conditions, *_between(predictions, since, until)])


def read_comparisons(engine: Engine, *, since: float | None = None, until: float | None = None) -> Iterator[Row]:
    """What shadow versions said beside the served ones, the oldest first: the columns of `comparisons`."""
    return _rows(engine, select(comparisons), comparisons, _between(comparisons, since, until))


def _between(table: Table, since: float | None, until: float | None) -> list[ColumnElement[bool]]:
    conditions = []
    if since is not None:
        conditions.append(table.c.at >= since)
    if until is not None:
        conditions.append(table.c.at < until)
    return conditions


def _rows(engine: Engine, query: Any, table: Table, conditions: list[ColumnElement[bool]]) -> Iterator[Row]:
    with engine.connect().execution_options(yield_per=_AT_ONCE) as connection:
        for row in connection.execute(query.where(*conditions).order_by(table.c.at)).mappings():
            yield dict(row)
