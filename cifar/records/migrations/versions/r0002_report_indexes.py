"""Indexes for the A/B report and the drift report, which read the newest rows of a model."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("predictions_model_at", "predictions", ["model", "at"])
    op.create_index("feedback_at", "feedback", ["at"])
    op.drop_index("predictions_version_at", "predictions")


def downgrade() -> None:
    op.create_index("predictions_version_at", "predictions", ["model", "version", "at"])
    op.drop_index("feedback_at", "feedback")
    op.drop_index("predictions_model_at", "predictions")
