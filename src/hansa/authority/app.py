"""An authority's call as an ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette

from hansa.authority.service import AuthorityService
from hansa.serving import app
from hansa.serving.app import Call
from hansa.wire.service_calls import ROSTERS


def create(service: AuthorityService) -> Starlette:
    """Return the application over an authority. It is not ready while its list cannot be read."""
    call = Call(ROSTERS, lambda _, body: service.answer(body), service.settings.largest_request_bytes)
    return app.create(service.settings, service.clock, (call,), service.vouched.keys)
