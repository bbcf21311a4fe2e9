"""What repositories need of a connection to the database, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sqlalchemy import Executable, Row, Table

from hansa.store.dialects import DialectName, PerDialect

Parameters = Mapping[str, Any]
AnyRow = Row[*tuple[Any, ...]]


class Connection(Protocol):
    """A connection within one transaction."""

    @property
    def dialect(self) -> DialectName:
        """Return which database it is."""

    async def rows(
        self, statement: Executable | PerDialect, parameters: Parameters | None = None, *, long: bool = False
    ) -> Sequence[AnyRow]:
        """Return the rows that a statement gives; ``long``: it may take more than a few milliseconds."""

    async def run(self, statement: Executable | PerDialect, parameters: Parameters | None = None) -> int:
        """Run a statement; return how many rows it changed."""

    async def run_many(self, statement: Executable | PerDialect, parameters: Sequence[Parameters]) -> None:
        """Run a statement once for each set of parameters."""

    async def load(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Put many rows into a table, each with all of its columns."""


class Database(Protocol):
    """A database that is open."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """Return a transaction that commits at its end, and is on disk then."""

    def reading(self) -> AbstractAsyncContextManager[Connection]:
        """Return a read-only snapshot."""

    async def close(self) -> None:
        """Let go of all connections."""


async def first(
    connection: Connection, statement: Executable | PerDialect, parameters: Parameters | None = None
) -> AnyRow | None:
    """Return the first row that a statement gives, or None."""
    rows = await connection.rows(statement, parameters)
    return rows[0] if rows else None
