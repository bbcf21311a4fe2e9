"""The whole server as one ASGI application: the client protocol, transfers, the operator API and its pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from hansa.core.errors import CATALOGUE, HansaError, RefusedError
from hansa.secagg.known import MessageHash
from hansa.server import health, operator_api, pages
from hansa.server.client_api import CALLER, SIGNED_AT, ClientApi
from hansa.server.connect_refusals import Coded
from hansa.server.coordinator import Coordinator
from hansa.server.following import Follower
from hansa.server.recorder import Recorder
from hansa.server.room import Bodies, Room
from hansa.server.services import Services
from hansa.server.transfers import Transfers, internal, not_found
from hansa.serving.bodies import Receive, read_body, too_large
from hansa.store.records import Client
from hansa.wire.generated.federation_connect import FederationASGIApplication
from hansa.wire.signatures import read_credentials

_LOG: Final = structlog.get_logger("hansa.server")
_RPC: Final = "/hansa.v1.Federation/"
_UNSIGNED: Final = f"{_RPC}Enrol"
_HASHED_HERE: Final = 1 << 21
"""Bytes of a body that are hashed at once, in a millisecond; of more, another thread hashes."""
_SMALL: Final = 128 * 1024
"""Bytes of a call that are read without a wait for room, and of one that names no client of this server at all."""

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class SignedCalls:
    """Checks the signature of each call of the client protocol before the Connect service sees it."""

    services: Services
    service: ASGIApp
    room: Room
    bodies: Bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, with its caller in ``CALLER``."""
        limit, caller = self.services.settings.largest_request_bytes, None
        signed = scope["path"] != _UNSIGNED
        if signed:
            caller = await self._caller(scope, None)
        name = caller.id if isinstance(caller, Client) else ""
        if not name:
            limit = min(limit, _SMALL)
        try:
            size = announced_size(scope, limit)
            with self.bodies.one(name):
                async with self.room.of(size) if size > _SMALL else contextlib.nullcontext():
                    body = await read_body(receive, limit)
        except RefusedError as error:
            await answer(error)(scope, receive, send)
            return
        if signed:
            CALLER.set(await self._caller(scope, body) if isinstance(caller, Client) else caller)
        await self.service(scope, _replay(body, receive), send)

    async def _caller(self, scope: Scope, body: bytes | None) -> Client | HansaError:
        """Return who signed a call, or why nobody did; without a body, who says so."""
        authenticate, signature = self.services.authenticate, header(scope, b"authorization")
        try:
            if body is None:
                return (await authenticate.caller(signature))[1]
            SIGNED_AT.set(read_credentials(signature).time / 1000)
            return await authenticate(signature, method=scope["method"], target=target(scope), body=body)
        except HansaError as error:
            return error
        except Exception as error:  # noqa: BLE001 - told as a bug, and nothing of it
            _LOG.error("call failed", error=type(error).__name__)
            return internal()


@dataclass
class Application:
    """The server's application: calls of the client protocol, the many small ones, take no way but their own."""

    calls: SignedCalls
    others: Starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        ours = scope["type"] == "http" and scope["path"].startswith(_RPC)
        await (self.calls if ours else self.others)(scope, receive, send)


def create(services: Services) -> Application:
    """Return the application over some services. Its background work runs within its lifespan."""
    transfers = Transfers(services, Recorder(services))
    room, bodies = Room(services.settings.uploads_in_memory_bytes), Bodies()
    most = services.settings.largest_request_bytes
    api = Coded(FederationASGIApplication(ClientApi(services), read_max_bytes=most), answer, most)
    routes = [
        Route("/v1/jobs/{sha256}", _signed(services, transfers.job), methods=["GET"]),
        Route("/v1/models/{sha256}", _signed(services, transfers.model), methods=["GET"]),
        Route("/v1/updates/{run}/{kind}/{round}/{attempt}", _signed(services, transfers.offset), methods=["HEAD"]),
        Route(
            "/v1/updates/{run}/{kind}/{round}/{attempt}", _update(services, transfers, room, bodies), methods=["PUT"]
        ),
        Mount("/v1", app=answer(not_found())),
        Mount("/api/v1", app=operator_api.build(services)),
        *health.routes(services),
        Mount("/", app=pages.build(services)),
    ]
    application = Starlette(routes=routes, lifespan=lambda _: background(services))
    application.add_exception_handler(HansaError, _handled)
    application.add_exception_handler(Exception, _handled)
    return Application(SignedCalls(services, api, room, bodies), application)


@contextlib.asynccontextmanager
async def background(services: Services) -> AsyncIterator[None]:
    """Look after runs, and follow what other replicas do, while the server runs."""
    stop = services.stopping
    coordinator, follower = Coordinator(services), Follower(services)
    await follower.start()
    tasks = [asyncio.create_task(coordinator.run(stop)), asyncio.create_task(follower.run(stop))]
    try:
        yield
    finally:
        services.stop()
        await asyncio.gather(*tasks, return_exceptions=True)


def _signed(
    services: Services, endpoint: Callable[..., Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint of calls without a body that clients sign."""

    async def call(request: Request) -> Response:
        client = await services.authenticate(
            request.headers.get("authorization"), method=request.method, target=target(request.scope), body=b""
        )
        return await endpoint(request, client)

    return call


def _update(
    services: Services, transfers: Transfers, room: Room, bodies: Bodies
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of parts of updates: as many are read at once as there is room in memory for."""

    async def call(request: Request) -> Response:
        limit, header = services.settings.upload_part_bytes, request.headers.get("authorization")
        credentials, _ = await services.authenticate.caller(header)  # nobody else's part is held in memory
        size = announced_size(request.scope, limit)
        with bodies.one(credentials.client):
            async with room.of(size):
                body, arriving = await read_body(request.receive, limit), MessageHash()
                if len(body) > _HASHED_HERE:
                    await asyncio.to_thread(arriving.update, body)
                else:
                    arriving.update(body)
                called = {"method": request.method, "target": target(request.scope)}
                client = await services.authenticate(header, **called, body=body, digest=arriving.hexdigest())
                return await transfers.part(request, client, body, arriving)

    return call


async def _handled(_request: Request, error: Exception) -> Response:
    if isinstance(error, HansaError):
        return answer(error)
    _LOG.error("call failed", error=type(error).__name__, exc_info=error)
    return answer(internal())


def answer(error: HansaError) -> Response:
    """Return an error as plain HTTP has it. Only refusals tell what was found: the rest is for the log."""
    status = CATALOGUE[error.code].http
    if not isinstance(error, RefusedError):
        _LOG.error("call failed", code=error.code, found=error.found)
        told = {"code": error.code, "rule": error.rule, "found": "", "action": error.action}
    else:
        told = {"code": error.code, "rule": error.rule, "found": error.found, "action": error.action}
    return JSONResponse({"error": told}, status_code=status)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of a request, or None."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def target(scope: Scope) -> str:
    """Return the path of a request as it was sent, with its query."""
    raw = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string") or b""
    path: str = raw.decode("latin-1").partition("?")[0]
    return f"{path}?{query.decode('latin-1')}" if query else path


def announced_size(scope: Scope, limit: int) -> int:
    """Return how large a request says that its body is; the limit where it does not. Raises RefusedError beyond it."""
    announced = header(scope, b"content-length")
    if announced is None or not announced.isdecimal():
        return limit
    if int(announced) > limit:
        raise too_large(limit)
    return int(announced)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read already."""
    sent = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
