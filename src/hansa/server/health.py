"""Whether the server lives, whether it can serve, and what it counts.

``/healthz`` asks nothing of the store: who restarts a server by it must not restart one whose database is away.
``/readyz`` says whether this replica can serve now. ``/metrics`` needs ``metrics_token``, or an operator token that
may read usage, and then counts that tenant's runs and clients only: nothing else, unless it is the only tenant.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.core.errors import CATALOGUE, HansaError, RefusedError, described
from hansa.server import logs, measures, tokens

if TYPE_CHECKING:
    from hansa.server.services import Services

_READY_SECONDS: Final = 3.0
"""How long the store may take to answer."""
_ALL: Final = 1_000_000
_NOT_STORED: Final = {"Cache-Control": "no-store"}


def routes(services: Services) -> list[Route]:
    """Return the routes over some services."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"}, headers=_NOT_STORED)

    async def readyz(_request: Request) -> Response:
        try:
            async with asyncio.timeout(_READY_SECONDS), services.store.reading() as rows:
                await rows.signing_keys.current()
        except HansaError as error:
            return _not_ready(error.code)
        except Exception as error:  # noqa: BLE001 - whatever the store raises, it is not ready
            return _not_ready(type(error).__name__)
        return JSONResponse({"status": "ready", "replica": services.settings.replica_name}, headers=_NOT_STORED)

    async def metrics(request: Request) -> Response:
        try:
            tenant = await _may_read(services, request.headers.get("authorization"))
        except RefusedError as error:
            status = CATALOGUE[error.code].http
            return JSONResponse({"error": described(error)}, status_code=status, headers=_NOT_STORED)
        alone = await _count(services, tenant)
        content = measures.exposition(counted=tenant is None or alone)
        return Response(content, media_type=measures.MEDIA_TYPE, headers=_NOT_STORED)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def _not_ready(why: str) -> Response:
    """Return the answer of a server that cannot serve; the reason is a code or a kind, never private."""
    logs.logger("health").warning("not ready", why=why)
    return JSONResponse({"status": "not ready", "why": why}, status_code=503, headers=_NOT_STORED)


async def _may_read(services: Services, header: str | None) -> str | None:
    """Return whose runs and clients a call may see counted: None with the token for metrics, those of all tenants.

    Raises RefusedError for a call that carries neither that nor the token of an operator who may read usage.
    """
    wanted = services.settings.metrics_token
    given = (header or "").partition(" ")[2]
    if wanted and hmac.compare_digest(wanted.encode(), given.encode()):
        return None
    return (await tokens.authorise(services.store, header, "usage.read", services.clock.now())).tenant


async def _count(services: Services, only: str | None) -> bool:
    """Set what is counted in the store: runs and clients by state, of all tenants or of one; whether one is all."""
    runs: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    async with services.store.reading() as rows:
        tenants = [each.id for each in await rows.tenants.all()]
        for tenant in tenants if only is None else [only]:
            runs.update(run.state for run in await rows.runs.of(tenant, state=None, limit=_ALL))
            for population in await rows.populations.of(tenant):
                for (held, _), count in (await rows.clients.counts(population.id)).items():
                    clients[held] += count
    for state in ("running", "paused", "cancelled", "finished", "failed"):
        measures.RUNS.labels(state).set(runs[state])
    for where in ("invited", "enrolled", "active", "suspended", "retired"):
        measures.CLIENTS.labels(where).set(clients[where])
    return len(tenants) == 1
