"""Columns that keep the A/B test honest: whether the request named the version, and a hash of the address it came from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("predictions", sa.Column("named", sa.Boolean))
    op.add_column("predictions", sa.Column("source", sa.String(32)))


def downgrade() -> None:
    op.drop_column("predictions", "source")
    op.drop_column("predictions", "named")
