"""Codes for what the Connect library refuses by itself: bodies that are no message, other media types."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp

from hansa.core.errors import HansaError, RefusedError
from hansa.server.transfers import internal, malformed, not_found
from hansa.serving.bodies import Receive, too_large

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
_LONGEST: Final = 200
"""Characters of the library's reason that are told."""


@dataclass(frozen=True)
class Coded:
    """Passes calls on to a Connect service; an error that names no code of ours is answered as plain HTTP has it."""

    service: ASGIApp
    answer: Callable[[HansaError], ASGIApp]
    limit: int
    """Bytes of a message that the service takes."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one call."""
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        if any(b"grpc" in kind.lower() for kind in kinds):
            await self.answer(malformed("It is gRPC, and this is Connect."))(scope, receive, send)
            return
        held: list[Message] = []

        async def coded(message: Message) -> None:
            if not held and message.get("status", 0) < 400:
                await send(message)
                return
            held.append(message)
            if message["type"] == "http.response.start" or message.get("more_body", False):
                return
            error = self._uncoded(held[0]["status"], b"".join(part.get("body", b"") for part in held))
            if error is None:
                for each in held:
                    await send(each)
            else:
                await self.answer(error)(scope, receive, send)

        await self.service(scope, receive, coded)

    def _uncoded(self, status: int, body: bytes) -> HansaError | None:
        """Return the error to tell in place of one without a code; None for one that has it."""
        told = json.loads(body) if body else {}
        if told.get("details"):
            return None
        found = str(told.get("message", "It is no POST of application/proto or application/json."))[:_LONGEST]
        if status == 504:
            return RefusedError(
                "HANSA-SERVER-BUSY",
                rule="A call is answered within the time that its caller gives.",
                found="That was too short.",
                action="Give it more time, or none.",
            )
        known = {404: not_found(), 429: too_large(self.limit)}
        return known.get(status) or (malformed(found) if status < 500 or status == 501 else internal())
