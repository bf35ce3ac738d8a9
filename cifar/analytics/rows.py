"""Rows of the database as columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Connection, Select


def columns(connection: Connection, query: Select[Any], most: int) -> dict[str, np.ndarray]:
    """The first `most` rows of a query as arrays by name, in the opposite order: the oldest first, where the newest came first."""
    result = connection.execute(query.limit(most))
    names = list(result.keys())
    found = list(zip(*reversed(result.all()), strict=True)) or [()] * len(names)
    return {name: np.array(column) for name, column in zip(names, found, strict=True)}
