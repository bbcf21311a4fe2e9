"""Serving: one process answers until it is told to stop, and no connection stands still for as long as it likes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server

from hansa.core.listening import refuse_taken
from hansa.serving.settings import ServiceSettings

_HEADERS: Final = 30.0
"""Seconds in which the headers of a request are there, and for which a connection may be idle between two requests.

They hold where HTTP/1.1 is spoken alone: a connection that may become one of HTTP/2 can stand still for ever.
"""
_PING: Final = 30_000
"""Milliseconds after which a connection of HTTP/2 is asked whether anybody is there."""
_CONNECTIONS: Final = 8192
"""Connections at once; what comes beyond waits until one ends."""
_BACKLOG: Final = 4096
_READ_AHEAD: Final = 256 * 1024
"""Bytes of a body that are read from a connection before they are asked for."""
_ALWAYS: Final = ("localhost", "127.0.0.1", "::1")


async def until_told(application: Any, settings: ServiceSettings, ready: Callable[[], Any]) -> None:
    """Serve an ASGI application until SIGTERM or SIGINT; what is being answered is answered first.

    Raises HansaError where the address and port cannot be had.
    """
    refuse_taken(settings.noun, settings.host, settings.port)
    files = _tls_files(settings)
    server = listener(
        application,
        address=settings.host,
        port=settings.port,
        ssl_cert=None if files is None else files[0],
        ssl_key=None if files is None else files[1],
    )
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(server.serve())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    ready()
    await serving


def listener(application: Any, *, http2: bool = False, **place: Any) -> Server:
    """Return what serves an ASGI application at a place: its address, port and files of TLS, as granian names them."""
    return Server(
        application,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto if http2 else HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=int(_HEADERS * 1000), max_buffer_size=_READ_AHEAD),
        http2_settings=HTTP2Settings(keep_alive_interval=_PING),
        websockets=False,
        backlog=_BACKLOG,
        backpressure=_CONNECTIONS,
        log_enabled=False,
        log_level=LogLevels.warning,
        **place,
    )


def _tls_files(settings: ServiceSettings) -> tuple[Path, Path] | None:
    if settings.tls == "off":
        return None
    if settings.tls == "files":
        return Path(settings.tls_certificate), Path(settings.tls_key)
    return settings.own.certificate((*_ALWAYS, *settings.host_names))
