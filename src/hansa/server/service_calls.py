"""A server's calls to services apart from it, the only calls that a server makes: decryptors, authorities."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httpx

from hansa.core.clock import Clock
from hansa.core.errors import CATALOGUE, HansaError
from hansa.wire.service_calls import MEDIA_TYPE, signed_call
from hansa.wire.signatures import Signs

_TIMEOUT: Final = httpx.Timeout(300.0, connect=10.0)
"""Seconds: a decryptor adds the masks of all clients before it answers."""
_LARGEST_SMALL: Final = 16 * 1024
_PASSING: Final = 500


@dataclass(frozen=True)
class Called:
    """Who is called, and the errors of one that refuses, and of one that does not answer now: of what was found."""

    url: str
    refused: Callable[[str], HansaError]
    unreachable: Callable[[str], HansaError]


@dataclass(frozen=True)
class ServiceCalls:
    """Calls services, signed with the server's key.

    ``urls``: those that its administrator lists, which may have changed since a plan was taken; ``ca``: the file of
    certificates that are trusted.
    """

    signer: Signs
    clock: Clock
    urls: Sequence[str]
    ca: str = ""

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(verify=_trusted(self.ca), timeout=_TIMEOUT) as client:
            yield client

    async def _post(self, client: httpx.AsyncClient, to: Called, path: str, body: bytes, most: int) -> bytes:
        """Return a service's answer of at most so many bytes. Raises HansaError."""
        if to.url not in self.urls:
            raise to.refused("The server's administrator does not list its url any more.")
        most = max(most, _LARGEST_SMALL)
        headers = {**signed_call(self.signer, path, body, self.clock.now()), "Content-Type": MEDIA_TYPE}
        try:
            async with client.stream("POST", to.url.rstrip("/") + path, content=body, headers=headers) as answer:
                content = bytearray()
                async for chunk in answer.aiter_raw():
                    content += chunk
                    if len(content) > most:
                        raise to.refused("Its answer is larger than any answer to that question.")
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise to.unreachable(reason_of(error)) from None
        if answer.status_code >= _PASSING or answer.status_code in (408, 429):
            raise to.unreachable(f"it answers with {_said(bytes(content), answer.status_code)}")
        if answer.status_code != 200:
            raise to.refused(f"It refuses, with {_said(bytes(content), answer.status_code)}.")
        return bytes(content)


@lru_cache(maxsize=4)
def _trusted(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca or None)


def reason_of(error: BaseException) -> str:
    """Return why a call did not come through, in words for the operator: what lies beneath the library's error."""
    if isinstance(error, httpx.TimeoutException):
        return "it does not answer in time"
    beneath: BaseException | None = error
    while beneath is not None:
        if isinstance(beneath, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted ({beneath.verify_message.rstrip('.')})"
        if isinstance(beneath, ssl.SSLError):
            return f"TLS fails ({beneath.reason or beneath})"
        if isinstance(beneath, socket.gaierror):
            return "its name is not known"
        if isinstance(beneath, OSError) and beneath.errno:
            return os.strerror(beneath.errno).lower()
        if isinstance(beneath, BaseExceptionGroup):
            beneath = beneath.exceptions[0]  # one for each address that was tried
        else:
            beneath = beneath.__cause__ or beneath.__context__
    return type(error).__name__


def _said(content: bytes, status: int) -> str:
    """Return a service's own code where it is of the catalogue, or its status; its sentences are not repeated."""
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        code = None
    return code if isinstance(code, str) and code in CATALOGUE else f"status {status}"
