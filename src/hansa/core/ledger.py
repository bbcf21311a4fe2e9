"""The port of the privacy ledger: what a run asks of it, without knowing how it is kept or how privacy is priced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from hansa.core.errors import HansaError

_Release_contra = TypeVar("_Release_contra", contravariant=True)

ReservationState = Literal["reserved", "frozen", "committed", "void"]


@dataclass(frozen=True)
class SpendKey:
    """Names what a reservation is for: one attempt of one round, or with round and attempt 0 a whole run."""

    run: str
    round: int
    attempt: int
    kind: str = "training"

    @classmethod
    def whole(cls, run: str) -> SpendKey:
        """Return the key of a run that is one release."""
        return cls(run, 0, 0)

    def __str__(self) -> str:
        return self.run if self.round == self.attempt == 0 else f"{self.run}-{self.kind}-{self.round}-{self.attempt}"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who spends, on whose data: ids of the population and job, the plan's digest, and a named actor."""

    population: str
    job: str
    plan_sha256: str
    actor: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a reservation that was committed.

    ``cohort`` is how many were in the sum, ``released`` the digest of what was released, ``noise_row`` the row of
    correlated noise in it.
    """

    cohort: int
    released: str
    noise_row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Balance:
    """A scope's budget and what is spent of it, reservations included, at its delta.

    ``charged`` counts against the limit; ``reference`` is for comparison only, None where it is not defined.
    """

    scope: str
    unit: str
    adjacency: str
    delta: float
    limit: float
    charged: float
    reference: float | None

    @property
    def remaining(self) -> float:
        """Return the epsilon between what is charged and the limit; it does not add up over releases."""
        return max(0.0, self.limit - self.charged)


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What is set aside for a release: spent until it is committed, which changes nothing, or void.

    ``row`` is its number in the scope's chain. ``warning`` is the share of the budget that it was the first to pass.
    """

    key: SpendKey
    scope: str
    row: int
    state: ReservationState
    charged: float
    limit: float
    warning: float | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What is refused for its cost: the balance as it is, and what it would be with the release."""

    balance: Balance
    charged: float
    reference: float | None

    @property
    def error(self) -> HansaError:
        """Return the refusal as an error: both numbers, what remains, what to do."""
        now, reference = self.balance, "not defined" if self.reference is None else f"{self.reference:.4f}"
        fits = self.reference is not None and self.reference <= now.limit
        why = " The reference fits, but is no guarantee, and no limit is about it." if fits else ""
        return HansaError(
            "HANSA-BUDGET-OVERDRAWN",
            rule=f"All releases of the scope {now.scope!r} together cost at most epsilon {now.limit:g} "
            f"(charged, delta {now.delta:g}, unit {now.unit}, {now.adjacency}).",
            found=f"With this it would be {self.charged:.4f} charged (reference {reference}); "
            f"{now.charged:.4f} is charged already, {now.remaining:.4f} remains.{why}",
            action="Use more noise, fewer rounds or fewer participations (`hansa dp calibrate`), or have an owner "
            "raise the limit: `hansa ledger limit`.",
        )


@dataclass(frozen=True, kw_only=True)
class LedgerFile:
    """A ledger in a file of this machine (SQLite), to which a simulation is charged whose model is to be released.

    ``scope`` names the people whose data the run learns from: whatever is trained on them spends from it. ``budget``,
    the epsilon that all of it may cost together, makes the scope, with the plan's unit, adjacency and delta, or
    changes its limit. ``actor`` is who answers for that and for the charge, by name.
    """

    path: Path | str
    scope: str = "simulation"
    budget: float | None = None
    actor: str = "unnamed"


class Ledger(Protocol[_Release_contra]):
    """Spends privacy. Each call is idempotent: the same key again gives the same reservation, not another.

    Raises HansaError: HANSA-BUDGET-MISSING, -SCOPE, -SETTLED, -RESTORED, HANSA-NOISE-ROW.
    """

    async def reserve(self, key: SpendKey, release: _Release_contra, origin: Origin) -> Reservation | Refusal:
        """Set a release's cost aside, before any noise is drawn; it counts as spent from then on."""

    async def freeze(self, key: SpendKey) -> Reservation:
        """Say that the sum is about to be seen in the clear: from here on there is no void."""

    async def commit(self, key: SpendKey, outcome: Outcome) -> Reservation:
        """Say that it was released."""

    async def void(self, key: SpendKey, why: str) -> Reservation:
        """Give a reservation back of which nothing was seen."""

    async def balance(self, scope: str) -> Balance:
        """Return a scope's balance."""
