"""A decryptor's calls as an ASGI application."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette

from hansa.decryptor.service import DecryptorService
from hansa.secagg.encoding import Reader
from hansa.serving import app
from hansa.serving.app import Call
from hansa.wire.service_calls import KEYS, MESSAGES, TASKS

_LARGEST_SMALL: Final = 64 * 1024
"""Bytes of a call that brings no reports."""


def create(service: DecryptorService) -> Starlette:
    """Return the application over a decryptor."""

    def stand_ready(server: bytes, body: bytes) -> bytes:
        reader = Reader(body)
        content, registered = reader.blob(), reader.blob()
        reader.end()
        return service.stand_ready(server, content, registered)

    calls = (
        Call(KEYS, lambda _, body: service.public_key(body), _LARGEST_SMALL),
        Call(TASKS, stand_ready, _LARGEST_SMALL),
        Call(MESSAGES, service.exchange, service.settings.largest_request_bytes),
    )
    return app.create(service.settings, service.clock, calls, lambda: service.book.task(b""))
