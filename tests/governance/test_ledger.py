"""The ledger on both databases: what it charges, refuses, and never forgets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from sqlalchemy import text
from tests.governance.spending import (
    DELTA,
    key_of,
    ledger_of,
    limit_of,
    origin_of,
    outcome_of,
    release_of,
    sampled,
    whole_run,
)

from hansa.core.errors import HansaError
from hansa.core.ledger import Refusal, Reservation, SpendKey
from hansa.governance.exports import exported
from hansa.governance.ledger import all_rows
from hansa.governance.verification import verify
from hansa.privacy.accounting import Composition, charged, reference
from hansa.store.records import Population


async def refused(code, work):
    with pytest.raises(HansaError) as caught:
        await work
    assert caught.value.code == code
    return str(caught.value)


def cost_of(*releases):
    return charged(Composition.of(*(each.event for each in releases)), delta=DELTA, adjacency="zero-out")[0]


async def chain(store, ledger, scope="wards"):
    async with store.reading() as rows:
        found = await rows.ledger.named(ledger.tenant, scope)
        return [exported(row) for row in await all_rows(rows, found)]


def test_what_is_charged_is_the_composition_of_what_is_reserved_and_committed(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        releases = [release_of(4.0), release_of(5.0), release_of(4.0), sampled()]
        for number, release in enumerate(releases, 1):
            found = await ledger.reserve(key_of(seed, number), release, origin_of(seed))
            assert found.charged == pytest.approx(cost_of(*releases[:number]), rel=1e-12)
        await ledger.freeze(key_of(seed, 1))
        await ledger.commit(key_of(seed, 1), outcome_of())
        balance = await ledger.balance("wards")
        assert balance.charged == pytest.approx(cost_of(*releases), rel=1e-12)
        assert balance.remaining == 10.0 - balance.charged
        events = Composition.of(*(each.event for each in releases))
        assert balance.reference == pytest.approx(reference(events, delta=DELTA, adjacency="zero-out"))
        assert balance.reference < balance.charged
        await ledger.void(key_of(seed, 2), "nobody came")
        left = [releases[0], *releases[2:]]
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(*left), rel=1e-12)
        assert (await ledger.verify("wards")).charged == (await ledger.balance("wards")).charged

    run_on(test)


def test_what_was_voided_is_given_back_to_the_last_bit(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), release_of(3.3), origin_of(seed))
        before = (await ledger.verify("wards")).spent
        for number in range(2, 6):
            await ledger.reserve(key_of(seed, number), sampled(0.9 + number), origin_of(seed))
        for number in range(2, 6):
            await ledger.void(key_of(seed, number), "given up")
        assert (await ledger.verify("wards")).spent == before

    run_on(test)


def test_what_would_overdraw_is_refused_with_both_numbers_and_changes_nothing(run_on):
    async def test(store, seed):
        release = release_of(2.0)
        ledger = await ledger_of(store, seed, cost_of(release, release) + 1e-9)
        for number in (1, 2):
            assert isinstance(await ledger.reserve(key_of(seed, number), release, origin_of(seed)), Reservation)
        before = await chain(store, ledger)
        found = await ledger.reserve(key_of(seed, 3), release, origin_of(seed))
        assert isinstance(found, Refusal)
        assert found.charged == pytest.approx(cost_of(release, release, release))
        assert found.reference < found.charged
        said = str(found.error)
        assert found.error.code == "HANSA-BUDGET-OVERDRAWN"
        for number in (found.charged, found.reference, found.balance.charged, found.balance.remaining):
            assert f"{number:.4f}" in said
        assert await chain(store, ledger) == before

    run_on(test)


def test_the_charged_epsilon_gates_where_the_reference_would_fit(run_on):
    async def test(store, seed):
        release = release_of(2.0)
        events = Composition.of(release.event)
        fits = reference(events, delta=DELTA, adjacency="zero-out") + 0.01
        assert fits < cost_of(release)
        found = await (await ledger_of(store, seed, fits)).reserve(key_of(seed, 1), release, origin_of(seed))
        assert isinstance(found, Refusal)
        assert "The reference fits, but is no guarantee" in str(found.error)

    run_on(test)


def test_a_budget_that_is_used_to_the_last_bit_still_counts_as_kept(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed, 1000.0)
        held = await ledger.reserve(key_of(seed, 1), release_of(2.0), origin_of(seed))
        await ledger.void(key_of(seed, 1), "to try again")
        await ledger.set_limit(replace(limit_of(seed), epsilon=held.charged), actor="olga")
        assert isinstance(await ledger.reserve(key_of(seed, 1, 2), release_of(2.0), origin_of(seed)), Reservation)
        assert isinstance(await ledger.reserve(key_of(seed, 2), release_of(1000.0), origin_of(seed)), Refusal)

    run_on(test)


def test_the_same_attempt_reserved_by_two_replicas_is_one_reservation(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        asked = [ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed)) for _ in range(6)]
        found = await asyncio.gather(*asked)
        assert {each.row for each in found} == {2}
        assert len(await chain(store, ledger)) == 2
        await refused("HANSA-BUDGET-SETTLED", ledger.reserve(key_of(seed, 1), release_of(9.0), origin_of(seed)))
        again = await ledger.reserve(key_of(seed, 1, 2), release_of(), origin_of(seed))
        assert again.row == 3

    run_on(test)


def test_a_reservation_is_void_before_its_sum_is_seen_and_never_after(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed, 100.0)
        for number in range(1, 5):
            await ledger.reserve(key_of(seed, number), release_of(), origin_of(seed))
        await ledger.freeze(key_of(seed, 1))
        assert "frozen" in await refused("HANSA-BUDGET-SETTLED", ledger.void(key_of(seed, 1), "too late"))
        await ledger.commit(key_of(seed, 2), outcome_of())
        assert "committed" in await refused("HANSA-BUDGET-SETTLED", ledger.void(key_of(seed, 2), "too late"))
        await ledger.void(key_of(seed, 3), "nobody came")
        assert (await ledger.void(key_of(seed, 3), "again")).state == "void"
        for late in (ledger.commit(key_of(seed, 3), outcome_of()), ledger.freeze(key_of(seed, 3))):
            await refused("HANSA-BUDGET-SETTLED", late)
        await refused("HANSA-BUDGET-SETTLED", ledger.reserve(key_of(seed, 3), release_of(), origin_of(seed)))
        await refused("HANSA-BUDGET-SETTLED", ledger.commit(key_of(seed, 9), outcome_of()))
        assert (await ledger.commit(key_of(seed, 1), outcome_of())).state == "committed"
        assert (await ledger.verify("wards")).rows == 9

    run_on(test)


def test_a_commit_again_changes_nothing_and_another_one_is_refused(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
        await ledger.commit(key_of(seed, 1), outcome_of())
        await ledger.commit(key_of(seed, 1), outcome_of())
        assert len(await chain(store, ledger)) == 3
        await refused("HANSA-BUDGET-SETTLED", ledger.commit(key_of(seed, 1), outcome_of(released="e" * 64)))

    run_on(test)


def test_a_second_unit_adjacency_or_delta_in_a_scope_is_refused(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        for change in ({"unit": "example"}, {"adjacency": "replace-one"}, {"delta": 1e-6}):
            attempt = ledger.reserve(key_of(seed, 1), release_of(**change), origin_of(seed))
            assert str(next(iter(change.values()))).lstrip("1") in await refused("HANSA-BUDGET-SCOPE", attempt)
            await refused("HANSA-BUDGET-SCOPE", ledger.set_limit(limit_of(seed, **change), actor="olga"))
        assert len(await chain(store, ledger)) == 1

    run_on(test)


def test_a_population_without_a_budget_spends_nothing(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        other = Population("population-2", seed.tenant.id, "clinics")
        async with store.transaction() as rows:
            await rows.populations.add(other)
        nowhere = replace(origin_of(seed), population=other.id)
        said = await refused("HANSA-BUDGET-MISSING", ledger.reserve(key_of(seed, 1), release_of(), nowhere))
        assert "hansa ledger limit" in said
        await ledger.set_limit(
            limit_of(seed, populations=[other]), actor="olga"
        )  # who may share a person share a scope
        await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
        await ledger.reserve(key_of(seed, 2), release_of(), nowhere)
        assert (await ledger.balance("wards")).charged == pytest.approx(cost_of(release_of(), release_of()))
        apart = limit_of(seed, scope="clinics", populations=[other])
        assert "second budget" in await refused("HANSA-BUDGET-SCOPE", ledger.set_limit(apart, actor="olga"))

    run_on(test)


def test_another_tenant_reaches_neither_scope_nor_reservation(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
        async with store.transaction() as rows:
            stranger = replace(ledger, tenant=(await rows.tenants.add("stranger")).id)
        await refused("HANSA-NOT-FOUND", stranger.balance("wards"))
        await refused("HANSA-BUDGET-MISSING", stranger.reserve(key_of(seed, 2), release_of(), origin_of(seed)))
        for attempt in (
            stranger.void(key_of(seed, 1), "x"),
            stranger.commit(key_of(seed, 1), outcome_of()),
            stranger.freeze(key_of(seed, 1)),
        ):
            await refused("HANSA-BUDGET-SETTLED", attempt)

    run_on(test)


def test_limits_are_rows_with_an_actor_and_events(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.set_limit(replace(limit_of(seed, 12.0), unit=None, delta=None, populations=()), actor="olga (t-2)")
        rows = [each["row"] for each in await chain(store, ledger)]
        assert [(row["kind"], row["epsilon_limit"], row["actor"]) for row in rows] == [
            ("limit", 10.0, "olga (token-0)"),
            ("limit", 12.0, "olga (t-2)"),
        ]
        assert rows[1]["populations"] == ["wards"]
        async with store.reading() as reading:
            kinds = [each.kind for each in await reading.events.newest(seed.tenant.id, 10)]
        assert kinds == ["ledger.limit"] * 2
        for wrong in ({"epsilon": 0.0}, {"epsilon": float("inf")}, {"epsilon": float("nan")}):
            await refused("HANSA-PRIVACY-INVALID", ledger.set_limit(replace(limit_of(seed), **wrong), actor="olga"))
        for absent in ("unit", "adjacency", "delta", "populations"):
            new = replace(limit_of(seed, scope="new"), **{absent: () if absent == "populations" else None})
            await refused("HANSA-BUDGET-SCOPE", ledger.set_limit(new, actor="olga"))
        for wrong in ({"delta": 1.0}, {"adjacency": "far"}):
            attempt = ledger.set_limit(limit_of(seed, scope="new", **wrong), actor="olga")
            await refused("HANSA-PRIVACY-INVALID", attempt)

    run_on(test)


def test_whoever_passes_70_and_90_per_cent_is_told_once(run_on):
    async def test(store, seed):
        releases = [release_of(4.0)] * 10
        ledger = await ledger_of(store, seed, cost_of(*releases) + 1e-6)
        found = [await ledger.reserve(key_of(seed, n), releases[n - 1], origin_of(seed)) for n in range(1, 11)]
        assert [each.warning for each in found if each.warning] == [0.7, 0.9]
        async with store.reading() as rows:
            told = [each for each in await rows.events.newest(seed.tenant.id, 20) if each.kind == "ledger.warning"]
        assert [each.detail["share"] for each in told] == [0.7, 0.9]
        assert told[0].run == seed.run.id

    run_on(test)


def test_a_run_of_correlated_noise_is_charged_once_and_each_row_released_once(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        cost = cost_of(whole_run())
        for number in range(1, 4):
            held = await ledger.reserve(key_of(seed, number), whole_run(), origin_of(seed))
            assert (held.key, held.row, held.charged) == (SpendKey.whole(seed.run.id), 2, pytest.approx(cost))
            assert (await ledger.void(key_of(seed, number), "tried again")).state != "void"
            await ledger.freeze(key_of(seed, number))
            await ledger.commit(key_of(seed, number), outcome_of(noise_row=number - 1))
            await ledger.commit(key_of(seed, number), outcome_of(noise_row=number - 1))  # by another replica: the same
        assert (await ledger.balance("wards")).charged == pytest.approx(cost)
        other = outcome_of(noise_row=1, released="e" * 64)
        for attempt in (
            ledger.commit(key_of(seed, 2), other),
            ledger.commit(key_of(seed, 2, 2), outcome_of(noise_row=1)),
            ledger.commit(key_of(seed, 4), outcome_of(noise_row=40)),
            ledger.commit(key_of(seed, 4), outcome_of()),
        ):
            await refused("HANSA-NOISE-ROW", attempt)
        await refused("HANSA-BUDGET-SETTLED", ledger.void(SpendKey.whole(seed.run.id), "late"))
        kinds = [each["row"]["kind"] for each in await chain(store, ledger)]
        assert kinds == ["limit", "reserve", "freeze", "commit", "row", "row", "row"]
        assert (await ledger.verify("wards")).rows == 7

    run_on(test)


def test_a_run_of_correlated_noise_that_released_nothing_is_given_back_whole(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), whole_run(), origin_of(seed))
        assert (await ledger.void(SpendKey.whole(seed.run.id), "cancelled")).state == "void"
        assert (await ledger.balance("wards")).charged == 0.0
        await refused("HANSA-BUDGET-SETTLED", ledger.commit(key_of(seed, 1), outcome_of(noise_row=0)))

    run_on(test)


def test_after_a_restore_nothing_is_spent_until_an_owner_decides_and_no_row_is_used_again(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), whole_run(), origin_of(seed))
        await ledger.commit(key_of(seed, 1), outcome_of(noise_row=0))
        other = replace(seed, run=replace(seed.run, id="run-2"))
        await ledger.reserve(key_of(other, 1), release_of(), origin_of(seed))
        async with store.transaction() as rows:
            await rows.ledger.restored(9.0)
        await refused("HANSA-BUDGET-RESTORED", ledger.reserve(key_of(other, 2), release_of(), origin_of(seed)))
        for _ in range(2):
            await refused("HANSA-NOISE-ROW", ledger.reserve(key_of(seed, 2), whole_run(), origin_of(seed)))
            await refused("HANSA-NOISE-ROW", ledger.commit(key_of(seed, 2), outcome_of(noise_row=1)))
            await refused("HANSA-BUDGET-SETTLED", ledger.void(key_of(other, 1), "unknown"))
            await ledger.set_limit(limit_of(seed, 9.0), actor="olga")
        third = replace(seed, run=replace(seed.run, id="run-3"))
        await ledger.reserve(key_of(third, 1), whole_run(), origin_of(seed))
        await ledger.commit(key_of(third, 1), outcome_of(noise_row=0))
        assert [each["row"].get("after_restore") for each in await chain(store, ledger)].count(True) == 1
        await ledger.verify("wards")

    run_on(test)


def test_an_account_of_other_orders_is_computed_anew_from_its_events(run_on):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
        async with store.transaction() as rows:
            await rows.ledger._on.run(text("UPDATE ledger_scopes SET accountant = 'older', spent = '1,2'"))
        found = await ledger.reserve(key_of(seed, 2), release_of(), origin_of(seed))
        assert found.charged == pytest.approx(cost_of(release_of(), release_of()))
        await ledger.verify("wards")

    run_on(test)


CHANGES = {
    "UPDATE ledger_rows SET content = replace(content, '0.5', '0.4') WHERE number = 3": 3,
    "UPDATE ledger_rows SET hash = 'x' WHERE number = 2": 2,
    "DELETE FROM ledger_rows WHERE number = 3": 3,
    "DELETE FROM ledger_rows WHERE number = 5": 5,
    "UPDATE ledger_rows SET number = number + 100 WHERE number = 2": 2,
    "UPDATE ledger_rows SET event = NULL WHERE number = 4": 4,
    "UPDATE ledger_scopes SET head = 'x'": 5,
    "UPDATE ledger_scopes SET spent = '0' || spent || '0'": 5,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_row_that_was_changed_removed_or_moved_is_named(run_on, change):
    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        for number in range(1, 5):
            await ledger.reserve(key_of(seed, number), release_of(9.0), origin_of(seed))
        await ledger.verify("wards")
        async with store.transaction() as rows:
            await rows.ledger._on.run(text(change))
        said = await refused("HANSA-LEDGER-CHANGED", ledger.verify("wards"))
        assert f"Row {CHANGES[change]}:" in said

    run_on(test)


def test_a_forged_chain_with_good_hashes_is_found_by_its_account_or_its_head(run_on):
    """Whoever writes the whole chain anew must also lie about events, or have another head than was exported."""
    from hansa.governance.chain import hash_of

    def forged(rows, edit):
        rows, previous = json.loads(json.dumps(rows)), "0" * 64
        for each in rows:
            edit(each["row"])
            each["row"]["previous"] = previous
            each["hash"] = previous = hash_of(each["row"])
        return rows

    def cheaper(row):
        if row["kind"] == "reserve":
            row["release"]["event"]["noise_multiplier"] = 90.0

    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        for number in range(1, 4):
            await ledger.reserve(key_of(seed, number), release_of(9.0), origin_of(seed))
        rows = await chain(store, ledger)
        assert verify(forged(rows, lambda row: None)).head == rows[-1]["hash"]
        with pytest.raises(HansaError, match=r"Row 2: it says that epsilon .* is charged"):
            verify(forged(rows, cheaper))
        other = forged(rows, lambda row: row.update(actor="nobody"))
        assert verify(other).rows == 4  # the hashes stand ...
        with pytest.raises(HansaError, match="which an earlier export had"):
            verify(other, known=rows[2]["hash"])  # ... but not for whoever kept one
        assert verify(rows, known=rows[2]["hash"]).rows == 4

    run_on(test)


def test_a_ledger_works_on_a_plain_file(tmp_path):
    """As a simulation would use it: a tenant, a population and nothing else."""
    from types import SimpleNamespace

    from hansa.store.store import Store

    async def test():
        store = await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'ledger.sqlite'}")
        async with store.transaction() as rows:
            tenant = await rows.tenants.add("local")
            population = Population("population-1", tenant.id, "simulated")
            await rows.populations.add(population)
        seed = SimpleNamespace(
            tenant=tenant, population=population, run=SimpleNamespace(id="a-run"), job=SimpleNamespace(id="")
        )
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
        await ledger.commit(key_of(seed, 1), outcome_of())
        await store.close()
        again = await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'ledger.sqlite'}")
        assert (await replace(ledger, store=again).balance("wards")).charged == pytest.approx(cost_of(release_of()))
        await again.close()

    asyncio.run(test())


def test_a_server_that_is_restored_from_a_backup_spends_nothing_until_an_owner_decides(tmp_path):
    from tests.store.rows import seeded

    from hansa.store.backup import back_up, restore
    from hansa.store.store import Store

    url, other = (f"sqlite+aiosqlite:///{tmp_path / name}.sqlite" for name in ("hansa", "restored"))

    async def test():
        store = await Store.open(url)
        seed = await seeded(store)
        ledger = await ledger_of(store, seed)
        await ledger.reserve(key_of(seed, 1), release_of(), origin_of(seed))
        await asyncio.to_thread(back_up, url, None, tmp_path / "backup", now=6.0)
        await ledger.reserve(key_of(seed, 2), release_of(), origin_of(seed))  # which the backup does not know
        await store.close()
        await restore(tmp_path / "backup", other, None, now=7.0)
        store = await Store.open(other)
        ledger = replace(ledger, store=store)
        said = await refused("HANSA-BUDGET-RESTORED", ledger.reserve(key_of(seed, 3), release_of(), origin_of(seed)))
        assert "hansa ledger limit" in said
        await ledger.set_limit(limit_of(seed, 9.0), actor="olga")
        assert isinstance(await ledger.reserve(key_of(seed, 3), release_of(), origin_of(seed)), Reservation)
        await ledger.verify("wards")
        await store.close()

    asyncio.run(test())


def test_where_others_hold_the_scope_too_long_it_is_asked_again_and_not_for_ever(run_on):
    from contextlib import asynccontextmanager

    from hansa.core.errors import StoreConflictError

    class Busy:
        def __init__(self, store, times):
            self.store, self.left = store, times

        @asynccontextmanager
        async def transaction(self):
            if self.left:
                self.left -= 1
                raise StoreConflictError("A scope")
            async with self.store.transaction() as rows:
                yield rows

    async def test(store, seed):
        ledger = await ledger_of(store, seed)
        await replace(ledger, store=Busy(store, 3)).reserve(key_of(seed, 1), release_of(), origin_of(seed))
        busy = replace(ledger, store=Busy(store, 4))
        await refused("HANSA-STORE-CONFLICT", busy.reserve(key_of(seed, 2), release_of(), origin_of(seed)))
        assert (await ledger.verify("wards")).rows == 2

    run_on(test)
