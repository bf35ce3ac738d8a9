"""What is stored. A change here needs a migration: `migrations/versions`.

Times are seconds since 1970 in UTC, as numbers: the same in SQLite and PostgreSQL. Users are keyed hashes, never names or addresses.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import JSON, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("request_id", String(64), primary_key=True),  # of two predictions under one id the first stays
    Column("at", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("route", String(16), nullable=False),  # rest, page, gradio or mcp
    Column("user", String(32), nullable=False),  # keyed hash
    Column("label", Text, nullable=False),
    Column("score", Double, nullable=False),
    Column("scores", JSON, nullable=False),  # {label: score} in class order, 6 digits
    Column("ood_score", Double),
    Column("in_distribution", Boolean),
    Column("digest", String(32), nullable=False),  # BLAKE2b-128 of the file
    Column("brightness", Double, nullable=False),  # mean of the model's input, in [0, 1]
    Column("contrast", Double, nullable=False),  # its standard deviation
    Column("seconds", Double, nullable=False),  # from the whole request to its answer
    Index("predictions_at", "at"),
    Index("predictions_version_at", "model", "version", "at"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("request_id", ForeignKey("predictions.request_id", ondelete="CASCADE"), primary_key=True),
    Column("at", Double, nullable=False),
    Column("label", Text, nullable=False),  # one of the version's classes, or `NONE`
    Column("note", Text, nullable=False),
    Column("by", String(32), nullable=False),  # keyed hash
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("at", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("shadow_version", Integer, nullable=False),
    Column("agrees", Boolean, nullable=False),  # on the most probable class
    Column("distance", Double, nullable=False),  # total variation of the two score vectors, in [0, 1]
    Index("comparisons_at", "at"),
)

NONE = "none"
"""The label of feedback that says: none of the classes, or the class of that name where a version has one."""


def feedback_labels(class_names: Iterable[str]) -> list[str]:
    """What feedback may say: the classes of the version that answered, and `NONE`, once."""
    return list(dict.fromkeys((*class_names, NONE)))
