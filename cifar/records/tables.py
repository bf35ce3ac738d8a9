"""The tables of the records. A change here needs a migration in `migrations/versions`.

Times are numbers, seconds since 1970 in UTC, which are the same in SQLite and PostgreSQL. Users are stored as keyed hashes, never as
names or addresses.
"""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column(
        "request_id", String(64), primary_key=True
    ),  # clients may choose ids; the first prediction under an id stays
    Column("at", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("route", String(16), nullable=False),  # the channel: rest, page, gradio or mcp
    Column("user", String(32), nullable=False),  # keyed hash
    Column("label", Text, nullable=False),
    Column("score", Double, nullable=False),
    Column("scores", JSON, nullable=False),  # {label: score} in class order, 6 digits
    Column("ood_score", Double),
    Column("in_distribution", Boolean),
    Column("digest", String(32), nullable=False),  # BLAKE2b-128 of the file
    Column("brightness", Double, nullable=False),  # mean of the model's input, in [0, 1]
    Column("contrast", Double, nullable=False),  # its standard deviation
    Column("seconds", Double, nullable=False),  # from the complete request to its answer
    Column("named", Boolean),  # whether the request named the version; None: recorded before 2026-11-27
    Column("source", String(32)),  # keyed hash of the principal or the address; None: the same
    Index("predictions_at", "at"),
    Index("predictions_model_at", "model", "at"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("request_id", ForeignKey("predictions.request_id", ondelete="CASCADE"), primary_key=True),
    Column("at", Double, nullable=False),
    Column("label", Text, nullable=False),  # one of the version's classes, or `NONE_LABEL`
    Column("note", Text, nullable=False),
    Column("by", String(32), nullable=False),  # keyed hash
    Index("feedback_at", "at"),
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
    Column("distance", Double, nullable=False),  # total variation distance of the scores, in [0, 1]
    Index("comparisons_at", "at"),
)
