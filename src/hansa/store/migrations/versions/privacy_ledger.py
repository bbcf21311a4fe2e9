"""The privacy ledger: scopes with a budget, the populations in them, and the rows of their chains."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None
OLDEST: Final = 1
"""The schema of the oldest code that may serve this one: it runs no plan that spends privacy."""

_TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "ledger_scopes",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("unit", _TEXT, nullable=False),
        sa.Column("adjacency", _TEXT, nullable=False),
        sa.Column("delta", sa.Float(precision=53), nullable=False),
        sa.Column("epsilon_limit", sa.Float(precision=53), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("head", _TEXT, nullable=False),
        sa.Column("accountant", _TEXT, nullable=False),
        sa.Column("spent", _TEXT, nullable=False),
        sa.Column("restored_at", sa.Float(precision=53), nullable=True),
        sa.Column("restored_row", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_ledger_scopes_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_scopes")),
        sa.UniqueConstraint("tenant", "id", name=op.f("uq_ledger_scopes_tenant_id")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_ledger_scopes_tenant_name")),
    )
    op.create_table(
        "ledger_populations",
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("scope", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "population"],
            ["populations.tenant", "populations.id"],
            name=op.f("fk_ledger_populations_tenant_populations"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "scope"],
            ["ledger_scopes.tenant", "ledger_scopes.id"],
            name=op.f("fk_ledger_populations_tenant_ledger_scopes"),
        ),
        sa.PrimaryKeyConstraint("population", name=op.f("pk_ledger_populations")),
    )
    op.create_index(op.f("ix_ledger_populations_scope"), "ledger_populations", ["scope"], unique=False)
    op.create_table(
        "ledger_rows",
        sa.Column("scope", _TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("key", _TEXT, nullable=True),
        sa.Column("run", _TEXT, nullable=True),
        sa.Column("noise_row", sa.BigInteger(), nullable=True),
        sa.Column("event", _TEXT, nullable=True),
        sa.Column("content", _TEXT, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["scope"], ["ledger_scopes.id"], name=op.f("fk_ledger_rows_scope_ledger_scopes")),
        sa.PrimaryKeyConstraint("scope", "number", name=op.f("pk_ledger_rows")),
        sa.UniqueConstraint("run", "noise_row", name=op.f("uq_ledger_rows_run_noise_row")),
    )
    op.create_index(op.f("ix_ledger_rows_key_number"), "ledger_rows", ["key", "number"], unique=False)
    for name, where in (("reserved", "kind = 'reserve'"), ("settled", "kind IN ('commit', 'void')")):
        op.create_index(
            f"uq_ledger_rows_{name}",
            "ledger_rows",
            ["key"],
            unique=True,
            postgresql_where=sa.text(where),
            sqlite_where=sa.text(where),
        )


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("ledger_rows")
    op.drop_table("ledger_populations")
    op.drop_table("ledger_scopes")
