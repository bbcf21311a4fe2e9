"""Partial sums: in which one of its round the update of a report is."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"
branch_labels = None
depends_on = None
OLDEST: Final = 1
"""The schema of the oldest code that may serve this one: it gives up a round of which a part was folded."""


def upgrade() -> None:
    """Add the column."""
    op.add_column("reports", sa.Column("folded", sa.BigInteger(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("reports", "folded")
