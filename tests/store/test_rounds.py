"""Runs, rounds and reports, on both databases: nothing is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from tests.store.rows import enrolled, job_of, opened, report_of, round_of, run_of, seeded

from hansa.core.errors import StoreConflictError
from hansa.store.records import Assigned, Population, Release, RoundKey, SigningKey, SumRecord, Token
from hansa.store.store import Store


def test_a_run_is_changed_once_by_those_who_read_the_same_version(run_on):
    async def test(store, seed):
        async def change(place):
            async with store.transaction() as rows:
                return await rows.runs.change(replace(seed.run, round=place, notes={"by": place}))

        found = await asyncio.gather(*[change(place) for place in range(8)], return_exceptions=True)
        winners = [each for each in found if not isinstance(each, BaseException)]
        assert len(winners) == 1
        assert all(isinstance(each, StoreConflictError) for each in found if each is not winners[0])
        async with store.reading() as rows:
            assert await rows.runs.get(seed.run.id) == winners[0]
            assert winners[0].version == 1

    run_on(test)


def test_numbers_in_json_come_back_as_they_were(run_on):
    async def test(store, seed):
        notes = {"norms": [0.1, 1e-05, 1e16, 2.0, 3, -0.0, 5e-324], "text": "Grüße 'quoted'", "z": None, "a": True}
        async with store.transaction() as rows:
            await rows.runs.change(replace(seed.run, notes=notes))
        async with store.reading() as rows:
            found = (await rows.runs.get(seed.run.id)).notes
            assert repr(found) == repr(notes)
            assert await rows.jobs.get(seed.job.id) == seed.job

    run_on(test)


def test_what_is_not_finite_is_not_kept(run_on):
    async def test(store, seed):
        with pytest.raises(Exception, match="JSON"):
            async with store.transaction() as rows:
                await rows.runs.change(replace(seed.run, notes={"norm": float("nan")}))
        async with store.reading() as rows:
            assert (await rows.runs.get(seed.run.id)).version == 0

    run_on(test)


def test_a_transaction_is_there_whole_or_not_at_all(run_on):
    async def test(store, seed):
        async def half():
            async with store.transaction() as rows:
                await rows.runs.change(replace(seed.run, round=9))
                await rows.events.add("run.changed", tenant=seed.tenant.id, at=1.0, run=seed.run.id)
                raise RuntimeError("half way")

        with pytest.raises(RuntimeError, match="half way"):
            await half()
        async with store.reading() as rows:
            assert (await rows.runs.get(seed.run.id)).round == 0
            assert await rows.events.of_run(seed.run.id, 10) == []

    run_on(test)


def test_a_cancelled_transaction_leaves_nothing_and_the_store_goes_on(run_on):
    async def test(store, seed):
        started = asyncio.Event()

        async def slow():
            async with store.transaction() as rows:
                await rows.runs.change(replace(seed.run, round=9))
                started.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(slow())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with store.transaction() as rows:
            assert (await rows.runs.change(replace(seed.run, round=1))).version == 1

    run_on(test)


def test_a_reading_sees_one_instant(run_on):
    async def test(store, seed):
        async with store.reading() as rows:
            assert (await rows.runs.get(seed.run.id)).round == 0
            async with store.transaction() as others:
                await others.runs.change(replace(seed.run, round=1))
            assert (await rows.runs.get(seed.run.id)).round == 0

    run_on(test)


def test_a_reading_cannot_write(run_on):
    async def test(store, seed):
        with pytest.raises(Exception, match="read-?only"):
            async with store.reading() as rows:
                await rows.runs.change(replace(seed.run, round=1))

    run_on(test)


def test_a_run_has_one_owner_until_the_lease_ends(run_on):
    async def test(store, seed):
        async def lease(owner, now):
            async with store.transaction() as rows:
                return [run.id for run in await rows.runs.lease(owner, now=now, seconds=10, limit=5)]

        assert await lease("a", 100.0) == [seed.run.id]
        assert await lease("b", 101.0) == []
        assert await lease("a", 106.0) == [seed.run.id]  # less than half is left: it is extended
        assert await lease("b", 115.0) == []
        assert await lease("b", 116.0) == [seed.run.id]
        assert await lease("a", 117.0) == []
        async with store.transaction() as rows:
            await rows.runs.release("b")
        assert await lease("a", 118.0) == [seed.run.id]

    run_on(test)


def test_many_owners_at_once_share_the_runs_and_none_has_two_owners(run_on):
    async def test(store, seed):
        async with store.transaction() as rows:
            for _ in range(11):
                await rows.runs.add(run_of(seed.job))

        async def lease(owner):
            async with store.transaction() as rows:
                return [run.id for run in await rows.runs.lease(owner, now=5.0, seconds=10, limit=3)]

        found = await asyncio.gather(*[lease(f"owner-{place}") for place in range(6)])
        taken = [run for runs in found for run in runs]
        assert len(taken) == len(set(taken)) >= 3

    run_on(test)


def test_a_lease_does_not_disturb_who_changes_the_run_nor_the_other_way_round(run_on):
    async def test(store, seed):
        async with store.transaction() as rows:
            [leased] = await rows.runs.lease("a", now=1.0, seconds=10, limit=5)
        async with store.transaction() as rows:
            paused = await rows.runs.change(replace(seed.run, state="paused"))
        async with store.reading() as rows:
            found = await rows.runs.get(seed.run.id)
        assert (found.lease_owner, found.lease_until, found.state) == ("a", leased.lease_until, paused.state)
        async with store.transaction() as rows:
            assert await rows.runs.lease("a", now=1.0, seconds=10, limit=5) == []

    run_on(test)


def test_a_paused_run_with_an_open_round_is_looked_after(run_on):
    async def test(store, seed):
        await opened(store, seed.run, await enrolled(store, seed.population, 1))
        async with store.transaction() as rows:
            await rows.runs.change(replace(seed.run, state="paused"))
        async with store.transaction() as rows:
            assert len(await rows.runs.lease("a", now=1.0, seconds=10, limit=5)) == 1

    run_on(test)


def test_an_attempt_is_opened_once(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 3)
        found = await asyncio.gather(*[opened(store, seed.run, clients) for _ in range(5)], return_exceptions=True)
        assert sum(isinstance(each, StoreConflictError) for each in found) == 4
        key = RoundKey(seed.run.id, "training", 1, 1)
        async with store.reading() as rows:
            assert [each.position for each in await rows.rounds.assigned(key)] == [0, 1, 2]
            assert (await rows.rounds.assignment(key, clients[1].id)).number == clients[1].number
            assert await rows.rounds.assignment(key, "nobody") is None
            assert [(round_.id, each.client) for round_, each in await rows.rounds.open_assignments()] == [
                (key, client.id) for client in clients
            ]

    run_on(test)


def test_no_two_attempts_of_a_round_of_training_are_closed(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 1)
        first = await opened(store, seed.run, clients)
        second = await opened(store, seed.run, clients, attempt=2)
        async with store.transaction() as rows:
            closed = await rows.rounds.change(replace(first, state="closed", closed_at=2.0, report={"loss": 0.5}))
            assert await rows.rounds.get(first.id) == closed
            assert (await rows.rounds.last_attempt(seed.run.id, "training", 1)).id == second.id
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.rounds.change(replace(second, state="closed"))
        async with store.reading() as rows:
            assert [each.id for each in await rows.rounds.open_of(seed.run.id)] == [second.id]
            assert [each.id for each in await rows.rounds.of(seed.run.id, 1)] == [second.id]

    run_on(test)


def test_of_the_reports_of_a_client_at_once_one_is_recorded(run_on):
    async def test(store, seed):
        [client] = await enrolled(store, seed.population, 1)
        round_ = await opened(store, seed.run, [client])

        async def report(place):
            async with store.transaction() as rows:
                return await rows.reports.add([report_of(round_.id, client, str(place) * 64)])

        found = await asyncio.gather(*[report(place) for place in range(8)], return_exceptions=True)
        assert sum(each is None for each in found) == 1
        assert sum(isinstance(each, StoreConflictError) for each in found) == 7

    run_on(test)


def test_nobody_reports_who_was_not_asked(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 2)
        round_ = await opened(store, seed.run, clients[:1])
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.reports.add([report_of(round_.id, clients[1])])

    run_on(test)


def test_how_many_came_to_which_end_is_counted_by_round(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 4)
        round_ = await opened(store, seed.run, clients)
        async with store.transaction() as rows:
            assert await rows.rounds.count_fates(round_.id) == {None: 4}
            fates = {clients[0].id: "reported", clients[1].id: "declined", clients[2].id: "reported"}
            await rows.rounds.set_fates(round_.id, fates)
            assert await rows.rounds.count_fates(round_.id) == {None: 1, "reported": 2, "declined": 1}
            assert await rows.rounds.count_fates(replace(round_.id, attempt=9)) == {}

    run_on(test)


def test_whoever_reports_while_the_round_is_frozen_is_in_it_or_told_so(run_on):
    """Each reporter locks the round: those who were recorded are seen by the freeze, the others see it frozen."""

    async def test(store, seed):
        clients = await enrolled(store, seed.population, 30)
        round_ = await opened(store, seed.run, clients)

        async def report(client):
            async with store.transaction() as rows:
                found = await rows.rounds.get(round_.id, for_report=True)
                if found.state != "collecting":
                    return "late"
                await asyncio.sleep(0.002)
                await rows.reports.add([report_of(round_.id, client)])
                await rows.rounds.set_fates(round_.id, {client.id: "reported"})
                return "recorded"

        async def freeze():
            await asyncio.sleep(0.01)
            async with store.transaction() as rows:
                await rows.rounds.change(replace(round_, state="aggregating"))
                assigned = await rows.rounds.assigned(round_.id)
                await rows.rounds.set_fates(round_.id, {each.client: "lost" for each in assigned if each.fate is None})
                return {each.client for each in assigned if each.fate == "reported"}

        said = asyncio.gather(*[report(client) for client in clients])
        survivors, told = await asyncio.gather(freeze(), said)
        assert survivors == {client.id for client, each in zip(clients, told, strict=True) if each == "recorded"}
        async with store.reading() as rows:
            assert {report.client for report in await rows.reports.of(round_.id)} == survivors

    run_on(test)


def test_participation_counts_a_round_once(run_on):
    async def test(store, seed):
        asked = np.array([7, 0, 3, 1])
        for numbers, round_ in (([0, 1], 1), ([1, 7], 2), ([7, 1], 2)):
            async with store.transaction() as rows:
                await rows.participation.record(seed.run.id, np.array(numbers), round_)
        async with store.reading() as rows:
            last, times = await rows.participation.of(seed.run.id, asked)
            assert (last.tolist(), times.tolist()) == ([2, 1, -1, 2], [1, 1, 0, 2])
            last, times = await rows.participation.of(seed.run.id, np.arange(30_000))
            assert (last[[7, 0, 3, 1]].tolist(), int(times.sum())) == ([2, 1, -1, 2], 4)
            assert (await rows.participation.of("another", asked))[0].tolist() == [-1] * 4

    run_on(test)


def test_events_of_transactions_that_overlap_are_numbered_in_the_order_of_their_commits(run_on):
    """A reader that goes on from the last number it saw misses nothing, however long a transaction took."""

    async def test(store, seed):
        seen, done = [], asyncio.Event()

        async def write(place):
            async with store.transaction() as rows:
                await rows.events.add("tick", tenant=seed.tenant.id, at=float(place), detail={"place": place})
                await asyncio.sleep(0.002 * (place % 3))

        async def follow():
            last = 0
            while True:
                finished = done.is_set()
                async with store.reading() as rows:
                    for event in await rows.events.after(seed.tenant.id, last, 7):
                        seen.append(event.detail["place"])
                        last = event.number
                if finished and len(seen) >= 40:
                    return
                await asyncio.sleep(0)

        follower = asyncio.create_task(follow())
        await asyncio.gather(*[write(place) for place in range(40)])
        done.set()
        await asyncio.wait_for(follower, 20)
        assert sorted(seen) == list(range(40))

    run_on(test)


def test_numbers_of_events_are_not_used_again_after_retention(run_on):
    async def test(store, seed):
        for at in (1.0, 2.0):
            async with store.transaction() as rows:
                await rows.events.add("tick", tenant=seed.tenant.id, at=at)
        async with store.transaction() as rows:
            [_, last] = await rows.events.after(seed.tenant.id, 0, 10)
            assert await rows.events.forget(5.0) == 2
        async with store.transaction() as rows:
            await rows.events.add("tick", tenant=seed.tenant.id, at=6.0)
        async with store.reading() as rows:
            assert [event.number > last.number for event in await rows.events.after(seed.tenant.id, 0, 10)] == [True]

    run_on(test)


def test_no_list_shows_what_is_another_tenants(run_on):
    async def test(store, seed):
        other = await seeded(store, "somebody else")
        async with store.transaction() as rows:
            for of in (seed, other):
                await rows.tokens.add(
                    Token(f"token-{of.tenant.id}", of.tenant.id, "owner", "me", f"digest-{of.tenant.id}")
                )
                await rows.releases.add(Release(of.tenant.id, of.run.id, 1, "same", "candidate", 1.0))
                await rows.events.add("tick", tenant=of.tenant.id, at=1.0)
        async with store.transaction() as rows:
            assert await rows.releases.set_stage(seed.tenant.id, "same", "production") is not None
            assert await rows.releases.set_stage(seed.tenant.id, "another", "production") is None
        async with store.reading() as rows:
            for of in (seed, other):
                tenant = of.tenant.id
                assert [each.tenant for each in await rows.tokens.of(tenant)] == [tenant]
                assert [each.id for each in await rows.populations.of(tenant)] == [of.population.id]
                assert await rows.populations.named(tenant, "wards") == of.population
                assert [each.id for each in await rows.jobs.of(tenant, 10)] == [of.job.id]
                assert [each.id for each in await rows.runs.of(tenant, limit=10)] == [of.run.id]
                assert [each.id for each in await rows.runs.of(tenant, state="running", limit=10)] == [of.run.id]
                assert await rows.runs.of(tenant, state="paused", limit=10) == []
                assert [each.tenant for each in await rows.releases.of(tenant)] == [tenant]
                assert {each.tenant for each in await rows.events.after(tenant, 0, 10)} == {tenant}
            assert await rows.releases.of(seed.tenant.id, other.run.id) == []
            assert (await rows.releases.get(seed.tenant.id, "same")).stage == "production"
            assert (await rows.releases.get(other.tenant.id, "same")).stage == "candidate"
            assert await rows.releases.get("nobody", "same") is None

    run_on(test)


def test_rows_of_two_tenants_cannot_be_mixed(run_on):
    async def test(store, seed):
        other = await seeded(store, "somebody else")
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.jobs.add(job_of(seed.tenant, other.population))
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.runs.add(run_of(replace(other.job, tenant=seed.tenant.id)))
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.releases.add(Release(seed.tenant.id, other.run.id, 1, "mine", "candidate", 1.0))

    run_on(test)


def test_names_are_there_once_a_tenant(run_on):
    async def test(store, seed):
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.tenants.add("hospitals")
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.populations.add(Population("another", seed.tenant.id, "wards"))

    run_on(test)


def test_tokens_are_found_by_digest_and_revoked_once(run_on):
    async def test(store, seed):
        token = Token("t1", seed.tenant.id, "operator", "ci", "digest", expires_at=9.0)
        async with store.transaction() as rows:
            await rows.tokens.add(token)
            await rows.tokens.revoke("t1", 3.0)
            await rows.tokens.revoke("t1", 4.0)
        async with store.reading() as rows:
            assert await rows.tokens.by_digest("digest") == replace(token, revoked_at=3.0)
            assert await rows.tokens.by_digest("another") is None

    run_on(test)


def test_the_current_signing_key_is_the_last_one_that_is_not_retired(run_on):
    async def test(store, seed):
        keys = [SigningKey(f"k{place}", b"public", b"wrapped", None, b"", float(place)) for place in range(3)]
        async with store.transaction() as rows:
            for key in keys:
                await rows.signing_keys.add(key)
            await rows.signing_keys.retire("k2", 5.0)
        async with store.reading() as rows:
            assert await rows.signing_keys.current() == keys[1]
            assert [key.id for key in await rows.signing_keys.all()] == ["k0", "k1", "k2"]

    run_on(test)


def test_a_client_is_assigned_once_a_round_and_a_place_is_given_once(run_on):
    async def test(store, seed):
        first, second = await enrolled(store, seed.population, 2)
        key = RoundKey(seed.run.id, "training", 1, 1)
        for pair in ((first, 0), (first, 1)), ((first, 0), (second, 0)):
            assigned = [Assigned(key, client.id, client.number, place) for client, place in pair]
            with pytest.raises(StoreConflictError):
                async with store.transaction() as rows:
                    await rows.rounds.add(round_of(key), assigned)

    run_on(test)


def test_two_processes_take_turns(database):
    """Two stores on one database stand for two replicas, or a server and its command line."""

    async def test():
        stores = [await Store.open(database), await Store.open(database)]
        seed = await seeded(stores[0])

        async def add(place):
            async with stores[place % 2].transaction() as rows:
                run = await rows.runs.get(seed.run.id, for_change=True)
                await asyncio.sleep(0.001)
                await rows.runs.change(replace(run, round=run.round + 1))

        await asyncio.gather(*[add(place) for place in range(24)])
        async with stores[1].reading() as rows:
            assert (await rows.runs.get(seed.run.id)).round == 24
        for store in stores:
            await store.close()

    asyncio.run(test())


def test_records_of_a_sum_have_one_place_each(run_on):
    async def test(store, seed):
        round_ = round_of(RoundKey(seed.run.id, "training", 1, 1))

        async def add(content, *places):
            async with store.transaction() as rows:
                await rows.sums.add(round_.id, [SumRecord(place, content, 1.0) for place in places])

        async with store.transaction() as rows:
            await rows.rounds.add(round_, [])
        await add(b"first", 0, 1)
        found = await asyncio.gather(*[add(bytes([each]), 2, 3) for each in range(6)], return_exceptions=True)
        assert [type(each) for each in found if each is not None] == [StoreConflictError] * 5
        winner = bytes([found.index(None)])
        async with store.reading() as rows:
            assert [(each.place, each.content) for each in await rows.sums.of(round_.id)] == [
                (0, b"first"),
                (1, b"first"),
                (2, winner),
                (3, winner),
            ]
        other = SumRecord(0, b"of another group", 1.0, part=7)
        async with store.transaction() as rows:
            await rows.sums.add(round_.id, [other])
            assert await rows.sums.counts(round_.id) == {0: 4, 7: 1}
            assert (await rows.sums.of(round_.id))[-1] == other
            await rows.sums.remove(round_.id)
        async with store.reading() as rows:
            assert await rows.sums.of(round_.id) == []

    run_on(test)
