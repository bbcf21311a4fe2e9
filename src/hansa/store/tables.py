"""The tables of the database, for SQLite and PostgreSQL alike.

What must never happen twice is a unique constraint here, not a rule of the code: a number, an assignment, a report, a
closed attempt of a round. Rows of different tenants cannot refer to each other: the tenant is part of the reference.
Times are Unix seconds; JSON is kept as text, so that numbers come back as they were.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA: Final = 4
"""The schema that this code was written for; each migration raises it by one."""

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Compared byte by byte in both databases: the same order everywhere, and fast."""
_COUNTER: Final = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts by itself only in a column of this very type."""
_ROUND: Final = ("run", "kind", "round", "attempt")


def _text(name: str) -> Column[str]:
    return Column(name, _TEXT, nullable=False)


def _perhaps_text(name: str) -> Column[str]:
    return Column(name, _TEXT)


def _integer(name: str, *, default: str | None = None) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=None if default is None else text(default))


def _time(name: str) -> Column[float]:
    return Column(name, Float(53), nullable=False)


def _perhaps_time(name: str) -> Column[float]:
    return Column(name, Float(53))


def _json(name: str) -> Column[Any]:
    return Column(name, JSON(none_as_null=True), nullable=False)


def _round_columns() -> list[Column[Any]]:
    return [_text("run"), _text("kind"), _integer("round"), _integer("attempt")]


schema = Table(
    "schema", METADATA, Column("number", Integer, primary_key=True), Column("oldest", Integer, nullable=False)
)
"""One row: the schema's number, and that of the oldest code that may still serve it."""

tenants = Table("tenants", METADATA, Column("id", _TEXT, primary_key=True), _text("name"), UniqueConstraint("name"))

tokens = Table(
    "tokens",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("tenant"),
    _text("role"),
    _text("name"),
    _text("digest"),
    _perhaps_time("expires_at"),
    _perhaps_time("revoked_at"),
    UniqueConstraint("digest"),
    ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    Index(None, "tenant"),
)

populations = Table(
    "populations",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("tenant"),
    _text("name"),
    _text("admission"),
    _json("schema"),
    _perhaps_text("minimum_version"),
    _integer("numbers", default="0"),  # how many numbers its clients were given
    UniqueConstraint("tenant", "name"),
    UniqueConstraint("tenant", "id"),
    ForeignKeyConstraint(["tenant"], ["tenants.id"]),
)

profiles = Table(
    "profiles",
    METADATA,
    Column("id", _COUNTER, primary_key=True),
    _text("population"),
    _text("digest"),
    _json("attributes"),
    _text("version"),
    Column("consent", Boolean, nullable=False),
    UniqueConstraint("population", "digest"),
    ForeignKeyConstraint(["population"], ["populations.id"]),
    sqlite_autoincrement=True,  # a profile that is gone gives nobody its number
)

clients = Table(
    "clients",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("tenant"),
    _text("population"),
    _integer("number"),
    _text("name"),
    _text("state"),
    Column("public_key", LargeBinary),
    _integer("profile"),
    _perhaps_text("invitation"),  # by which it enrolled
    _time("invited_at"),
    _perhaps_time("enrolled_at"),
    _perhaps_time("declared_at"),  # by its own clock, when it last declared something else
    UniqueConstraint("population", "number"),
    UniqueConstraint("population", "name"),
    UniqueConstraint("population", "public_key"),
    ForeignKeyConstraint(["tenant", "population"], ["populations.tenant", "populations.id"]),
    ForeignKeyConstraint(["profile"], ["profiles.id"]),
    # whether thousands of numbers are eligible, and how many are, is read from these alone
    Index("ix_clients_eligible", "population", "number", "state", "profile"),
    Index("ix_clients_counts", "population", "profile", "state"),
)

recent_callers = Table(
    "recent_callers",
    METADATA,
    Column("number", _COUNTER, primary_key=True),
    _text("population"),
    _time("at"),
    Column("callers", LargeBinary, nullable=False),
    ForeignKeyConstraint(["population"], ["populations.id"]),
    Index(None, "population", "at"),
)

invitations = Table(
    "invitations",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("population"),
    _text("digest"),
    _integer("uses"),
    _integer("used"),
    _perhaps_text("client"),
    _perhaps_time("expires_at"),
    UniqueConstraint("digest"),
    ForeignKeyConstraint(["population"], ["populations.id"]),
    ForeignKeyConstraint(["client"], ["clients.id"]),
)

client_changes = Table(
    "client_changes",
    METADATA,
    Column("number", _COUNTER, primary_key=True),
    _text("client"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("tenant"),
    _text("population"),
    _text("name"),
    _json("plan"),
    _text("plan_sha256"),
    _text("descriptor"),
    _text("model"),
    _text("eligibility"),
    _integer("priority"),
    _text("submitted_by"),
    _time("submitted_at"),
    UniqueConstraint("tenant", "id"),
    ForeignKeyConstraint(["tenant", "population"], ["populations.tenant", "populations.id"]),
    Index(None, "tenant", "submitted_at"),
)

runs = Table(
    "runs",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("tenant"),
    _text("job"),
    _text("population"),
    _text("state"),
    _integer("version"),
    _integer("round"),
    _text("model"),
    _perhaps_text("slots"),
    _json("notes"),
    _integer("priority"),
    _time("started_at"),
    _perhaps_time("ended_at"),
    _perhaps_text("why"),
    _perhaps_text("lease_owner"),
    Column("lease_until", Float(53), nullable=False, server_default=text("0")),
    UniqueConstraint("tenant", "id"),
    ForeignKeyConstraint(["tenant", "job"], ["jobs.tenant", "jobs.id"]),
    ForeignKeyConstraint(["tenant", "population"], ["populations.tenant", "populations.id"]),
    Index(None, "tenant", "started_at"),
    Index(None, "state"),
)

_OPEN: Final = text("state NOT IN ('closed', 'abandoned')")
_COUNTED: Final = text("state = 'closed' AND kind <> 'evaluation'")

rounds = Table(
    "rounds",
    METADATA,
    *_round_columns(),
    _text("state"),
    _integer("version"),
    _text("model"),
    _integer("cohort_size"),
    _integer("population"),
    _time("opened_at"),
    _perhaps_time("deadline"),
    Column("key", LargeBinary, nullable=False),
    _json("notes"),
    _perhaps_time("closed_at"),
    Column("report", JSON(none_as_null=True)),
    PrimaryKeyConstraint(*_ROUND),
    ForeignKeyConstraint(["run"], ["runs.id"]),
    Index("ix_rounds_open", "run", postgresql_where=_OPEN, sqlite_where=_OPEN),
    # no two attempts of a round are counted; an evaluation may be repeated with everybody
    Index("uq_rounds_counted", "run", "kind", "round", unique=True, postgresql_where=_COUNTED, sqlite_where=_COUNTED),
    Index(None, "run", "opened_at"),
)

assigned = Table(
    "assigned",
    METADATA,
    *_round_columns(),
    _text("client"),
    _integer("number"),
    _integer("position"),
    _perhaps_text("fate"),
    _json("notes"),
    PrimaryKeyConstraint(*_ROUND, "client"),
    UniqueConstraint(*_ROUND, "position"),
    ForeignKeyConstraint(_ROUND, [f"rounds.{name}" for name in _ROUND]),
    ForeignKeyConstraint(["client"], ["clients.id"]),
)

reports = Table(
    "reports",
    METADATA,
    *_round_columns(),
    _text("client"),
    _integer("position"),
    _text("sha256"),
    _integer("size"),
    _text("blob"),
    _time("received_at"),
    _integer("folded", default="0"),  # in which partial sum its update is, the first is 1; 0: in none
    PrimaryKeyConstraint(*_ROUND, "client"),
    ForeignKeyConstraint([*_ROUND, "client"], [f"assigned.{name}" for name in (*_ROUND, "client")]),
)

sum_records = Table(
    "sum_records",
    METADATA,
    *_round_columns(),
    _integer("part"),
    _integer("place"),
    Column("content", LargeBinary, nullable=False),
    _time("at"),
    PrimaryKeyConstraint(*_ROUND, "part", "place"),
    ForeignKeyConstraint(_ROUND, [f"rounds.{name}" for name in _ROUND]),
)

participation = Table(
    "participation",
    METADATA,
    _text("run"),
    _integer("number"),
    _integer("last_round"),
    _integer("times"),
    PrimaryKeyConstraint("run", "number"),
    ForeignKeyConstraint(["run"], ["runs.id"]),
)

releases = Table(
    "releases",
    METADATA,
    _text("tenant"),
    _text("run"),
    _integer("round"),
    _text("sha256"),
    _text("stage"),
    _time("at"),
    PrimaryKeyConstraint("run", "round"),
    ForeignKeyConstraint(["tenant", "run"], ["runs.tenant", "runs.id"]),
    Index(None, "tenant", "sha256"),
    Index(None, "tenant", "at"),
)

events = Table(
    "events",
    METADATA,
    Column("number", _COUNTER, primary_key=True),
    _text("tenant"),
    _time("at"),
    _text("kind"),
    _perhaps_text("run"),
    _perhaps_text("client"),
    _json("detail"),
    ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    Index(None, "tenant", "number"),
    Index(None, "run", "number"),
    sqlite_autoincrement=True,
)

signing_keys = Table(
    "signing_keys",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    _perhaps_text("endorsed_by"),
    Column("endorsement", LargeBinary, nullable=False),
    _time("created_at"),
    _perhaps_time("retired_at"),
)

ledger_scopes = Table(
    "ledger_scopes",
    METADATA,
    Column("id", _TEXT, primary_key=True),
    _text("tenant"),
    _text("name"),
    _text("unit"),
    _text("adjacency"),
    Column("delta", Float(53), nullable=False),
    Column("epsilon_limit", Float(53), nullable=False),
    _integer("rows"),  # how many rows its chain has
    _text("head"),  # the hash of the last of them
    _text("accountant"),
    _text("spent"),  # the running account, by that accountant
    _perhaps_time("restored_at"),  # spends nothing until an owner has set its limit anew
    _integer("restored_row"),  # what became of reservations up to this row is not known; 0: never restored
    UniqueConstraint("tenant", "name"),
    UniqueConstraint("tenant", "id"),
    ForeignKeyConstraint(["tenant"], ["tenants.id"]),
)

ledger_populations = Table(
    "ledger_populations",
    METADATA,
    Column("population", _TEXT, primary_key=True),
    _text("tenant"),
    _text("scope"),
    ForeignKeyConstraint(["tenant", "population"], ["populations.tenant", "populations.id"]),
    ForeignKeyConstraint(["tenant", "scope"], ["ledger_scopes.tenant", "ledger_scopes.id"]),
    Index(None, "scope"),
)

_RESERVED: Final = text("kind = 'reserve'")
_SETTLED: Final = text("kind IN ('commit', 'void')")

ledger_rows = Table(
    "ledger_rows",
    METADATA,
    _text("scope"),
    _integer("number"),
    _text("kind"),
    _perhaps_text("key"),
    _perhaps_text("run"),
    Column("noise_row", BigInteger),
    _perhaps_text("event"),
    _text("content"),
    _text("hash"),
    PrimaryKeyConstraint("scope", "number"),
    ForeignKeyConstraint(["scope"], ["ledger_scopes.id"]),
    # one reservation for each attempt, whichever replicas ask for it, and one end of it
    Index("uq_ledger_rows_reserved", "key", unique=True, postgresql_where=_RESERVED, sqlite_where=_RESERVED),
    Index("uq_ledger_rows_settled", "key", unique=True, postgresql_where=_SETTLED, sqlite_where=_SETTLED),
    # a row of correlated noise is released once, for ever; NULLs are distinct
    UniqueConstraint("run", "noise_row"),
    Index(None, "key", "number"),
)
"""Append-only. ``content`` is the canonical JSON that ``hash`` is of; the other columns are parts of it."""
