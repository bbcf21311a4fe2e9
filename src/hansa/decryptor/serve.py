"""Serving: one process has a decryptor's folder, and answers until it is told to stop."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hansa.core.clock import Clock, SystemClock
from hansa.decryptor.app import create
from hansa.decryptor.book import Book
from hansa.decryptor.service import DecryptorService
from hansa.decryptor.settings import DecryptorSettings
from hansa.serving.serve import until_told


@contextmanager
def opened(settings: DecryptorSettings, clock: Clock | None = None) -> Iterator[DecryptorService]:
    """Yield a decryptor with its files. Raises HansaError where they cannot be used."""
    own = settings.own
    with own.alone():
        try:
            book = Book(own.place)
        except sqlite3.Error as error:
            raise own.unusable(f"what it has answered cannot be read: {error}.") from None
        try:
            yield DecryptorService(settings, own.identity(), book, clock or SystemClock())
        finally:
            book.close()


async def serve(settings: DecryptorSettings, ready: Callable[[bytes], Any]) -> None:
    """Serve until told to stop; ``ready`` is given the decryptor's public key."""
    with opened(settings) as service:
        await until_told(create(service), settings, lambda: ready(service.identity))
