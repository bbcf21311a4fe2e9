"""What a simulation is charged for whose model is to be released, in a ledger that is a file of this machine.

The whole run is reserved before its first round, in one transaction, or refused in it; each round is committed before
anything of it is written or told; what a run that ended early did not use is given back. A run that breaks off has
spent what it reserved. Whatever protects somebody is then drawn from the operating system's generator: noise, rounding
and the cohorts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from hansa.algorithms.private_sums import mechanism_of
from hansa.algorithms.secure_sums import training_code
from hansa.core.clock import SystemClock
from hansa.core.errors import DataError, HansaError, PlanError, Problem
from hansa.core.ledger import Balance, LedgerFile, Origin, Outcome, Refusal, SpendKey
from hansa.core.nouns import RoundReport, ServerState
from hansa.core.streams import SECRET, Streams
from hansa.governance.ledger import StoreLedger
from hansa.governance.limits import Limit
from hansa.privacy.event import Sampled
from hansa.privacy.keystream import fresh_key
from hansa.privacy.mechanisms import Correlated
from hansa.privacy.planned import planned_release
from hansa.privacy.release import Release
from hansa.simulation.preparation import Prepared
from hansa.store.records import Population
from hansa.store.store import Store
from hansa.wire.models import model_bytes, sha256

_T = TypeVar("_T")

TENANT: Final = "simulations"


class Charge:
    """One run's account with a ledger. Used as a context: what was reserved for a run that never began is given back.

    Raises HansaError: HANSA-BUDGET-OVERDRAWN, -MISSING, -SCOPE, -CLAIM, -SETTLED, PlanError, DataError.
    """

    def __init__(self, at: LedgerFile, prepared: Prepared, run_id: str, *, resumed: bool = False) -> None:
        """Reserve the whole run, or with ``resumed`` go on with what was reserved for it."""
        self.path = Path(at.path).absolute()
        self.at = at
        self.prepared = in_secret(prepared)
        self.run_id, self.began = run_id, resumed
        self._release, self._times = _planned(prepared)
        self._loop = _Loop()
        try:
            self._ledger = self._loop.run(_opened(self.path))
            if not resumed:
                self._loop.run(self._reserve())
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self.began:
                self._give_back(0, "the run did not begin")
        finally:
            self._close()

    @property
    def resumable(self) -> bool:
        """Return False where the noise of later rounds needs a key that ends with this process."""
        return not isinstance(mechanism_of(self.prepared.plan), Correlated)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what a run folder remembers of where the run is charged."""
        return {"path": str(self.path), "scope": self.at.scope, "actor": self.at.actor}

    def commit(self, state: ServerState, report: RoundReport) -> None:
        """Say what a round released. Raises HansaError where it has released something else before."""
        outcome = Outcome(
            cohort=report.count,
            released=sha256(model_bytes(self.prepared.plan, state)),
            noise_row=None if self._release.matrix is None else state.round - 1,
        )
        self._loop.run(self._ledger.commit(SpendKey(self.run_id, state.round, 1), outcome))

    def end(self, rounds: int, why: str) -> Balance:
        """Give back what the rounds after the last one were to cost; return the balance of the scope."""
        self._give_back(rounds, why)
        return self._loop.run(self._ledger.balance(self.at.scope))

    async def _reserve(self) -> None:
        population = await self._budget()
        plan = self.prepared.plan_sha256
        origin = Origin(population=population, job=self.run_id, plan_sha256=plan, actor=self.at.actor)
        refused = await self._ledger.reserve_all(self._keys(0), self._release, origin)
        if refused is not None:
            raise _overdrawn(refused, self.at)

    async def _budget(self) -> str:
        """Return the population whose scope is charged, after the budget was set where one is given."""
        ledger, at, release = self._ledger, self.at, self._release
        async with ledger.store.transaction() as rows:
            population = await rows.populations.named(ledger.tenant, at.scope)
            if population is None:
                population = Population(token_hex(8), ledger.tenant, at.scope)
                await rows.populations.add(population)
            found = await rows.ledger.named(ledger.tenant, at.scope)
        if found is None and at.budget is None:
            raise _no_budget(at, self.path)
        if found is None:
            guarantee: dict[str, Any] = {"unit": release.unit, "adjacency": release.adjacency, "delta": release.delta}
            limit = Limit(scope=at.scope, epsilon=at.budget or 0.0, populations=[population], **guarantee)
            await ledger.set_limit(limit, actor=at.actor)
        elif at.budget is not None and (at.budget != found.epsilon_limit or found.restored_at is not None):
            await ledger.set_limit(Limit(scope=at.scope, epsilon=at.budget), actor=at.actor)
        return population.id

    def _keys(self, after: int) -> list[SpendKey]:
        """Return what is reserved for the rounds after one; a run that is one release is so for all of them."""
        if self._release.matrix is not None:
            return [SpendKey.whole(self.run_id)] if after == 0 else []
        return [SpendKey(self.run_id, number, 1) for number in range(after + 1, self._times + 1)]

    def _give_back(self, after: int, why: str) -> None:
        if keys := self._keys(after):
            self._loop.run(self._ledger.void_all(keys, why))

    def _close(self) -> None:
        if hasattr(self, "_ledger"):
            self._loop.run(self._ledger.store.close())
        self._loop.close()


def in_secret(prepared: Prepared) -> Prepared:
    """Return a plan with noise, rounding and cohorts from the operating system's generator.

    The first model and the order of data stay those of the seed: they protect nobody.
    """
    return replace(prepared, streams=Streams(prepared.plan.seed, own=SECRET), noise_key=fresh_key())


def _planned(prepared: Prepared) -> tuple[Release, int]:
    """Return what a plan releases, and how often. Raises PlanError, and HansaError for sampling that does not hold."""
    plan = prepared.plan
    code = training_code(plan, prepared.first.layout)
    if plan.privacy is None or code is None:
        raise PlanError([Problem("privacy", "a run that is charged to a ledger claims privacy; add [privacy].")])
    watched, data = plan.stopping.metric or "", plan.data
    if watched.startswith("central.") and data is not None and data.test_at == "server":
        said = (
            "data.test_at lets examples that clients held out stand in for the server's own: when a run ends would "
            "tell of them, and nothing charges that; remove [stopping]."
        )
        raise PlanError([Problem("stopping.metric", said)])
    release, times = planned_release(plan, code, prepared.population)
    if isinstance(release.event, Sampled) and prepared.fleet is not None:
        raise HansaError(
            "HANSA-BUDGET-CLAIM",
            rule="Amplification needs cohorts that are drawn from all clients alike.",
            found="The plan has [devices]: only clients that can be reached are drawn.",
            action="Remove [devices], or privacy.trusted_sampling.",
        )
    return release, times


async def _opened(path: Path) -> StoreLedger:
    """Open, or make, the ledger in a file."""
    try:
        store = await Store.open(f"sqlite+aiosqlite:///{path}")
    except (OSError, SQLAlchemyError) as error:
        said = error.strerror if isinstance(error, OSError) else getattr(error, "orig", error)
        raise DataError(
            "HANSA-DATA-MISSING",
            rule="A ledger is a file that Hansa made, in a folder that there is.",
            found=f"{path} cannot be opened: {said}.",
            action="Check the path.",
        ) from error
    async with store.transaction() as rows:
        tenant = await rows.tenants.named(TENANT) or await rows.tenants.add(TENANT)
    return StoreLedger(store, tenant.id, SystemClock())


def _no_budget(at: LedgerFile, path: Path) -> HansaError:
    return HansaError(
        "HANSA-BUDGET-MISSING",
        rule="Privacy is spent from a budget that somebody has set.",
        found=f"{path} has no scope {at.scope!r}.",
        action="Check the path and the name; or make the scope with --budget, the epsilon that all runs on these "
        "people's data may cost together.",
    )


def _overdrawn(refused: Refusal, at: LedgerFile) -> HansaError:
    """Return why a run is refused, with what raises the limit of a ledger in a file."""
    error = refused.error
    return HansaError(
        error.code,
        rule=error.rule,
        found=error.found,
        action="Use more noise, fewer rounds or fewer participations (`hansa dp calibrate`); or let whoever answers "
        f"for the scope {at.scope!r} raise its limit: --budget.",
    )


class _Loop:
    """An event loop in a thread of its own: whoever calls may have one already."""

    def __init__(self) -> None:
        self._thread, self._runner = ThreadPoolExecutor(1, thread_name_prefix="hansa-ledger"), asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine gives."""
        return self._thread.submit(self._runner.run, work).result()

    def close(self) -> None:
        """End the loop and its thread."""
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()
