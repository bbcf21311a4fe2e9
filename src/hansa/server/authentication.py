"""Who calls: the signature of a client over its request, checked before anything else is done with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from hansa.core.clock import Clock
from hansa.core.errors import RefusedError
from hansa.server.rates import Rates
from hansa.store.records import Client
from hansa.store.store import Store
from hansa.wire.signatures import SKEW, Credentials, bad_signature, read_credentials, verify_request

_KEPT = 100_000
_MINUTE = 60
_MARK = 16
"""Bytes of a signature that tell it from others; the whole takes twice the memory."""


@dataclass
class ClientCache:
    """The clients that called lately; one that changed is read again."""

    store: Store
    known: OrderedDict[str, Client] = field(default_factory=OrderedDict)
    read_to: int = 0

    async def get(self, client: str) -> Client | None:
        """Return a client's row."""
        found = self.known.get(client)
        if found is not None:
            self.known.move_to_end(client)
            return found
        async with self.store.reading() as rows:
            found = await rows.clients.get(client)
        if found is not None:
            self.known[client] = found
            if len(self.known) > _KEPT:
                self.known.popitem(last=False)
        return found

    def drop(self, client: str) -> None:
        """Forget a client that changed."""
        self.known.pop(client, None)

    async def follow(self) -> None:
        """Forget the clients that other replicas, or the operator, changed."""
        async with self.store.reading() as rows:
            self.read_to, changed = await rows.clients.changes(self.read_to)
        for client in changed:
            self.drop(client)


@dataclass
class Authenticator:
    """Checks the signatures of clients, their clocks, and that no request comes twice."""

    clients: ClientCache
    clock: Clock
    rates: Rates
    seen: dict[int, set[bytes]] = field(default_factory=dict)
    """Marks of the signatures that came, by the minute in which they were made."""

    async def __call__(
        self, header: str | None, *, method: str, target: str, body: bytes, digest: str | None = None
    ) -> Client:
        """Return the client that signed a request, whose body has a digest. Raises RefusedError."""
        credentials, client = await self.caller(header)
        call: dict[str, Any] = {"method": method, "target": target, "body": body, "digest": digest}
        try:
            verify_request(credentials, client.public_key or b"", **call)
        except RefusedError:
            client = await self._anew(client)
            verify_request(credentials, client.public_key or b"", **call)
        now = self.clock.now()
        self.rates.take(client.id, now)
        self._refuse_twice(credentials, now)
        if client.state == "retired":
            raise RefusedError(
                "HANSA-CLIENT-RETIRED",
                rule="Only clients that are enrolled or active take part.",
                found="This one is retired, for ever.",
                action="Stop it. To take part again, enrol as another client, with a new --state and invitation.",
            )
        if client.state not in ("enrolled", "active"):
            raise RefusedError(
                "HANSA-CLIENT-STATE",
                rule="Only clients that are enrolled or active take part.",
                found=f"This one is {client.state}.",
                action="Ask the operator of the federation.",
            )
        return client

    async def caller(self, header: str | None) -> tuple[Credentials, Client]:
        """Return who a request says that it is from, before its body is read. Raises RefusedError for nobody here."""
        credentials = read_credentials(header)
        now = self.clock.now()
        if abs(credentials.time / 1000 - now) > SKEW:
            raise RefusedError(
                "HANSA-AUTH-CLOCK",
                rule=f"A client's clock is within {SKEW:g} seconds of the server's.",
                found=f"It differs by {credentials.time / 1000 - now:+.0f} seconds.",
                action="Set the client's clock; the answer's Date header tells the server's.",
            )
        client = await self.clients.get(credentials.client)
        if client is None or client.public_key is None:
            raise unknown_client()
        return credentials, client

    async def _anew(self, client: Client) -> Client:
        """Return a client as the store has it now: another replica may have given it another key."""
        self.clients.drop(client.id)
        found = await self.clients.get(client.id)
        if found is None or found.public_key == client.public_key:
            raise bad_signature()
        return found

    def _refuse_twice(self, credentials: Credentials, now: float) -> None:
        """Raise RefusedError for a signature that came before. What its own clock makes too old is forgotten."""
        for minute in [minute for minute in self.seen if (minute + 1) * _MINUTE < now - SKEW]:
            del self.seen[minute]
        seen, mark = self.seen.setdefault(credentials.time // 1000 // _MINUTE, set()), credentials.signature[:_MARK]
        if mark in seen:
            raise RefusedError(
                "HANSA-AUTH-REPLAYED",
                rule="Every request is signed anew, with a nonce of its own.",
                found="This one came before.",
                action="Sign again to repeat a call.",
            )
        seen.add(mark)


Authenticate = Callable[..., Awaitable[Client]]


def unknown_client() -> RefusedError:
    """Return what to say to a caller that is not enrolled."""
    return RefusedError(
        "HANSA-AUTH-UNKNOWN",
        rule="Calls are made by enrolled clients.",
        found="There is no such client here.",
        action="Enrol with an invitation of the operator.",
    )
