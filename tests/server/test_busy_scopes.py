"""A scope of the ledger that others hold for long: runs wait for it, and neither pause, nor fail, nor pay twice."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.server.by_hand import deployed, run_async
from tests.server.test_private_rounds import BANDED, budget, integers, ledger, one_round, run_state, started, until

from hansa.core.errors import StoreConflictError
from hansa.core.ledger import Refusal
from hansa.server import coordinator, private_rounds, spending
from hansa.server.private_rounds import release_of
from hansa.store import postgres as database
from hansa.store.records import RoundKey
from hansa.store.store import Store


@pytest.fixture
def url(postgres, monkeypatch):
    """A database in which nobody waits long for a lock."""
    monkeypatch.setattr(database, "_OPTIONS", database._OPTIONS.replace("lock_timeout=15s", "lock_timeout=50ms"))
    return postgres.fresh()


@pytest.fixture
def conflicts(monkeypatch):
    """How often work of the coordinator met a scope that was held: grows."""
    seen = []
    for name in ("begin", "settle"):
        inner = getattr(private_rounds, name)

        async def counted(*arguments, inner=inner, name=name, **more):
            try:
                return await inner(*arguments, **more)
            except StoreConflictError:
                seen.append(name)
                raise

        monkeypatch.setattr(private_rounds, name, counted)
    return seen


@contextlib.asynccontextmanager
async def held(server):
    """The scope, locked by somebody else."""
    async with server.services.store.transaction() as rows:
        assert await rows.ledger.named(server.token.tenant, "hospitals", for_change=True)
        yield


async def more_than(conflicts, count):
    for _ in range(1000):
        if len(conflicts) > count:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


def kinds_of(found):
    return [kind for kind, _ in found]


@pytest.mark.parametrize("plan", [(), BANDED], ids=["independent", "correlated"])
def test_a_run_waits_for_a_scope_that_is_held_to_open_a_round_and_to_close_it(url, tmp_path, conflicts, plan):
    enough = 2 * coordinator._FAILURES

    async def work():
        async with deployed(tmp_path, database=url) as server:
            await budget(server)
            async with held(server):
                run, devices = await started(server, *plan)
                await more_than(conflicts, enough)
                assert (await run_state(server, run)).state == "running"
            asked = [await device.assignment() for device in devices]
            conflicts.clear()
            async with held(server):
                for device, assignment in zip(devices, asked, strict=True):
                    await device.put(assignment.id, await integers(server, assignment))
                await more_than(conflicts, enough)
                assert set(conflicts) == {"settle"}
                found = await server.round(asked[0].id)
                assert (found.state, found.id.attempt) == ("aggregating", 1)
                assert (await run_state(server, run)).state == "running"
            await until(server, asked[0].id)
            for _ in range(2):
                await until(server, await one_round(server, devices))
            told = await ledger(server)
            committed = [row["released"] for kind, row in told if kind == ("row" if plan else "commit")]
            async with server.services.store.reading() as rows:
                assert committed == [each.sha256 for each in await released(rows, server, run)]
        expected = ["commit", "row", "row", "row"] if plan else ["commit", *["reserve", "commit"] * 2]
        assert kinds_of(told) == ["limit", "reserve", *expected]

    run_async(work())


async def released(rows, server, run):
    return sorted(await rows.releases.of(server.token.tenant, run), key=lambda each: each.round)


def test_of_replicas_that_want_the_last_of_a_scope_at_once_one_gets_it(url, tmp_path):
    """Their transactions wait for each other: the second sees what the first has spent."""

    async def work():
        async with deployed(tmp_path, database=url) as server:
            await budget(server, epsilon=9.0)
            run, _ = await started(server, clients=0)  # who would open a round by itself
            context = await server.context(run)
            release, _ = release_of(context.plan, context.state.layout, 2)
            stores = [await Store.open(url) for _ in range(2)]

            async def reserve(store, number):
                while True:
                    try:
                        async with store.transaction() as rows:
                            key = RoundKey(run, "training", 1 + number // 2, 1 + number % 2)
                            return await spending.reserve_round(
                                rows, context.run, key, release, plan=context.plan, now=1.0
                            )
                    except StoreConflictError:  # as the coordinator: it looks again
                        await asyncio.sleep(0)

            asked = [reserve(stores[number % 2], number) for number in range(16)]
            found = await asyncio.gather(*asked)
            for store in stores:
                await store.close()
            refused = [each for each in found if isinstance(each, Refusal)]
            told = await ledger(server)
        assert kinds_of(told).count("reserve") == 16 - len(refused) > 1
        assert refused
        assert told[-1][1]["epsilon_charged"] <= 9.0

    run_async(work())
