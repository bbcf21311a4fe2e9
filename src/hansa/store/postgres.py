"""PostgreSQL through psycopg: transactions are READ COMMITTED and lock the rows they decide by; readings are snapshots.

No transaction is repeated by itself: what it decided may hold no longer. A deadlock or a lock waited for too long is a
StoreConflictError, and whoever called decides again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import URL, CursorResult, Executable, Table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from hansa.store.connections import AnyRow, Parameters
from hansa.store.dialects import DialectName, PerDialect
from hansa.store.failures import reraise
from hansa.store.json_text import dump

_OPTIONS: Final = " ".join(
    f"-c {option}"
    for option in (
        "synchronous_commit=on",  # what is committed is on disk
        "lock_timeout=15s",
        "idle_in_transaction_session_timeout=120s",
        "jit=off",  # it costs more than these statements take
    )
)
_POOL: Final = {"pool_size": 8, "max_overflow": 16, "pool_timeout": 15}


@dataclass(frozen=True)
class PostgresConnection:
    """A connection within a transaction."""

    inner: AsyncConnection
    dialect: DialectName = "postgresql"

    async def rows(
        self,
        statement: Executable | PerDialect,
        parameters: Parameters | None = None,
        *,
        long: bool = False,  # noqa: ARG002 - no statement holds up the event loop here
    ) -> Sequence[AnyRow]:
        """Return the rows that a statement gives."""
        return (await self._execute(statement, parameters)).all()

    async def run(self, statement: Executable | PerDialect, parameters: Parameters | None = None) -> int:
        """Run a statement; return how many rows it changed."""
        return (await self._execute(statement, parameters)).rowcount

    async def run_many(self, statement: Executable | PerDialect, parameters: Sequence[Parameters]) -> None:
        """Run a statement once for each set of parameters."""
        if parameters:
            await self._execute(statement, parameters)

    async def load(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Put many rows into a table, each with all of its columns."""
        raw = await self.inner.get_raw_connection()
        driver: Any = raw.driver_connection
        names = ", ".join(column.name for column in table.columns)
        async with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
            for row in rows:
                await copy.write_row(row)

    async def _execute(
        self, statement: Executable | PerDialect, parameters: Parameters | Sequence[Parameters] | None
    ) -> CursorResult[*tuple[Any, ...]]:
        chosen = statement.postgresql if isinstance(statement, PerDialect) else statement
        try:
            return await self.inner.execute(chosen, parameters)
        except SQLAlchemyError as error:
            reraise(error)


class PostgresDatabase:
    """A database and a pool of connections to it."""

    def __init__(self, url: URL) -> None:
        self._engine = create_async_engine(
            url, connect_args={"options": _OPTIONS}, json_serializer=dump, isolation_level="READ COMMITTED", **_POOL
        )
        self._snapshots = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresConnection]:
        """Return a transaction that commits at its end."""
        try:
            async with self._engine.begin() as connection:
                yield PostgresConnection(connection)
        except SQLAlchemyError as error:
            reraise(error)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresConnection]:
        """Return a read-only snapshot."""
        try:
            async with self._snapshots.connect() as connection:
                yield PostgresConnection(connection)
        except SQLAlchemyError as error:
            reraise(error)

    async def close(self) -> None:
        """Let go of all connections."""
        await self._engine.dispose()
