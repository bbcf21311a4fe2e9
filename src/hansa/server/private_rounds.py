"""What a round under ``[privacy]`` does beside others: it is charged before it opens, and its noise has a key.

A round's charge is set aside in the transaction that opens it, and settled in the one that closes it or gives it up. A
server that dies in between has spent it. Independent noise is drawn afresh each time a round is closed: until the
closing transaction nobody has seen any. Correlated noise is a function of the run's key, which only the key provider
can unwrap.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any, Final

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import mechanism_of
from hansa.algorithms.rounds import travelling_layout
from hansa.algorithms.secure_sums import training_code
from hansa.core.errors import HansaError
from hansa.core.layout import Layout
from hansa.core.ledger import Outcome, Refusal, SpendKey
from hansa.governance.account import Account
from hansa.privacy.keystream import fresh_key
from hansa.privacy.mechanisms import Correlated
from hansa.privacy.planned import planned_release
from hansa.privacy.release import Release
from hansa.server import spending
from hansa.server.contexts import RunContext
from hansa.store.keys import KeyProvider
from hansa.store.records import Round, RoundKey, Run
from hansa.store.store import Rows, Store

CHARGED: Final = "charged"
"""The note of a round whose cost was set aside."""
DRAWN: Final = "drawn"
"""The note of a round for whose sum a row of the run's correlated noise may have been drawn."""
NOISE_KEY: Final = "noise_key"
"""The note of a run that holds the wrapped key of its correlated noise."""
_SETTLED: Final = "HANSA-BUDGET-SETTLED"


def release_of(plan: Plan, model: Layout, population: int) -> tuple[Release, int] | None:
    """Return what a plan releases and how often, or None without privacy; ``model``: the layout that was submitted."""
    code = None if plan.privacy is None else training_code(plan, travelling_layout(plan, model))
    return None if code is None else planned_release(plan, code, population)


async def begin(rows: Rows, context: RunContext, key: RoundKey, *, population: int, now: float) -> dict[str, Any]:
    """Set aside what a round costs, before it opens; return the notes of the round.

    Raises HansaError where it would overdraw the budget, or there is none: the round must not open.
    """
    planned = release_of(context.plan, context.layout, population) if key.kind == "training" else None
    if planned is None:
        return {}
    held = await spending.reserve_round(rows, context.run, key, planned[0], plan=context.plan, now=now)
    if isinstance(held, Refusal):
        raise held.error
    return {CHARGED: str(held.key)}


async def run_notes(keys: KeyProvider, context: RunContext) -> dict[str, Any]:
    """Return what a run must remember for its noise: the wrapped key, made before its first round."""
    run, plan = context.run, context.plan
    if plan.privacy is None or not isinstance(mechanism_of(plan), Correlated) or NOISE_KEY in run.notes:
        return {}
    _, wrapped = await asyncio.to_thread(keys.create, noise_name(run.id))
    return {NOISE_KEY: base64.b64encode(wrapped).decode()}


async def noise_key(keys: KeyProvider, context: RunContext) -> bytes | None:
    """Return the key of the noise with which a round is closed; None where the server adds none."""
    run, privacy = context.run, context.plan.privacy
    if privacy is None or privacy.noise_by != "server":
        return None
    if not isinstance(mechanism_of(context.plan), Correlated):
        return fresh_key()
    wrapped = base64.b64decode(run.notes[NOISE_KEY])
    return await asyncio.to_thread(keys.unwrap, noise_name(run.id), wrapped)


async def mark_drawn(store: Store, context: RunContext, round_: Round) -> Round:
    """Note that a row of correlated noise is about to be drawn for a round's sum; return the round as it is then.

    The row serves no other sum: two of them with the same noise would show their difference.
    """
    privacy = context.plan.privacy
    if privacy is None or privacy.noise_by != "server" or DRAWN in round_.notes or round_.id.kind != "training":
        return round_
    if not isinstance(mechanism_of(context.plan), Correlated):
        return round_
    async with store.transaction() as rows:
        return await rows.rounds.change(replace(round_, notes={**round_.notes, DRAWN: True}))


def noise_name(run: str) -> str:
    """Return the name of the key of a run's correlated noise."""
    return f"{run}-noise"


async def freeze(rows: Rows, round_: Round, now: float) -> None:
    """Say that a round's sum is about to be seen in the clear: from here on its cost is not given back."""
    if CHARGED in round_.notes:
        await _account(rows, round_, now).freeze(_key(round_))


async def count(rows: Rows, context: RunContext, round_: Round) -> None:
    """Count the survivors' participation in an attempt that is given up although the server has seen its sum.

    Where clients are protected from the server by their own noise, that has used up some of what it is for.
    """
    privacy, key = context.plan.privacy, round_.id
    if privacy is not None and privacy.noise_by == "clients" and key.kind == "training":
        numbers = np.array([int(each) for each in round_.notes["survivors"]], dtype=np.int64)
        await rows.participation.record(key.run, numbers, key.round)


async def settle(  # noqa: PLR0913 - what a round released
    rows: Rows, context: RunContext, round_: Round, *, cohort: int, released: str, now: float
) -> None:
    """Say what a round released, in the transaction that closes it."""
    if CHARGED in round_.notes:
        row = round_.id.round - 1 if mechanism_of(context.plan).matrix_of_run(context.plan) is not None else None
        outcome = Outcome(cohort=cohort, released=released, noise_row=row)
        await spending.commit_round(rows, context.run, round_.id, outcome, now=now)


async def give_back(rows: Rows, round_: Round, why: str, now: float) -> None:
    """Give back what an attempt reserved, unless its sum may have been seen. A whole run's reservation stays."""
    if CHARGED not in round_.notes:
        return
    try:
        await _account(rows, round_, now).void(_key(round_), why)
    except HansaError as error:
        if error.code != _SETTLED:
            raise


async def end(rows: Rows, run: Run, why: str, now: float) -> None:
    """Give back what a run reserved as a whole that ends before anything of it was seen."""
    if await rows.ledger.of_key(str(SpendKey.whole(run.id))):
        try:
            await spending.void_run(rows, run, why, now=now)
        except HansaError as error:
            if error.code != _SETTLED:
                raise


def _account(rows: Rows, round_: Round, now: float) -> Account:
    return Account(rows, str(round_.notes["tenant"]), now)


def _key(round_: Round) -> SpendKey:
    of = round_.id
    return SpendKey(of.run, of.round, of.attempt, of.kind)
