"""The store: rows of a database, within transactions. One object for a server, shared by all of its tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hansa.store.clients import Clients
from hansa.store.connections import Connection, Database
from hansa.store.events import Events, Pending
from hansa.store.jobs import Jobs
from hansa.store.ledger import LedgerRows
from hansa.store.participation import Participation
from hansa.store.populations import Populations
from hansa.store.postgres import PostgresDatabase
from hansa.store.recent_callers import RecentCallers
from hansa.store.references import References
from hansa.store.releases import Releases
from hansa.store.reports import Reports
from hansa.store.rounds import Rounds
from hansa.store.runs import Runs
from hansa.store.schema import parse_url, prepare
from hansa.store.signing_keys import SigningKeys
from hansa.store.sqlite import SqliteDatabase
from hansa.store.sums import Sums
from hansa.store.tenants import Tenants, Tokens


class Rows:
    """All rows, as seen and changed by one transaction."""

    def __init__(self, connection: Connection, pending: Pending) -> None:
        self.tenants = Tenants(connection)
        self.tokens = Tokens(connection)
        self.populations = Populations(connection)
        self.clients = Clients(connection, pending)
        self.recent_callers = RecentCallers(connection)
        self.participation = Participation(connection)
        self.jobs = Jobs(connection)
        self.runs = Runs(connection)
        self.rounds = Rounds(connection)
        self.reports = Reports(connection)
        self.sums = Sums(connection)
        self.releases = Releases(connection)
        self.events = Events(connection, pending)
        self.signing_keys = SigningKeys(connection)
        self.references = References(connection)
        self.ledger = LedgerRows(connection)


class Store:
    """A database that is open: :meth:`open` makes one."""

    def __init__(self, database: Database, url: str) -> None:
        self._database = database
        self.url = url

    @classmethod
    async def open(cls, url: str, *, migrate: bool = True) -> Store:
        """Open sqlite+aiosqlite:///path or postgresql+psycopg://...; ``migrate``: bring its tables up to date first.

        Raises StoreError HANSA-STORE-SCHEMA for tables that this code cannot serve.
        """
        parsed = parse_url(url)
        await prepare(parsed, migrate=migrate)
        if parsed.get_backend_name() == "sqlite":
            return cls(SqliteDatabase(Path(str(parsed.database))), url)
        return cls(PostgresDatabase(parsed), url)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Rows]:
        """Return the rows for one transaction. It commits at the end, and is on disk then; an error undoes it all."""
        async with self._database.transaction() as connection:
            pending = Pending()
            yield Rows(connection, pending)
            await pending.write(connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Rows]:
        """Return the rows as of one instant, to be read only."""
        async with self._database.reading() as connection:
            yield Rows(connection, Pending())

    async def close(self) -> None:
        """Let go of the database."""
        await self._database.close()
