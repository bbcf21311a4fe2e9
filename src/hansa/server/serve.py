"""Serving: the stores are opened, TLS is set up, and one process answers until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from hansa.core.allowed import record
from hansa.core.clock import Clock, SystemClock
from hansa.core.listening import refuse_taken
from hansa.server.app import create
from hansa.server.certificates import tls_files
from hansa.server.replica import own_name
from hansa.server.services import Services
from hansa.server.settings import ServerSettings
from hansa.server.signing import Signer
from hansa.server.tokens import first_token
from hansa.serving.memory import keep_freed, look_less_for_cycles
from hansa.serving.serve import listener
from hansa.store.keys import KeyProvider, LocalKeys
from hansa.store.object_blobs import open_blobs
from hansa.store.store import Store


@contextlib.asynccontextmanager
async def open_services(settings: ServerSettings, clock: Clock | None = None) -> AsyncIterator[Services]:
    """Open everything that a server works with; close it at the end."""
    settings.make_folder()
    with own_name(settings) as replica:
        structlog.contextvars.bind_contextvars(replica=replica)
        async with _opened(replace(settings, replica=replica), clock) as services:
            yield services


@contextlib.asynccontextmanager
async def _opened(settings: ServerSettings, clock: Clock | None) -> AsyncIterator[Services]:
    store = await Store.open(settings.database_url, migrate=True)
    try:
        keys = open_keys(settings.keys_url)
        clock = clock or SystemClock()
        signer = await Signer.open(store, keys, clock)
        allowances = tuple(record(pattern) for pattern in settings.code_allow)
        yield Services(settings, store, open_blobs(settings.blobs_url), keys, clock, signer, allowances)
    finally:
        await store.close()


def _stop(services: Services, server: Any) -> None:
    services.stop()
    server.stop()


def open_keys(place: str) -> KeyProvider:
    """Return the key provider at a place: a folder, or ``vault:URL`` with the token in VAULT_TOKEN."""
    if not place.startswith("vault:"):
        return LocalKeys(Path(place))
    from hansa.store.keys_vault import VaultKeys  # noqa: PLC0415 - an extra of its own

    return VaultKeys(place.removeprefix("vault:"), os.environ.get("VAULT_TOKEN", ""))


async def serve(settings: ServerSettings, ready: Callable[[Services], Any] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered is answered first."""
    keep_freed()
    refuse_taken("server", settings.host, settings.port)
    async with open_services(settings) as services:
        tls = tls_files(settings, services.clock)
        await first_token(services.store, settings, services.clock.now())
        server = listener(
            create(services),
            address=settings.host,
            port=settings.port,
            http2=settings.http2,
            ssl_cert=None if tls is None else tls.certificate,
            ssl_key=None if tls is None else tls.key,
            ssl_ca=None if tls is None else tls.client_ca,
            ssl_client_verify=settings.client_certificates == "required",  # with ssl_ca alone, whoever shows one
        )
        loop = asyncio.get_running_loop()
        serving = asyncio.create_task(server.serve())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, services, server)
        look_less_for_cycles()
        if ready is not None:
            ready(services)
        await serving
