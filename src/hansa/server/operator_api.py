"""The operator API: what people and programs do with a federation, described by its OpenAPI document.

``build(services)`` returns the application that the server mounts at /api/v1. A token is looked at before anything else
of a call is read; each operation names the permission that it needs; each query names the tenant of the token.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Final

from fastapi import Depends, FastAPI

from hansa.server import operator_clients, operator_ledger, operator_models, operator_runs, operator_tenant
from hansa.server.operator_access import Guard, answer_errors, bearer, known_query

if TYPE_CHECKING:
    from hansa.server.services import Services

PREFIX: Final = "/api/v1"
"""Where the server mounts the application."""

_TAGS: Final = {
    "tokens": "Who may do what.",
    "populations": "Named sets of clients.",
    "clients": "Owners of data: invited, enrolled, active, suspended, retired.",
    "jobs": "Plans that were submitted.",
    "runs": "Executions of jobs.",
    "rounds": "Steps of a run, with who took part.",
    "models": "What closed rounds gave: candidate, canary, production, retired.",
    "ledger": "What is spent of privacy budgets, append-only.",
    "events": "What happened, append-only.",
    "usage": "What a tenant uses.",
}


def build(services: Services) -> FastAPI:
    """Return the application of the operator API."""
    app = FastAPI(
        title="Hansa operator API",
        version=metadata.version("hansa"),
        description="Jobs, runs, clients and models of one tenant. Every call carries `Authorization: Bearer TOKEN`.",
        openapi_tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        docs_url=None,
        redoc_url=None,
        dependencies=[bearer, Depends(known_query)],
        redirect_slashes=False,
    )
    app.state.services = services
    for part in (operator_tenant, operator_clients, operator_runs, operator_models, operator_ledger):
        app.include_router(part.router)
    answer_errors(app)
    app.add_middleware(Guard, services=services)
    return app
