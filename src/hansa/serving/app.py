"""A service's calls as an ASGI application, and whether it is well. Nobody's body is read but a known server's."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.core.clock import Clock
from hansa.core.errors import CATALOGUE, HansaError, described
from hansa.serving.bodies import read_body
from hansa.serving.settings import ServiceSettings
from hansa.wire.service_calls import MEDIA_TYPE, caller, require_digest

_NOT_STORED: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True)
class Call:
    """One path that servers post to. ``answer``: the server's key and a body -> what is answered."""

    path: str
    answer: Callable[[bytes, bytes], bytes]
    limit: int
    """The most bytes of a body."""


def create(settings: ServiceSettings, clock: Clock, calls: Sequence[Call], probe: Callable[[], object]) -> Starlette:
    """Return the application of a service. Its calls are answered one after another; ``probe`` raises if it is ill."""
    turn, log = asyncio.Lock(), structlog.get_logger(f"hansa.{settings.noun}")

    def route(call: Call) -> Route:
        async def answer(request: Request) -> Response:
            try:
                server, digest = caller(request.headers, settings.known_servers, call.path, clock.now())
                body = await read_body(request.receive, call.limit)
                hashed = await asyncio.to_thread(hashlib.sha256, body)
                require_digest(hashed.hexdigest(), digest)
                async with turn:
                    content = await asyncio.to_thread(call.answer, server, body)
            except HansaError as error:
                log.warning("call refused", path=call.path, code=error.code, found=error.found)
                return _told(error)
            except Exception as error:  # noqa: BLE001 - told as a bug, and nothing of it
                log.error("call failed", path=call.path, error=type(error).__name__)  # noqa: TRY400 - no line of a traceback
                return _told(_internal(settings.noun))
            log.info("call answered", path=call.path, bytes=len(content))
            return Response(content, media_type=MEDIA_TYPE, headers=_NOT_STORED)

        return Route(call.path, answer, methods=["POST"])

    async def alive(_request: Request) -> Response:
        return JSONResponse({"status": "alive"}, headers=_NOT_STORED)

    async def ready(_request: Request) -> Response:
        try:
            async with turn:
                await asyncio.to_thread(probe)
        except HansaError as error:
            return JSONResponse({"status": "not ready", "code": error.code}, status_code=503, headers=_NOT_STORED)
        return JSONResponse({"status": "ready", "operator": settings.operator}, headers=_NOT_STORED)

    own = [Route("/healthz", alive, methods=["GET"]), Route("/readyz", ready, methods=["GET"])]
    return Starlette(routes=[*map(route, calls), *own])


def _told(error: HansaError) -> Response:
    status = CATALOGUE[error.code].http
    return JSONResponse({"error": described(error)}, status_code=status, headers=_NOT_STORED)


def _internal(noun: str) -> HansaError:
    return HansaError(
        "HANSA-INTERNAL",
        rule=f"The {noun} answers or refuses.",
        found="It failed at this call.",
        action=f"Repeat it; if that goes on, look at the {noun}'s log.",
    )
