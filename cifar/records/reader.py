"""Reading predictions with their feedback."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, select

from cifar.records.tables import feedback, predictions
from cifar.records.values import Row

_ROWS_IN_MEMORY = 1000


def read_predictions(engine: Engine) -> Iterator[Row]:
    """Yield all predictions with their feedback, the oldest first.

    Yields:
        The columns of `predictions`, and `feedback_label`, `feedback_note` and `feedback_at`, which are None without feedback.
    """
    columns = [feedback.c[name].label(f"feedback_{name}") for name in ("label", "note", "at")]
    query = select(predictions, *columns).join_from(predictions, feedback, isouter=True).order_by(predictions.c.at)
    with engine.connect().execution_options(yield_per=_ROWS_IN_MEMORY) as connection:
        for row in connection.execute(query).mappings():
            yield dict(row)
