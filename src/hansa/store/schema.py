"""Which schema a database has, and changing it. Every change is one transaction, whatever the number of migrations.

A migration that older code can live with (it adds tables, or columns with defaults) says so by its OLDEST: replicas of
the older version go on serving while the newer one is rolled out. Code that is older than OLDEST is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy
from sqlalchemy import URL, Engine, create_engine, delete, insert, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from hansa.core.errors import StoreError
from hansa.store import tables
from hansa.store.failures import reraise
from hansa.store.sqlite import engine_of, private_file

_FOLDER: Final = Path(__file__).parent / "migrations"
_LEDGER: Final = 2
"""The first schema with a privacy ledger."""
_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('hansa:schema', 0))")
_LOCK_LEDGER: Final = text("LOCK TABLE ledger_rows IN ACCESS EXCLUSIVE MODE")
_DRIVERS: Final = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


class Schema(NamedTuple):
    """The number of a database's schema, and of the oldest code that may serve it; 0 before the first migration."""

    number: int
    oldest: int


def parse_url(url: str) -> URL:
    """Return a database's URL. Raises StoreError for one that is no database that Hansa knows."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = URL.create("nothing")
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None or (driver == "sqlite" and parsed.database in (None, "", ":memory:")):
        raise StoreError(
            "HANSA-SERVER-SETTINGS",
            rule="A database is sqlite+aiosqlite:///PATH or postgresql+psycopg://USER@HOST/NAME.",
            found=f"It is {parsed.drivername}." if driver is None else "The path is missing.",
            action="Set the server's database.",
        )
    return parsed.set(drivername=driver)


async def prepare(url: URL, *, migrate: bool) -> None:
    """Check that this code can serve a database; with ``migrate``, bring its schema up to date first."""
    found = await asyncio.to_thread(current, url)
    if found.number < tables.SCHEMA and migrate:
        await asyncio.to_thread(upgrade, url)
        found = await asyncio.to_thread(current, url)
    if found.number < tables.SCHEMA or found.oldest > tables.SCHEMA:
        raise _unsuitable(found)


def current(url: URL) -> Schema:
    """Return the schema that a database has."""
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            return _read(connection)
    except SQLAlchemyError as error:
        reraise(error)
    finally:
        engine.dispose()


def upgrade(url: URL, number: int | None = None) -> Schema:
    """Raise a database's schema to a number, or to the newest; return what it is then."""
    return _migrate(url, "head" if number is None else str(number), up=True)


def downgrade(url: URL, number: int, *, forget_ledger: bool = False) -> Schema:
    """Take a database's schema back to a number, 0 for none; return what it is then. What was added since is lost.

    Raises StoreError for a schema that is newer than the database's, and where a privacy ledger that has rows would be
    lost, unless that is asked for: who goes up again after that would spend a second time.
    """

    def allow(connection: sqlalchemy.Connection) -> None:
        found = _read(connection)
        if number > found.number:
            raise _unsuitable(found, wanted=number)
        if number < _LEDGER <= found.number and not forget_ledger and _spent(connection):
            raise _forgetful()

    return _migrate(url, "base" if number == 0 else str(number), up=False, allow=allow)


def _spent(connection: sqlalchemy.Connection) -> bool:
    """Return True where a privacy ledger has rows. Replicas that still run wait, and write none behind this."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_LEDGER)
    return connection.execute(select(tables.ledger_rows.c.number).limit(1)).first() is not None


def _migrate(
    url: URL, target: str, *, up: bool, allow: Callable[[sqlalchemy.Connection], None] = lambda _: None
) -> Schema:
    from alembic import command  # noqa: PLC0415 - needed where a schema changes, and slow to import
    from alembic.config import Config  # noqa: PLC0415 - as above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            _lock(connection)
            if _read(connection).number > tables.SCHEMA:
                raise _unsuitable(_read(connection))
            allow(connection)
            config.attributes["connection"] = connection
            (command.upgrade if up else command.downgrade)(config, target)
            _note(connection, ScriptDirectory.from_config(config))
            connection.commit()
            return _read(connection)
    except SQLAlchemyError as error:
        reraise(error)
    finally:
        engine.dispose()


def _lock(connection: sqlalchemy.Connection) -> None:
    """Begin a transaction that nobody else migrates in."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA busy_timeout=30000")
        connection.rollback()
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(_LOCK)


def _note(connection: sqlalchemy.Connection, scripts: Any) -> None:
    """Write down which schema a database has now, and which code may serve it."""
    if not inspect(connection).has_table("schema"):
        return
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    oldest = scripts.get_revision(revision).module.OLDEST
    connection.execute(delete(tables.schema))
    connection.execute(insert(tables.schema), {"number": int(revision), "oldest": oldest})


def _read(connection: sqlalchemy.Connection) -> Schema:
    if not inspect(connection).has_table("schema"):
        return Schema(0, 0)
    row = connection.execute(select(tables.schema.c.number, tables.schema.c.oldest)).first()
    return Schema(0, 0) if row is None else Schema(*row)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        private_file(path)
        return engine_of(path)
    return create_engine(url, poolclass=NullPool)


def _forgetful() -> StoreError:
    return StoreError(
        "HANSA-STORE-LEDGER",
        rule="What was spent of a privacy budget is remembered as long as the data are there.",
        found=f"Schemas before {_LEDGER} have no ledger, and this database's has rows.",
        action="Start the older version on the schema as it is, if it serves it. Else export the ledger (`hansa ledger "
        "export`) and go back with --forget-ledger; afterwards, count what is in the export against every limit.",
    )


def _unsuitable(found: Schema, wanted: int | None = None) -> StoreError:
    if wanted is not None:
        return StoreError(
            "HANSA-STORE-SCHEMA",
            rule="A schema goes back to one that the database had.",
            found=f"The database has schema {found.number}, which is before {wanted}.",
            action="To go forward, run `hansa server upgrade`.",
        )
    newer = found.number > tables.SCHEMA
    return StoreError(
        "HANSA-STORE-SCHEMA",
        rule=f"This version serves a database with schema {tables.SCHEMA}.",
        found=f"The database has schema {found.number}.",
        action="Use the newer version of Hansa that it was migrated for, or restore the backup made before."
        if newer
        else "Run `hansa server upgrade`, after a backup.",
    )
