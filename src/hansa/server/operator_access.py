"""Who calls the operator API and what may go in: credentials, sizes, and one form for every refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from fastapi import Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hansa.core.errors import CATALOGUE, HansaError, RefusedError, described
from hansa.core.registry import nearest
from hansa.server import logs, tokens
from hansa.server.operator_bodies import ErrorBody
from hansa.server.tokens import Permission
from hansa.serving.bodies import paced
from hansa.store.records import Token

if TYPE_CHECKING:
    from hansa.server.services import Services

OPEN: Final = ("/openapi.json",)
"""Paths that need no token: the document that says how to call."""
STREAMED: Final = re.compile(r"/models/[^/]+")
"""Where a body is read as it comes, and has a limit of its own."""

_REFUSALS: Final = {
    400: "the request is malformed, or what it asks for is not sound",
    401: "no token, or one that is not good",
    403: "the token's role does not allow this",
    404: "there is no such thing in the caller's tenant",
    409: "something is not in a state in which this can be done",
    413: "the body is larger than this server takes",
    429: "a limit was passed",
    507: "the server's disk or the tenant's quota is full",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how an operation may be refused, for its OpenAPI entry."""
    return {
        status: {"model": ErrorBody, "description": _REFUSALS[status]}
        for status in (400, 401, 403, 413, 429, *statuses)
    }


def services_of(request: Request) -> Services:
    """Return what the parts of the server share."""
    return cast("Services", request.app.state.services)


def allowed(permission: Permission | None) -> Callable[..., Awaitable[Token]]:
    """Return a dependency that gives the caller's token, if its role has a permission."""

    async def caller(request: Request) -> Token:
        token: Token = request.scope["hansa.token"]
        if permission is not None:
            tokens.permit(token, permission)
        return token

    return caller


async def known_query(request: Request) -> None:
    """Raise RefusedError for a query that the operation does not take: a mistyped filter would filter nothing."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="A query has what the operation takes.",
            found=f"It has {printed(unknown[0])}; {nearest(unknown[0], known)}",
            action="See /api/v1/openapi.json.",
        )


def printed(text: str) -> str:
    """Return the beginning of a text from outside, as a message can hold it."""
    return ascii(text[:60])


bearer = Security(HTTPBearer(auto_error=False, description="an operator token"))
"""Documents how calls are authenticated; :class:`Guard` does it, before anything of a call is read."""

Anybody = Annotated[Token, Depends(allowed(None))]


class Guard:
    """Lets only known callers in, with bodies of a limited size. Nothing of a call is read before."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self.app = app
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
        headers = {name.lower(): value for name, value in scope["headers"]}
        if path not in OPEN:
            header = headers.get(b"authorization", b"").decode("latin-1") or None
            try:
                scope["hansa.token"] = await tokens.known(self.services.store, header, self.services.clock.now())
            except RefusedError as error:
                await refusal(error)(scope, receive, send)
                return
        if scope["method"] == "PUT" and STREAMED.fullmatch(path):
            await self.app(scope, paced(receive), send)
            return
        limit = self.services.settings.largest_request_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            await refusal(too_large(limit))(scope, receive, send)
            return
        await self.app(scope, _limited(paced(receive), limit), send)


def _limited(receive: Receive, limit: int) -> Receive:
    """Return a body that breaks off where it becomes too large, whatever its announced length, or comes too slowly."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        try:
            message = await receive()
        except RefusedError as error:
            raise _breaking_off(error) from None
        received += len(message.get("body", b""))
        if received > limit:
            raise _breaking_off(too_large(limit))
        return message

    return limited


def _breaking_off(error: RefusedError) -> HTTPException:
    """Return a refusal as it passes through the reading of a body."""
    return HTTPException(CATALOGUE[error.code].http, detail=cast("str", described(error)))


def too_large(limit: int) -> RefusedError:
    """Return what to say of a body that is too large."""
    return RefusedError(
        "HANSA-REQUEST-TOO-LARGE",
        rule=f"A request has at most {limit} bytes.",
        found="This one has more.",
        action="Send less; models are uploaded apart from jobs.",
    )


def refusal(error: HansaError) -> JSONResponse:
    """Return the answer that an error is."""
    headers = {"WWW-Authenticate": "Bearer"} if CATALOGUE[error.code].http == 401 else None
    return _answer(CATALOGUE[error.code].http, described(error), headers)


def _answer(status: int, parts: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": parts}, status_code=status, headers=headers)


def answer_errors(app: FastAPI) -> None:
    """Give every error of an application one form, and tell nobody outside what is private."""

    @app.exception_handler(HansaError)
    async def _refused(_request: Request, error: HansaError) -> JSONResponse:
        if CATALOGUE[error.code].http >= 500:
            logs.logger("operator").error("call failed", code=error.code, found=error.found)
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def _malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(400, _parts_of(error.errors()))

    @app.exception_handler(HTTPException)
    async def _other(_request: Request, error: HTTPException) -> JSONResponse:
        parts = error.detail if isinstance(error.detail, dict) else _parts_of_status(error.status_code)
        return _answer(error.status_code, parts, error.headers)

    @app.exception_handler(Exception)
    async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
        logs.logger("operator").error("call failed", code="HANSA-INTERNAL", kind=type(error).__name__, exc_info=error)
        parts = {"rule": "A call is answered or refused.", "found": "Something unexpected happened on the server."}
        action = "Try again; if it stays, ask the server's administrator to look into its log."
        return _answer(500, {"code": "HANSA-INTERNAL", **parts, "action": action, "problems": []})


def _parts_of(errors: Sequence[Any]) -> dict[str, Any]:
    """Return what to say of a body, path or query that does not fit; without the values, which may be secret."""
    problems = [
        {"path": ".".join(str(part) for part in found["loc"])[:200], "message": str(found["msg"])[:300]}
        for found in errors[:20]
    ]
    return {
        "code": "HANSA-REQUEST-INVALID",
        "rule": "A request is as the OpenAPI document says.",
        "found": "; ".join(f"{problem['path']}: {problem['message']}" for problem in problems) + ".",
        "action": "See /api/v1/openapi.json.",
        "problems": json.loads(json.dumps(problems).encode("ascii", "replace")),
    }


def _parts_of_status(status: int) -> dict[str, Any]:
    code = "HANSA-NOT-FOUND" if status == 404 else "HANSA-REQUEST-INVALID"
    found = {404: "There is no such path.", 405: "This path has no such method."}.get(status, "It cannot be read.")
    action = "See /api/v1/openapi.json."
    return {
        "code": code,
        "rule": "A call names an operation of the API.",
        "found": found,
        "action": action,
        "problems": [],
    }
