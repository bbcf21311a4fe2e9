"""Serving: one process has a decryptor's folder, and answers until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from hansa.core.clock import Clock, SystemClock
from hansa.decryptor.app import create
from hansa.decryptor.book import Book
from hansa.decryptor.own_files import alone, certificate, identity, unusable
from hansa.decryptor.service import DecryptorService
from hansa.decryptor.settings import DecryptorSettings

_ALWAYS: Final = ("localhost", "127.0.0.1", "::1")


@contextmanager
def opened(settings: DecryptorSettings, clock: Clock | None = None) -> Iterator[DecryptorService]:
    """Yield a decryptor with its files. Raises HansaError where they cannot be used."""
    with alone(settings.place):
        try:
            book = Book(settings.place)
        except sqlite3.Error as error:
            raise unusable(settings.place, f"what it has answered cannot be read: {error}.") from None
        try:
            yield DecryptorService(settings, identity(settings.place), book, clock or SystemClock())
        finally:
            book.close()


async def serve(settings: DecryptorSettings, ready: Callable[[DecryptorService], Any] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered is answered first."""
    with opened(settings) as service:
        files = _tls_files(settings)
        server = Server(
            create(service),
            address=settings.host,
            port=settings.port,
            interface=Interfaces.ASGI,
            http=HTTPModes.auto,
            websockets=False,
            log_enabled=False,
            log_level=LogLevels.warning,
            ssl_cert=None if files is None else files[0],
            ssl_key=None if files is None else files[1],
        )
        loop = asyncio.get_running_loop()
        serving = asyncio.create_task(server.serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        if ready is not None:
            ready(service)
        await serving


def _tls_files(settings: DecryptorSettings) -> tuple[Path, Path] | None:
    if settings.tls == "off":
        return None
    if settings.tls == "files":
        return Path(settings.tls_certificate), Path(settings.tls_key)
    return certificate(settings.place, (*_ALWAYS, *settings.host_names))
