"""What the parts of a server share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hansa.core.allowed import Allowance
from hansa.core.clock import Clock
from hansa.server.authentication import Authenticator, ClientCache
from hansa.server.board import Board
from hansa.server.contexts import Contexts
from hansa.server.pace import Pace
from hansa.server.rates import Rates
from hansa.server.secure_sums import SecureSums
from hansa.server.settings import ServerSettings
from hansa.server.signing import Signer
from hansa.store.blobs import Blobs
from hansa.store.keys import KeyProvider
from hansa.store.store import Store


@dataclass(frozen=True)
class Services:
    """The settings, what is stored where, and what one replica knows."""

    settings: ServerSettings
    store: Store
    blobs: Blobs
    keys: KeyProvider
    clock: Clock
    signer: Signer
    allowances: tuple[Allowance, ...] = ()
    """The code outside Hansa that plans may name here."""
    board: Board = field(default_factory=Board)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once this replica is told to stop."""
    clients: ClientCache = field(init=False)
    contexts: Contexts = field(init=False)
    authenticate: Authenticator = field(init=False)
    pace: Pace = field(init=False)
    sums: SecureSums = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clients", ClientCache(self.store))
        object.__setattr__(self, "contexts", Contexts(self.store, self.blobs, self.allowances))
        object.__setattr__(
            self, "authenticate", Authenticator(self.clients, self.clock, Rates(self.settings.calls_per_second))
        )
        shortest = self.settings.minimum_poll_seconds
        pace = Pace(shortest, max(shortest, 3600.0), self.settings.checkins_per_second)
        object.__setattr__(self, "pace", pace)
        sums = SecureSums(
            self.store,
            self.blobs,
            self.keys,
            self.signer,
            self.board,
            self.clock,
            decryptor_urls=self.settings.decryptor_urls,
            decryptor_ca=self.settings.decryptor_ca,
            authority_urls=self.settings.authority_urls,
            authority_ca=self.settings.authority_ca,
        )
        object.__setattr__(self, "sums", sums)

    def stop(self) -> None:
        """Answer who waits, give leases back, and look after nothing any more; what comes is still answered."""
        self.stopping.set()
        self.sums.decrypting.stop()
        self.board.close()
