"""A decryptor's calls as an ASGI application, and whether it is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.core.errors import CATALOGUE, HansaError, RefusedError, described
from hansa.decryptor.service import DecryptorService
from hansa.secagg.encoding import Reader
from hansa.wire.decryptor_calls import KEYS, MEDIA_TYPE, MESSAGES, TASKS, caller

_LOG: Final = structlog.get_logger("hansa.decryptor")
_NOT_STORED: Final = {"Cache-Control": "no-store"}
_LARGEST_SMALL: Final = 64 * 1024
"""Bytes of a call that brings no reports."""

Call = Callable[[bytes, bytes], bytes]
"""The server's key and a body -> what is answered."""


def create(service: DecryptorService) -> Starlette:
    """Return the application over a decryptor. Its calls are answered one after another."""
    turn = asyncio.Lock()

    def stand_ready(server: bytes, body: bytes) -> bytes:
        reader = Reader(body)
        content, registered = reader.blob(), reader.blob()
        reader.end()
        return service.stand_ready(server, content, registered)

    def route(path: str, call: Call, limit: int) -> Route:
        async def answer(request: Request) -> Response:
            try:
                body = await _body(request, limit)
                known, now = service.settings.known_servers, service.clock.now()
                server = caller(request.headers.get("authorization"), known, path, body, now)
                async with turn:
                    content = await asyncio.to_thread(call, server, body)
            except HansaError as error:
                _LOG.warning("call refused", path=path, code=error.code, found=error.found)
                return _told(error)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:  # noqa: BLE001 - told as a bug, and nothing of it
                _LOG.error("call failed", path=path, error=type(error).__name__)
                return _told(_internal())
            _LOG.info("call answered", path=path, bytes=len(content))
            return Response(content, media_type=MEDIA_TYPE, headers=_NOT_STORED)

        return Route(path, answer, methods=["POST"])

    async def alive(_request: Request) -> Response:
        return JSONResponse({"status": "alive"}, headers=_NOT_STORED)

    async def ready(_request: Request) -> Response:
        async with turn:
            await asyncio.to_thread(service.book.task, b"")
        return JSONResponse({"status": "ready", "operator": service.settings.operator}, headers=_NOT_STORED)

    return Starlette(
        routes=[
            route(KEYS, lambda _, body: service.public_key(body), _LARGEST_SMALL),
            route(TASKS, stand_ready, _LARGEST_SMALL),
            route(MESSAGES, service.exchange, service.settings.largest_request_bytes),
            Route("/healthz", alive, methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
        ]
    )


async def _body(request: Request, limit: int) -> bytes:
    """Return a request's body. Raises RefusedError for one that is larger than its limit."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise RefusedError(
                "HANSA-REQUEST-TOO-LARGE",
                rule=f"A call of this kind has at most {limit} bytes.",
                found="This one has more.",
                action="Ask the decryptor's operator to raise largest_request_bytes, or use smaller cohorts.",
            )
    return bytes(read)


def _told(error: HansaError) -> Response:
    status = CATALOGUE[error.code].http
    return JSONResponse({"error": described(error)}, status_code=status, headers=_NOT_STORED)


def _internal() -> HansaError:
    return HansaError(
        "HANSA-INTERNAL",
        rule="A decryptor answers or refuses.",
        found="It failed at this call.",
        action="Repeat it; if that goes on, look at the decryptor's log.",
    )
