"""SQLite: statements run where they are called, only what waits for the disk runs in a thread.

A statement takes some 20 microseconds; handing it to a thread and back, as the asynchronous drivers do, takes 200. So
the event loop runs them itself, except long ones. It never waits for a lock: transactions of this process queue up, and
where another process writes, BEGIN IMMEDIATE is tried again after a moment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy
from sqlalchemy import URL, CursorResult, Engine, Executable, Table, create_engine, event, insert
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from hansa.store.connections import AnyRow, Parameters
from hansa.store.dialects import DialectName, PerDialect
from hansa.store.failures import busy, reraise
from hansa.store.json_text import dump

_T = TypeVar("_T")
_PATIENCE: Final = 30.0
"""Seconds that a transaction waits for another process."""
_READERS: Final = 16
_AT_ONCE: Final = 1000
"""More rows than these are written in a thread."""
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=0",
    "PRAGMA cache_size=-16000",
    "PRAGMA temp_store=MEMORY",
)


@dataclass(frozen=True)
class SqliteConnection:
    """A connection within a transaction."""

    inner: sqlalchemy.Connection
    threads: ThreadPoolExecutor
    dialect: DialectName = "sqlite"

    async def rows(
        self, statement: Executable | PerDialect, parameters: Parameters | None = None, *, long: bool = False
    ) -> Sequence[AnyRow]:
        """Return the rows that a statement gives."""
        if long:
            return await _in_thread(self.threads, lambda: self._execute(statement, parameters).all())
        return self._execute(statement, parameters).all()

    async def run(self, statement: Executable | PerDialect, parameters: Parameters | None = None) -> int:
        """Run a statement; return how many rows it changed."""
        return self._execute(statement, parameters).rowcount

    async def run_many(self, statement: Executable | PerDialect, parameters: Sequence[Parameters]) -> None:
        """Run a statement once for each set of parameters."""
        if len(parameters) > _AT_ONCE:
            await _in_thread(self.threads, lambda: self._execute(statement, parameters))
        elif parameters:
            self._execute(statement, parameters)

    async def load(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        """Put many rows into a table, each with all of its columns."""
        names = [column.name for column in table.columns]
        for start in range(0, len(rows), 10 * _AT_ONCE):
            part = [dict(zip(names, row, strict=True)) for row in rows[start : start + 10 * _AT_ONCE]]
            await self.run_many(insert(table), part)

    def _execute(
        self, statement: Executable | PerDialect, parameters: Parameters | Sequence[Parameters] | None
    ) -> CursorResult[*tuple[Any, ...]]:
        chosen = statement.sqlite if isinstance(statement, PerDialect) else statement
        try:
            return self.inner.execute(chosen, parameters)
        except SQLAlchemyError as error:
            reraise(error)


class SqliteDatabase:
    """A file with one connection that writes and some that read."""

    def __init__(self, path: Path) -> None:
        private_file(path)
        self._engine = engine_of(path)
        self._writer = self._engine.connect()
        self._readers: list[sqlalchemy.Connection] = []
        self._writing = asyncio.Lock()
        self._reading = asyncio.Semaphore(_READERS)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="hansa-sqlite")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqliteConnection]:
        """Return a transaction that commits at its end."""
        async with self._writing:
            await self._begin()
            changes = self._changes()
            try:
                yield SqliteConnection(self._writer, self._threads)
                if self._changes() == changes:
                    self._writer.commit()
                else:
                    await _in_thread(self._threads, self._writer.commit)
            except SQLAlchemyError as error:
                self._writer.rollback()
                reraise(error)
            except BaseException:
                self._writer.rollback()
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqliteConnection]:
        """Return a read-only snapshot."""
        async with self._reading:
            connection = self._readers.pop() if self._readers else self._reader()
            try:
                connection.exec_driver_sql("BEGIN")
                yield SqliteConnection(connection, self._threads)
            finally:
                connection.rollback()
                self._readers.append(connection)

    async def close(self) -> None:
        """Let go of all connections."""
        async with self._writing:
            for connection in (*self._readers, self._writer):
                connection.close()
            self._readers.clear()
            self._engine.dispose()
            self._threads.shutdown()

    async def _begin(self) -> None:
        """Begin a transaction that may write; where another process does, try again after a moment."""
        ends = asyncio.get_running_loop().time() + _PATIENCE
        pause = 0.001
        while True:
            try:
                self._writer.exec_driver_sql("BEGIN IMMEDIATE")
            except OperationalError as error:
                self._writer.rollback()
                if "locked" not in str(error.orig):
                    raise
                if asyncio.get_running_loop().time() > ends:
                    raise busy() from error
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
            else:
                return

    def _reader(self) -> sqlalchemy.Connection:
        connection = self._engine.connect()
        connection.exec_driver_sql("PRAGMA busy_timeout=5000")  # it waits while another process recovers the file
        connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.rollback()
        return connection

    def _changes(self) -> int:
        driver: Any = self._writer.connection.driver_connection
        return int(driver.total_changes)


def engine_of(path: Path) -> Engine:
    """Return an engine whose connections are set for durability; transactions begin by an explicit statement."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "isolation_level": None, "cached_statements": 512},
        json_serializer=dump,
    )

    @event.listens_for(engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        for pragma in _PRAGMAS:
            connection.execute(pragma).close()

    return engine


def private_file(path: Path) -> None:
    """Make an empty file that only its owner may read, unless there is a file."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


async def _in_thread(threads: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    """Run a function in a thread to its end, even when whoever waits is cancelled: the connection is busy till then."""
    future = asyncio.get_running_loop().run_in_executor(threads, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
