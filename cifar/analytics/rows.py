"""Rows of the records' database as NumPy columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Connection, Select

MAX_ROWS = 100_000
"""The largest number of rows that a report reads; of more rows, it reads the newest."""
_ROWS_AT_ONCE = 1000
"""Rows that are made into arrays while no other thread can run: about a millisecond."""


def read_columns(connection: Connection, query: Select[Any], limit: int = MAX_ROWS) -> dict[str, np.ndarray]:
    """Run a query whose newest rows come first, and return at most `limit` rows as arrays by column name, oldest first."""
    result = connection.execute(query.limit(limit).execution_options(yield_per=_ROWS_AT_ONCE))
    names = list(result.keys())
    parts = [[np.array(column) for column in zip(*rows, strict=True)] for rows in result.partitions()]
    columns = [np.concatenate(column)[::-1] for column in zip(*parts, strict=True)] or [np.empty(0)] * len(names)
    return dict(zip(names, columns, strict=True))
