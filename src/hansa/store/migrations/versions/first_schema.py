"""The first schema."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None
OLDEST: Final = 1
"""The schema of the oldest code that may serve this one."""

_TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "client_changes",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("client", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_client_changes")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "schema",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("oldest", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_schema")),
    )
    op.create_table(
        "signing_keys",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("endorsed_by", _TEXT, nullable=True),
        sa.Column("endorsement", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("retired_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("run", _TEXT, nullable=True),
        sa.Column("client", _TEXT, nullable=True),
        sa.Column("detail", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_events_tenant_tenants")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_run_number"), "events", ["run", "number"], unique=False)
    op.create_index(op.f("ix_events_tenant_number"), "events", ["tenant", "number"], unique=False)
    op.create_table(
        "populations",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("admission", _TEXT, nullable=False),
        sa.Column("schema", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("minimum_version", _TEXT, nullable=True),
        sa.Column("numbers", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_populations_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_populations")),
        sa.UniqueConstraint("tenant", "id", name=op.f("uq_populations_tenant_id")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_populations_tenant_name")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("role", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=True),
        sa.Column("revoked_at", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_tokens_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_tokens_digest")),
    )
    op.create_index(op.f("ix_tokens_tenant"), "tokens", ["tenant"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("plan", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("plan_sha256", _TEXT, nullable=False),
        sa.Column("descriptor", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("eligibility", _TEXT, nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("submitted_by", _TEXT, nullable=False),
        sa.Column("submitted_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "population"], ["populations.tenant", "populations.id"], name=op.f("fk_jobs_tenant_populations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("tenant", "id", name=op.f("uq_jobs_tenant_id")),
    )
    op.create_index(op.f("ix_jobs_tenant_submitted_at"), "jobs", ["tenant", "submitted_at"], unique=False)
    op.create_table(
        "profiles",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("attributes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("version", _TEXT, nullable=False),
        sa.Column("consent", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["population"], ["populations.id"], name=op.f("fk_profiles_population_populations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_profiles")),
        sa.UniqueConstraint("population", "digest", name=op.f("uq_profiles_population_digest")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "clients",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=True),
        sa.Column("profile", sa.BigInteger(), nullable=False),
        sa.Column("invitation", _TEXT, nullable=True),
        sa.Column("invited_at", sa.Float(precision=53), nullable=False),
        sa.Column("enrolled_at", sa.Float(precision=53), nullable=True),
        sa.Column("declared_at", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["profile"], ["profiles.id"], name=op.f("fk_clients_profile_profiles")),
        sa.ForeignKeyConstraint(
            ["tenant", "population"],
            ["populations.tenant", "populations.id"],
            name=op.f("fk_clients_tenant_populations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
        sa.UniqueConstraint("population", "name", name=op.f("uq_clients_population_name")),
        sa.UniqueConstraint("population", "number", name=op.f("uq_clients_population_number")),
        sa.UniqueConstraint("population", "public_key", name=op.f("uq_clients_population_public_key")),
    )
    op.create_index("ix_clients_counts", "clients", ["population", "profile", "state"], unique=False)
    op.create_index("ix_clients_eligible", "clients", ["population", "number", "state", "profile"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("job", _TEXT, nullable=False),
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("slots", _TEXT, nullable=True),
        sa.Column("notes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("ended_at", sa.Float(precision=53), nullable=True),
        sa.Column("why", _TEXT, nullable=True),
        sa.Column("lease_owner", _TEXT, nullable=True),
        sa.Column("lease_until", sa.Float(precision=53), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["tenant", "job"], ["jobs.tenant", "jobs.id"], name=op.f("fk_runs_tenant_jobs")),
        sa.ForeignKeyConstraint(
            ["tenant", "population"], ["populations.tenant", "populations.id"], name=op.f("fk_runs_tenant_populations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("tenant", "id", name=op.f("uq_runs_tenant_id")),
    )
    op.create_index(op.f("ix_runs_state"), "runs", ["state"], unique=False)
    op.create_index(op.f("ix_runs_tenant_started_at"), "runs", ["tenant", "started_at"], unique=False)
    op.create_table(
        "invitations",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("population", _TEXT, nullable=False),
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("client", _TEXT, nullable=True),
        sa.Column("expires_at", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["client"], ["clients.id"], name=op.f("fk_invitations_client_clients")),
        sa.ForeignKeyConstraint(["population"], ["populations.id"], name=op.f("fk_invitations_population_populations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("digest", name=op.f("uq_invitations_digest")),
    )
    op.create_table(
        "participation",
        sa.Column("run", _TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("last_round", sa.BigInteger(), nullable=False),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_participation_run_runs")),
        sa.PrimaryKeyConstraint("run", "number", name=op.f("pk_participation")),
    )
    op.create_table(
        "releases",
        sa.Column("tenant", _TEXT, nullable=False),
        sa.Column("run", _TEXT, nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("sha256", _TEXT, nullable=False),
        sa.Column("stage", _TEXT, nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["tenant", "run"], ["runs.tenant", "runs.id"], name=op.f("fk_releases_tenant_runs")),
        sa.PrimaryKeyConstraint("run", "round", name=op.f("pk_releases")),
    )
    op.create_index(op.f("ix_releases_tenant_at"), "releases", ["tenant", "at"], unique=False)
    op.create_index(op.f("ix_releases_tenant_sha256"), "releases", ["tenant", "sha256"], unique=False)
    op.create_table(
        "rounds",
        sa.Column("run", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("cohort_size", sa.BigInteger(), nullable=False),
        sa.Column("population", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.Float(precision=53), nullable=False),
        sa.Column("deadline", sa.Float(precision=53), nullable=True),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("notes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("closed_at", sa.Float(precision=53), nullable=True),
        sa.Column("report", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_rounds_run_runs")),
        sa.PrimaryKeyConstraint("run", "kind", "round", "attempt", name=op.f("pk_rounds")),
    )
    op.create_index(
        "ix_rounds_open",
        "rounds",
        ["run"],
        unique=False,
        postgresql_where=sa.text("state NOT IN ('closed', 'abandoned')"),
        sqlite_where=sa.text("state NOT IN ('closed', 'abandoned')"),
    )
    op.create_index(op.f("ix_rounds_run_opened_at"), "rounds", ["run", "opened_at"], unique=False)
    op.create_index(
        "uq_rounds_counted",
        "rounds",
        ["run", "kind", "round"],
        unique=True,
        postgresql_where=sa.text("state = 'closed' AND kind <> 'evaluation'"),
        sqlite_where=sa.text("state = 'closed' AND kind <> 'evaluation'"),
    )
    op.create_table(
        "assigned",
        sa.Column("run", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("client", _TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("fate", _TEXT, nullable=True),
        sa.Column("notes", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(["client"], ["clients.id"], name=op.f("fk_assigned_client_clients")),
        sa.ForeignKeyConstraint(
            ["run", "kind", "round", "attempt"],
            ["rounds.run", "rounds.kind", "rounds.round", "rounds.attempt"],
            name=op.f("fk_assigned_run_rounds"),
        ),
        sa.PrimaryKeyConstraint("run", "kind", "round", "attempt", "client", name=op.f("pk_assigned")),
        sa.UniqueConstraint(
            "run", "kind", "round", "attempt", "position", name=op.f("uq_assigned_run_kind_round_attempt_position")
        ),
    )
    op.create_table(
        "reports",
        sa.Column("run", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("client", _TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("sha256", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("blob", _TEXT, nullable=False),
        sa.Column("received_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["run", "kind", "round", "attempt", "client"],
            ["assigned.run", "assigned.kind", "assigned.round", "assigned.attempt", "assigned.client"],
            name=op.f("fk_reports_run_assigned"),
        ),
        sa.PrimaryKeyConstraint("run", "kind", "round", "attempt", "client", name=op.f("pk_reports")),
    )
    op.create_table(
        "sum_records",
        sa.Column("run", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("part", sa.BigInteger(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["run", "kind", "round", "attempt"],
            ["rounds.run", "rounds.kind", "rounds.round", "rounds.attempt"],
            name=op.f("fk_sum_records_run_rounds"),
        ),
        sa.PrimaryKeyConstraint("run", "kind", "round", "attempt", "part", "place", name=op.f("pk_sum_records")),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("sum_records")
    op.drop_table("reports")
    op.drop_table("assigned")
    op.drop_index(
        "uq_rounds_counted",
        table_name="rounds",
        postgresql_where=sa.text("state = 'closed' AND kind <> 'evaluation'"),
        sqlite_where=sa.text("state = 'closed' AND kind <> 'evaluation'"),
    )
    op.drop_index(op.f("ix_rounds_run_opened_at"), table_name="rounds")
    op.drop_index(
        "ix_rounds_open",
        table_name="rounds",
        postgresql_where=sa.text("state NOT IN ('closed', 'abandoned')"),
        sqlite_where=sa.text("state NOT IN ('closed', 'abandoned')"),
    )
    op.drop_table("rounds")
    op.drop_index(op.f("ix_releases_tenant_sha256"), table_name="releases")
    op.drop_index(op.f("ix_releases_tenant_at"), table_name="releases")
    op.drop_table("releases")
    op.drop_table("participation")
    op.drop_table("invitations")
    op.drop_index(op.f("ix_runs_tenant_started_at"), table_name="runs")
    op.drop_index(op.f("ix_runs_state"), table_name="runs")
    op.drop_table("runs")
    op.drop_index("ix_clients_eligible", table_name="clients")
    op.drop_index("ix_clients_counts", table_name="clients")
    op.drop_table("clients")
    op.drop_table("profiles")
    op.drop_index(op.f("ix_jobs_tenant_submitted_at"), table_name="jobs")
    op.drop_table("jobs")
    op.drop_index(op.f("ix_tokens_tenant"), table_name="tokens")
    op.drop_table("tokens")
    op.drop_table("populations")
    op.drop_index(op.f("ix_events_tenant_number"), table_name="events")
    op.drop_index(op.f("ix_events_run_number"), table_name="events")
    op.drop_table("events")
    op.drop_table("tenants")
    op.drop_table("signing_keys")
    op.drop_table("schema")
    op.drop_table("client_changes")
