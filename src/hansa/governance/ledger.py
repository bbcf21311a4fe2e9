"""The ledger on a store of its own transactions: each call is one, and on disk when it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from hansa.core.clock import Clock
from hansa.core.errors import StoreConflictError
from hansa.core.ledger import Balance, Origin, Outcome, Refusal, Reservation, SpendKey
from hansa.governance import refusals
from hansa.governance.account import Account
from hansa.governance.chain import columns_agree
from hansa.governance.exports import exported
from hansa.governance.limits import Limit, set_limit
from hansa.governance.verification import Verified, changed, verify
from hansa.privacy.release import Release
from hansa.privacy.running import ACCOUNTANT
from hansa.store.records import LedgerRow, LedgerScope
from hansa.store.store import Rows, Store

_T = TypeVar("_T")

_PAGE: Final = 1000
_TRIES: Final = 4


@dataclass(frozen=True)
class StoreLedger:
    """The ledger of one tenant in a store: the port ``hansa.core.ledger.Ledger``, one transaction a call.

    A server spends within its own transactions instead, by ``Account``.
    """

    store: Store
    tenant: str
    clock: Clock

    async def reserve(self, key: SpendKey, release: Release, origin: Origin) -> Reservation | Refusal:
        """Set a release's cost aside, unless it would overdraw."""
        return await self._repeated(lambda account: account.reserve(key, release, origin))

    async def reserve_all(self, keys: Sequence[SpendKey], release: Release, origin: Origin) -> Refusal | None:
        """Set the same release aside under each of some new keys, or nothing where not all of them fit."""

        async def work(account: Account) -> Refusal | None:
            whole = await account.refuse_overdraft(origin.population, [(release, len(keys))])
            if isinstance(whole, Refusal):
                return whole
            for key in keys:
                held = await account.reserve(key, release, origin)
                if isinstance(held, Refusal):
                    raise held.error  # an error undoes those before
            return None

        return await self._repeated(work)

    async def freeze(self, key: SpendKey) -> Reservation:
        """Say that the sum is about to be seen in the clear."""
        return await self._repeated(lambda account: account.freeze(key))

    async def commit(self, key: SpendKey, outcome: Outcome) -> Reservation:
        """Say that it was released."""
        return await self._repeated(lambda account: account.commit(key, outcome))

    async def void(self, key: SpendKey, why: str) -> Reservation:
        """Give a reservation back of which nothing was seen."""
        return await self._repeated(lambda account: account.void(key, why))

    async def void_all(self, keys: Sequence[SpendKey], why: str) -> None:
        """Give several reservations back at once."""

        async def work(account: Account) -> None:
            for key in keys:
                await account.void(key, why)

        await self._repeated(work)

    async def balance(self, scope: str) -> Balance:
        """Return a scope's balance."""
        async with self.store.reading() as rows:
            return await Account(rows, self.tenant, self.clock.now()).balance(scope)

    async def set_limit(self, limit: Limit, *, actor: str) -> LedgerScope:
        """Make a scope, or change its limit."""
        async with self.store.transaction() as rows:
            return await set_limit(rows, self.tenant, limit, actor=actor, now=self.clock.now())

    async def verify(self, scope: str) -> Verified:
        """Walk the chain of a scope, and compare its end and its running account with what the scope's row says."""
        async with self.store.reading() as rows:
            found = await rows.ledger.named(self.tenant, scope)
            if found is None:
                raise refusals.no_scope(scope)
            chain = await all_rows(rows, found)
        verified = verify(map(exported, chain), count=found.rows, head=found.head)
        for row in chain:
            if not columns_agree(row):
                raise changed(f"Row {row.number}: a column is not what its content says.")
        if found.accountant == ACCOUNTANT and found.spent != verified.spent.text:
            raise changed(f"Row {found.rows}: the running account of the scope is not that of its rows.")
        return verified

    async def _repeated(self, work: Callable[[Account], Awaitable[_T]]) -> _T:
        """Do something in a transaction; again where others held the scope for too long, as each call is idempotent."""
        tried = 0
        while True:
            try:
                async with self.store.transaction() as rows:
                    return await work(Account(rows, self.tenant, self.clock.now()))
            except StoreConflictError:
                tried += 1
                if tried == _TRIES:
                    raise


async def all_rows(rows: Rows, scope: LedgerScope) -> Sequence[LedgerRow]:
    """Return the whole chain of a scope, in order."""
    found: list[LedgerRow] = []
    while page := await rows.ledger.after(scope.id, found[-1].number if found else 0, _PAGE):
        found += page
    return found
