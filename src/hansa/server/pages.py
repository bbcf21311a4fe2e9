"""Plain operator pages, made on the server: runs, a run's curves and participation, clients by state and version.

They show and change nothing. Who pastes a token gets a session: a cookie that no script reads and no other site sends,
signed by the server and good for an hour, from the address that signed in. The token itself is not in it, and revoking
the token ends the session.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hansa.core.errors import CATALOGUE, HansaError, RefusedError
from hansa.server import logs, page_content, tokens
from hansa.serving.bodies import read_body
from hansa.store.records import Token
from hansa.wire import signatures

if TYPE_CHECKING:
    from hansa.server.services import Services

SESSION_SECONDS: Final = 3600
_PREFIX: Final = b"hansa-session-1\0"
_LARGEST_FORM: Final = 4096
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""No script at all. Charts place their letters with style attributes, and only with those."""
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Page = Callable[["Services", Token, Request], Awaitable[tuple[str, dict[str, Any]]]]


def build(services: Services) -> Starlette:
    """Return the application of the pages."""
    desk = _Desk(services)
    app = Starlette(
        routes=[
            Route("/", desk.home, methods=["GET"]),
            Route("/sign-in", desk.sign_in_form, methods=["GET"]),
            Route("/sign-in", desk.sign_in, methods=["POST"]),
            Route("/sign-out", desk.sign_out, methods=["POST"]),
            Route("/runs", desk.shows(page_content.runs, "runs.read"), methods=["GET"]),
            Route("/runs/{run}", desk.shows(page_content.run, "runs.read"), methods=["GET"]),
            Route("/clients", desk.shows(page_content.clients, "clients.read"), methods=["GET"]),
            Route("/style.css", _style, methods=["GET"]),
        ],
        exception_handlers={404: _missing},
    )
    app.state.services = services
    return app


class _Desk:
    """The pages over some services."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def home(self, request: Request) -> Response:
        return RedirectResponse("/runs" if await self._caller(request) else "/sign-in", 303, headers=_HEADERS)

    async def sign_in_form(self, request: Request) -> Response:
        if await self._caller(request):
            return RedirectResponse("/runs", 303, headers=_HEADERS)
        return _page("sign_in.html", title="Sign in", error=None)

    async def sign_in(self, request: Request) -> Response:
        """Open a session for a token that was pasted."""
        if not _from_here(request):
            return _refused(_foreign())
        try:
            form = await _form(request)
            header = f"Bearer {form.get('token', '').strip()}"
            token = await tokens.known(self._services.store, header, self._services.clock.now())
        except RefusedError as error:
            return _page("sign_in.html", 401, title="Sign in", error=f"{error.found} {error.action}")
        answer = RedirectResponse("/runs", 303, headers=_HEADERS)
        answer.set_cookie(
            self._cookie(),
            self._session(token, request),
            max_age=SESSION_SECONDS,
            path="/",
            secure=self._secure(),
            httponly=True,
            samesite="strict",
        )
        logs.logger("pages").info("signed in", role=token.role)
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session in this browser."""
        if not _from_here(request):
            return _refused(_foreign())
        answer = RedirectResponse("/sign-in", 303, headers=_HEADERS)
        answer.delete_cookie(self._cookie(), path="/", secure=self._secure(), httponly=True, samesite="strict")
        return answer

    def shows(self, page: Page, permission: tokens.Permission) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a page that needs a permission."""

        async def endpoint(request: Request) -> Response:
            token = await self._caller(request)
            if token is None:
                return RedirectResponse("/sign-in", 303, headers=_HEADERS)
            try:
                tokens.permit(token, permission)
                template, content = await page(self._services, token, request)
            except HansaError as error:
                return _refused(error, token)
            return _page(template, **content, token=token)

        return endpoint

    async def _caller(self, request: Request) -> Token | None:
        """Return whose session a request carries: signed by this server, not over, its token still good."""
        now = self._services.clock.now()
        digest = self._opened(request, now)
        if digest is None:
            return None
        try:
            return await tokens.known_by_digest(self._services.store, digest, now)
        except RefusedError:
            return None

    def _session(self, token: Token, request: Request) -> str:
        ends = int(self._services.clock.now()) + SESSION_SECONDS
        content = json.dumps([token.digest, ends, _address(request)]).encode()
        signature, key_id = self._services.signer.sign(_PREFIX + content)
        return ".".join((_encoded(content), key_id, _encoded(signature)))

    def _opened(self, request: Request, now: float) -> str | None:
        """Return the digest in a session, or None for one that is over, of another address, or not signed here."""
        parts = request.cookies.get(self._cookie(), "").split(".")
        keys = {key.key_id: key.public_key for key in self._services.signer.published()}
        if len(parts) != 3 or parts[1] not in keys:
            return None
        try:
            content, signature = _decoded(parts[0]), _decoded(parts[2])
            signatures.verify(keys[parts[1]], signature, _PREFIX + content)
            digest, ends, address = json.loads(content)
        except (ValueError, binascii.Error, RefusedError):
            return None
        return str(digest) if now < ends and address == _address(request) else None

    def _secure(self) -> bool:
        return self._services.settings.url.startswith("https:")

    def _cookie(self) -> str:
        return "__Host-hansa" if self._secure() else "hansa"


def _address(request: Request) -> str:
    """Return where a request comes from: behind a proxy, the proxy."""
    return request.client.host if request.client is not None else ""


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _from_here(request: Request) -> bool:
    """Return True for a form that was sent from a page of this server, as every browser says."""
    origin = request.headers.get("origin")
    if origin is not None and origin != "null":
        try:
            return urlsplit(origin).netloc == request.headers.get("host")
        except ValueError:  # an address in brackets that is none
            return False
    return request.headers.get("sec-fetch-site") == "same-origin"


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a small form."""
    content = await read_body(request.receive, _LARGEST_FORM)
    try:
        return {name: values[0] for name, values in parse_qs(content.decode("ascii"), max_num_fields=8).items()}
    except ValueError:
        return {}


def _foreign() -> RefusedError:
    return RefusedError(
        "HANSA-AUTH-ROLE",
        rule="Forms are sent from pages of this server.",
        found="This one came from elsewhere.",
        action="Open the page itself.",
    )


def _refused(error: HansaError, token: Token | None = None) -> Response:
    status = CATALOGUE[error.code].http
    return _page("refused.html", status, title="Not shown", error=error, token=token)


async def _missing(_request: Request, _error: Exception) -> Response:
    error = RefusedError(
        "HANSA-NOT-FOUND", rule="There are pages of runs and clients.", found="This is none.", action="Go to the runs."
    )
    return _refused(error)


def _page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    shared = {"token": None, "version": _style_version(), "refresh": None}
    text = _templates().get_template(template).render(**{**shared, **context})
    return HTMLResponse(text, status, headers=_HEADERS)


@cache
def _templates() -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader("hansa.server"), PackageLoader("hansa.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _style_text() -> str:
    report = files("hansa.reporting").joinpath("static", "report.css").read_text(encoding="utf-8")
    return report + files("hansa.server").joinpath("static", "operator.css").read_text(encoding="utf-8")


@cache
def _style_version() -> str:
    return hashlib.sha256(_style_text().encode()).hexdigest()[:12]


async def _style(_request: Request) -> Response:
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(_style_text(), media_type="text/css", headers=headers)
