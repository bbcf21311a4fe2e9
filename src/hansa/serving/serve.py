"""Serving: one process answers until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from hansa.core.listening import refuse_taken
from hansa.serving.settings import ServiceSettings

_ALWAYS: Final = ("localhost", "127.0.0.1", "::1")


async def until_told(application: Any, settings: ServiceSettings, ready: Callable[[], Any]) -> None:
    """Serve an ASGI application until SIGTERM or SIGINT; what is being answered is answered first.

    Raises HansaError where the address and port cannot be had.
    """
    refuse_taken(settings.noun, settings.host, settings.port)
    files = _tls_files(settings)
    server = Server(
        application,
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
    ready()
    await serving


def _tls_files(settings: ServiceSettings) -> tuple[Path, Path] | None:
    if settings.tls == "off":
        return None
    if settings.tls == "files":
        return Path(settings.tls_certificate), Path(settings.tls_key)
    return settings.own.certificate((*_ALWAYS, *settings.host_names))
