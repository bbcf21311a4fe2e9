"""Serving: one process answers for an authority until it is told to stop."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hansa.authority.app import create
from hansa.authority.book import Book
from hansa.authority.service import AuthorityService
from hansa.authority.settings import AuthoritySettings
from hansa.authority.vouched import Vouched
from hansa.core.clock import Clock, SystemClock
from hansa.serving.serve import until_told


@contextmanager
def opened(settings: AuthoritySettings, clock: Clock | None = None) -> Iterator[AuthorityService]:
    """Yield an authority with its files. Raises HansaError where they cannot be used."""
    own = settings.own
    with own.alone():
        vouched = Vouched(own)
        vouched.keys()
        try:
            book = Book(own.place)
        except sqlite3.Error as error:
            raise own.unusable(f"what it has drawn cannot be read: {error}.") from None
        try:
            yield AuthorityService(settings, own.identity(), vouched, book, clock or SystemClock())
        finally:
            book.close()


async def serve(settings: AuthoritySettings, ready: Callable[[bytes], Any]) -> None:
    """Serve until told to stop; ``ready`` is given the authority's public key."""
    with opened(settings) as service:
        await until_told(create(service), settings, lambda: ready(service.identity))
