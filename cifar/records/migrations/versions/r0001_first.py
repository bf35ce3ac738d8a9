"""The first tables: predictions, feedback and comparisons."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("route", sa.String(16), nullable=False),
        sa.Column("user", sa.String(32), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("ood_score", sa.Double),
        sa.Column("in_distribution", sa.Boolean),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("brightness", sa.Double, nullable=False),
        sa.Column("contrast", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
    op.create_index("predictions_at", "predictions", ["at"])
    op.create_index("predictions_version_at", "predictions", ["model", "version", "at"])
    op.create_table(
        "feedback",
        sa.Column(
            "request_id", sa.String(64), sa.ForeignKey("predictions.request_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("by", sa.String(32), nullable=False),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("shadow_version", sa.Integer, nullable=False),
        sa.Column("agrees", sa.Boolean, nullable=False),
        sa.Column("distance", sa.Double, nullable=False),
    )
    op.create_index("comparisons_at", "comparisons", ["at"])
