"""A server's calls to decryptors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from functools import partial

from hansa.core.errors import HansaError, RefusedError
from hansa.core.secure_aggregation import Decryptor
from hansa.secagg.encoding import prefixed
from hansa.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, signed
from hansa.secagg.task import DecryptorKeys, Task
from hansa.server.service_calls import Called, ServiceCalls
from hansa.wire.service_calls import KEYS, MESSAGES, TASKS


class DecryptorCalls(ServiceCalls):
    """Calls decryptors."""

    async def keys(self, decryptors: Sequence[Decryptor]) -> tuple[DecryptorKeys, ...]:
        """Return the keys of some decryptors for one task. Raises HansaError."""
        async with self._client() as client:
            sealing = await asyncio.gather(
                *(
                    self._post(client, _called(each), KEYS, secrets.token_bytes(KEY_BYTES), KEY_BYTES)
                    for each in decryptors
                )
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
                *(self._post(client, _called(each), TASKS, body, SIGNATURE_BYTES) for each in decryptors)
            )
        for each, signature in zip(decryptors, signatures, strict=True):
            if not signed(each.identity, signature, "task", task.hash):
                raise refused(each, "Its signature over the task is not by the key that the plan names.")
        return tuple(signatures)

    async def exchange(self, decryptor: Decryptor, message: bytes, most: int) -> bytes:
        """Return a decryptor's answer to a message, at most so many bytes. Raises HansaError."""
        async with self._client() as client:
            return await self._post(client, _called(decryptor), MESSAGES, message, most)


def _called(decryptor: Decryptor) -> Called:
    return Called(decryptor.url, partial(refused, decryptor), partial(unreachable, decryptor))


def refused(decryptor: Decryptor, found: str) -> RefusedError:
    """Return the error of a decryptor that does not do what is asked, now or later."""
    return RefusedError(
        "HANSA-DECRYPTOR-REFUSED",
        rule="A decryptor helps with the sums that its operator's settings allow, once each.",
        found=f"That of {decryptor.operator!r}: {found}",
        action="Ask its operator, whose log says why: see its server_keys, registrar, peers, minimum_survivors, plans.",
    )


def unreachable(decryptor: Decryptor, found: str) -> HansaError:
    """Return the error of a decryptor that does not answer now."""
    return HansaError(
        "HANSA-DECRYPTOR-UNREACHABLE",
        rule="The server reaches every decryptor of a plan.",
        found=f"That of {decryptor.operator!r} cannot be reached: {found}.",
        action="Look at its url in the plan, at decryptor_ca, and whether it runs; the server tries again.",
    )
