"""An authority's calls as an ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette

from hansa.authority.service import AuthorityService
from hansa.serving import app
from hansa.serving.app import Call
from hansa.wire.service_calls import BEACONS, ROSTERS


def create(service: AuthorityService) -> Starlette:
    """Return the application over an authority. It is not ready while its list cannot be read."""
    most = service.settings.largest_request_bytes
    calls = (Call(ROSTERS, lambda _, body: service.answer(body), most), Call(BEACONS, service.draw, most))
    return app.create(service.settings, service.clock, calls, service.probe)
