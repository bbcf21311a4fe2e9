"""Who called lately, as replicas tell each other."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"
branch_labels = None
depends_on = None
OLDEST: Final = 1
"""The schema of the oldest code that may serve this one: it picks from those who called the replica that picks."""

_TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "recent_callers",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("callers", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["population"], ["populations.id"], name=op.f("fk_recent_callers_population_populations")
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_recent_callers")),
    )
    op.create_index(op.f("ix_recent_callers_population_at"), "recent_callers", ["population", "at"], unique=False)


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("recent_callers")
