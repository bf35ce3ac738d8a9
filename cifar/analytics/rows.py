"""Rows of the records' database as NumPy columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Connection, Select

MAX_ROWS = 100_000
"""The largest number of rows that a report reads; of more rows, it reads the newest."""


def read_columns(connection: Connection, query: Select[Any], limit: int = MAX_ROWS) -> dict[str, np.ndarray]:
    """Run a query whose newest rows come first, and return at most `limit` rows as arrays by column name, oldest first."""
    result = connection.execute(query.limit(limit))
    names = list(result.keys())
    columns = list(zip(*reversed(result.all()), strict=True)) or [()] * len(names)
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}
