"""A server's calls to decryptors: the only calls that a server makes."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httpx

from hansa.core.clock import Clock
from hansa.core.errors import CATALOGUE, HansaError, RefusedError
from hansa.core.secure_aggregation import Decryptor
from hansa.secagg.encoding import prefixed
from hansa.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, signed
from hansa.secagg.task import DecryptorKeys, Task
from hansa.wire.decryptor_calls import KEYS, MEDIA_TYPE, MESSAGES, TASKS, signed_call
from hansa.wire.signatures import Signs

_TIMEOUT: Final = httpx.Timeout(300.0, connect=10.0)
"""Seconds: a decryptor adds the masks of all clients before it answers."""
_LARGEST_SMALL: Final = 16 * 1024
_PASSING: Final = 500


@dataclass(frozen=True)
class DecryptorCalls:
    """Calls decryptors, signed with the server's key. ``ca``: the file of certificates that are trusted."""

    signer: Signs
    clock: Clock
    ca: str = ""

    async def keys(self, decryptors: Sequence[Decryptor]) -> tuple[DecryptorKeys, ...]:
        """Return the keys of some decryptors for one task. Raises HansaError."""
        async with self._client() as client:
            sealing = await asyncio.gather(
                *(self._call(client, each, KEYS, secrets.token_bytes(KEY_BYTES), KEY_BYTES) for each in decryptors)
            )
        return tuple(
            DecryptorKeys(operator=each.operator, identity=each.identity, sealing=key)
            for each, key in zip(decryptors, sealing, strict=True)
        )

    async def ready(self, decryptors: Sequence[Decryptor], task: Task, registered: bytes) -> tuple[bytes, ...]:
        """Return the signatures of decryptors that stand ready for a task. Raises HansaError."""
        body = prefixed(task.content, registered)
        async with self._client() as client:
            signatures = await asyncio.gather(
                *(self._call(client, each, TASKS, body, SIGNATURE_BYTES) for each in decryptors)
            )
        for each, signature in zip(decryptors, signatures, strict=True):
            if not signed(each.identity, signature, "task", task.hash):
                raise refused(each, "Its signature over the task is not by the key that the plan names.")
        return tuple(signatures)

    async def exchange(self, decryptor: Decryptor, message: bytes, most: int) -> bytes:
        """Return a decryptor's answer to a message, at most so many bytes. Raises HansaError."""
        async with self._client() as client:
            return await self._call(client, decryptor, MESSAGES, message, most)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(verify=_trusted(self.ca), timeout=_TIMEOUT) as client:
            yield client

    async def _call(self, client: httpx.AsyncClient, to: Decryptor, path: str, body: bytes, most: int) -> bytes:
        headers = {
            "Authorization": signed_call(self.signer, path, body, self.clock.now()),
            "Content-Type": MEDIA_TYPE,
        }
        most = max(most, _LARGEST_SMALL)
        try:
            async with client.stream("POST", to.url.rstrip("/") + path, content=body, headers=headers) as answer:
                content = bytearray()
                async for chunk in answer.aiter_raw():
                    content += chunk
                    if len(content) > most:
                        raise refused(to, "Its answer is larger than any answer to that question.")
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise unreachable(to, type(error).__name__) from None
        if answer.status_code >= _PASSING or answer.status_code in (408, 429):
            raise unreachable(to, f"it answers with status {answer.status_code}")
        if answer.status_code != 200:
            raise refused(to, _said(bytes(content), answer.status_code))
        return bytes(content)


@lru_cache(maxsize=1)
def _trusted(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca or None)


def _said(content: bytes, status: int) -> str:
    """Return a decryptor's own code, which is of the catalogue; its sentences are not repeated."""
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        code = None
    known = isinstance(code, str) and code in CATALOGUE
    return f"It refuses, with {code if known else f'status {status}'}."


def refused(decryptor: Decryptor, found: str) -> RefusedError:
    """Return the error of a decryptor that does not do what is asked, now or later."""
    return RefusedError(
        "HANSA-DECRYPTOR-REFUSED",
        rule="A decryptor helps with the sums that its operator's settings allow, once each.",
        found=f"That of {decryptor.operator!r}: {found}",
        action="Ask its operator, whose log says why: see its server_keys, peers, minimum_survivors and plans.",
    )


def unreachable(decryptor: Decryptor, found: str) -> HansaError:
    """Return the error of a decryptor that does not answer now."""
    return HansaError(
        "HANSA-DECRYPTOR-UNREACHABLE",
        rule="The server reaches every decryptor of a plan.",
        found=f"That of {decryptor.operator!r} cannot be reached: {found}.",
        action="Look at its url in the plan, at decryptor_ca, and whether it runs; the server tries again.",
    )
