"""A server's calls to authorities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hansa.core.errors import HansaError, RefusedError
from hansa.core.secure_aggregation import Authority
from hansa.secagg.beacon import VALUE_BYTES
from hansa.secagg.encoding import prefixed
from hansa.secagg.keys import SIGNATURE_BYTES, signed
from hansa.secagg.messages import HEADER_BYTES
from hansa.secagg.task import Task
from hansa.server.service_calls import Called, ServiceCalls
from hansa.wire.service_calls import BEACONS, ROSTERS


class AuthorityCalls(ServiceCalls):
    """Calls authorities."""

    async def vouched(self, authority: Authority, task: Task, identities: Sequence[bytes]) -> bytes:
        """Return an authority's signature over the roster of a task. Raises HansaError where it does not vouch."""
        body = prefixed(task.content, b"".join(identities))
        signature = await self._asked(authority, ROSTERS, body, SIGNATURE_BYTES)
        if not signed(authority.identity, signature, "roster", *task.registered):
            raise refused(
                authority,
                "Its signature over the roster is not by the key that the plan names; compare that with what"
                " `hansa authority key` prints there.",
            )
        return signature

    async def drawn(self, authority: Authority, task: Task, identities: Sequence[bytes], question: bytes) -> bytes:
        """Return an authority's beacon, a message, which nobody has looked at. Raises HansaError where it draws none.

        ``question`` is the machine's :class:`hansa.secagg.beacon.Draw`.
        """
        body = prefixed(task.content, b"".join(identities), question)
        return await self._asked(authority, BEACONS, body, HEADER_BYTES + VALUE_BYTES + SIGNATURE_BYTES)

    async def _asked(self, authority: Authority, path: str, body: bytes, most: int) -> bytes:
        to = Called(authority.url, partial(refused, authority), partial(unreachable, authority))
        async with self._client() as client:
            return await self._post(client, to, path, body, most)


def refused(authority: Authority, found: str) -> RefusedError:
    """Return the error of an authority that does not vouch for a roster, now or later."""
    return RefusedError(
        "HANSA-AUTHORITY-REFUSED",
        rule="An authority vouches for the keys of every client of a sum.",
        found=f"That of {authority.operator!r}: {found}",
        action="Ask its operator: see its list, server_keys and minimum_cohort; or suspend who is not on the list.",
    )


def unreachable(authority: Authority, found: str) -> HansaError:
    """Return the error of an authority that does not answer now."""
    return HansaError(
        "HANSA-AUTHORITY-UNREACHABLE",
        rule="The server reaches the authority of a plan.",
        found=f"That of {authority.operator!r} cannot be reached: {found}.",
        action="Look at its url in the plan, at authority_ca, and whether it runs; the server tries again.",
    )
