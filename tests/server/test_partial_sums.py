"""Sums of integers are made as updates come: the same sum, in little room, whoever dies or is quicker."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import update
from tests.server.by_hand import PLAN, code_of, deployed, run_async
from tests.server.private import PRIVATE, SCALED, budget, first_round, started, until

from hansa.algorithms.fixed_point import modulo
from hansa.algorithms.private_sums import released, simulated_key
from hansa.algorithms.rounds import client_update, clip_norm_of
from hansa.algorithms.secure_sums import RingFold, training_code
from hansa.core.errors import StoreConflictError, StoreError
from hansa.core.nouns import Assignment, Batch
from hansa.server import partial_sums, private_rounds, usage
from hansa.server.partial_sums import Partial
from hansa.server.recorder import Recorder
from hansa.server.rounds_at_rest import (
    binding,
    part_name,
    partial_binding,
    partial_name,
    round_name,
    round_prefix,
    sums_prefix,
    update_prefix,
)
from hansa.simulation.preparation import prepare
from hansa.simulation.run import run as simulate
from hansa.store import tables
from hansa.store.backup import back_up, restore
from hansa.store.records import Report
from hansa.store.retention import sweep
from hansa.store.sealing import seal, unseal
from hansa.testing.hospitals import as_simulated
from hansa.training.kernels import PLAIN, use
from hansa.wire.plans import read_plan
from hansa.wire.updates import encode_update


async def drawn(server, run, seed, norm=0.5):
    """The bytes of an update of random integers, of that part of the longest there may be."""
    context = await server.context(run)
    code = training_code(context.plan, context.state.layout)
    whole = np.random.default_rng(seed).standard_normal(code.width)
    whole = np.rint(whole * norm * code.norm / np.linalg.norm(whole)).astype(np.int64)
    layout = released(context.state.layout)
    values = modulo(whole, code.branches[0].bits).astype(code.dtype)[None]
    return encode_update(Batch(values, layout.encode_lanes({"count": np.ones(1)}, 1), layout))


async def reports_of(server, key):
    async with server.services.store.reading() as rows:
        return await rows.reports.of(key)


async def folded(server, key, count):
    """The round, once so many of its reports are in its sum and their updates are gone."""
    for _ in range(500):
        async with server.services.store.reading() as rows:
            round_ = await rows.rounds.get(key)
        left = await server.services.blobs.names(round_prefix(key))
        if Partial.of(round_).count == count and len(left) == len(await reports_of(server, key)) - count + 1:
            return round_
        await asyncio.sleep(0.02)
    raise TimeoutError((Partial.of(round_), left))


async def begun(server, *overrides, clients=5):
    """A run, its devices, and the key of its round."""
    await budget(server, epsilon=1000.0)
    run, devices = await started(server, "rounds=1", *overrides, clients=clients)
    asked = [await device.assignment() for device in devices]
    return run, devices, asked[0].id, (await first_round(server, run)).id


async def send(server, run, devices, of, numbers):
    for number in numbers:
        answer = await devices[number].put(of, await drawn(server, run, number))
        assert answer.json()["verdict"] == "VERDICT_ACCEPTED"


async def gone(server, key):
    """Wait until nothing is stored of a round any more."""
    for _ in range(500):
        if not (left := await server.services.blobs.names(round_prefix(key))):
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(left)


async def model_after(folder, *, fold_every, order, looked_at=lambda _: True):
    """The model of a round whose updates come in an order and are added so many at a time.

    What the round stores is looked at where ``looked_at`` says so of the number of updates in its sum.
    """
    async with deployed(folder, fold_every=fold_every) as server:
        run, devices, of, key = await begun(server)
        for place, number in enumerate(order):
            await send(server, run, devices, of, [number])
            most = (place + 1) // fold_every * fold_every
            if 0 < most < len(order) and looked_at(most):
                await folded(server, key, most)
        event = (await until(server, of)).report
        assert event["cohort"] == event["reported"] == len(order)
        await gone(server, key)
        return (await server.context(run)).run.model


def test_whatever_is_added_when_the_model_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(private_rounds, "fresh_key", lambda: b"n" * 32)
    orders = [np.random.default_rng(seed).permutation(5) for seed in range(3)]
    found = [
        run_async(model_after(tmp_path / f"{place} {every}", fold_every=every, order=order))
        for place, order in enumerate(orders)
        for every in (1, 2, 1000)
    ]
    assert len(set(found)) == 1


def test_a_run_whose_updates_are_added_as_they_come_gives_the_model_of_the_simulation(tmp_path, monkeypatch):
    plan = read_plan(PLAN, ("evaluation.baselines=[]", *PRIVATE, *SCALED))
    prepared = prepare(plan)
    simulated = simulate(plan, out=tmp_path / "simulated", executor="serial").summary["model_sha256"]
    monkeypatch.setattr(private_rounds, "fresh_key", lambda: simulated_key(prepared.streams))

    async def trained(server, run, number):
        state, alone = (await server.context(run)).state, np.array([number], dtype=np.int64)
        asked = Assignment(
            state.round + 1, state.layout, state.model, alone, 4, state.features, clip_norm_of(state)
        )  # fmt: skip
        with use(PLAIN):
            return encode_update(client_update(
                prepared.plan, asked, prepared.clients(alone, state.features), {}, prepared.streams
            )[0])  # fmt: skip

    async def work():
        async with deployed(tmp_path, fold_every=1) as server:
            await budget(server, epsilon=1000.0)
            run, devices = await started(server, clients=4)
            for _ in range(3):
                asked = [await device.assignment() for device in devices]
                key = (await first_round(server, run)).id
                for place, number in enumerate((2, 0, 3, 1)):
                    answer = await devices[number].put(asked[0].id, await trained(server, run, number))
                    assert answer.status_code == 200, answer.text
                    if place < 3:
                        await folded(server, key, place + 1)
                await until(server, asked[0].id)
            found = (await server.context(run)).run
            content = b"".join([part async for part in server.services.blobs.read(f"models/{found.model}")])
            assert as_simulated(prepared, content, found.round) == simulated

    run_async(work())


def test_an_open_round_keeps_a_few_updates_and_one_sum(tmp_path):
    async def work():
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [3, 0, 1])
            round_ = await folded(server, key, 2)
            blobs = await server.services.blobs.listed(round_prefix(key))
            assert [each.name for each in blobs if each.name.startswith(sums_prefix(key))] == [Partial.of(round_).blob]
            used = await usage.of_tenant(server.services, server.token.tenant)
            assert used.update_bytes == sum(each.size for each in blobs)
            assert max(each.size for each in blobs) < 1.5 * min(each.size for each in blobs)

    run_async(work())


def test_a_report_that_is_in_a_sum_is_answered_as_before(tmp_path):
    async def work():
        async with deployed(tmp_path, fold_every=1) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0])
            await folded(server, key, 1)
            await send(server, run, devices, of, [0])
            assert code_of(await devices[0].put(of, await drawn(server, run, 99))) == "HANSA-REPORT-ANSWERED"
            path = f"/v1/updates/{key.run}/{key.kind}/{key.round}/{key.attempt}"
            body = await drawn(server, run, 0)
            part = {"whole": body, "Content-Range": f"bytes 0-9/{len(body)}", "path": path}
            assert (await devices[0].put(of, body[:10], **part)).json()["verdict"] == "VERDICT_ACCEPTED"
            (report,) = await reports_of(server, key)
            assert report.folded == 1
            await send(server, run, devices, of, [1])
            await folded(server, key, 2)

    run_async(work())


def test_parts_that_another_replica_took_for_an_update_that_is_in_a_sum_are_not_begun_again(tmp_path):
    """That replica does not know yet that the client has answered."""

    async def work():
        async with deployed(tmp_path, fold_every=1) as server:
            run, devices, of, key = await begun(server)
            board = server.services.board.rounds[key]
            behind = dict(board.open)
            await send(server, run, devices, of, [0])
            await folded(server, key, 1)
            board.open.update(behind)
            body = await drawn(server, run, 0)
            sent = {"whole": body, "Content-Range": f"bytes 0-9/{len(body)}"}
            assert (await devices[0].put(of, body[:10], **sent)).json()["verdict"] == "VERDICT_ACCEPTED"
            await folded(server, key, 1)

    run_async(work())


def test_an_update_that_cannot_be_counted_ends_the_attempt_and_its_client(tmp_path):
    async def work():
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0])
            content, services = await drawn(server, run, 1, norm=1.5), server.services
            sha256, client = hashlib.sha256(content).hexdigest(), devices[1].id
            sealing = services.keys.unwrap(round_name(key), (await server.round(of)).key)
            sealed = b"".join(seal(sealing, binding(key, client, sha256, 0), [content]))
            await services.blobs.put_bytes(part_name(key, client, sha256, 0), sealed)
            prefix, now = update_prefix(key, client), server.clock.now()
            await Recorder(services).record(Report(key, client, 0, sha256, len(content), prefix, now))
            given_up = await server.given_up(of)
            assert "not what was acknowledged" in given_up.report["why"]
            async with services.store.reading() as rows:
                assert (await rows.clients.get(client)).state == "suspended"
                assert (await rows.clients.get(devices[0].id)).state == "active"
            assert (await server.context(run)).run.round == 0
            await gone(server, key)

    run_async(work())


async def spoil_bytes(server, key):
    (name,) = await server.services.blobs.names(sums_prefix(key))
    path = server.services.blobs.path(name)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


async def spoil_reports(server, key):
    """Another report is said to be in the sum."""
    async with server.services.store.transaction() as rows:
        await rows.reports._on.run(update(tables.reports).where(tables.reports.c.folded == 1).values(sha256="f" * 64))


async def spoil_marks(server, key):
    """A report that is in the sum is said not to be."""
    async with server.services.store.transaction() as rows:
        await rows.reports._on.run(update(tables.reports).where(tables.reports.c.folded == 1).values(folded=0))


@pytest.mark.parametrize("spoil", [spoil_bytes, spoil_reports, spoil_marks])
def test_a_sum_that_is_not_of_its_reports_counts_nothing(tmp_path, spoil):
    async def work():
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0, 1])
            await folded(server, key, 2)
            await spoil(server, key)
            for number in (2, 3, 4):
                await devices[number].put(of, await drawn(server, run, number))
            given_up = await server.given_up(of)
            assert "cannot be read" in given_up.report["why"]
            assert (await server.context(run)).run.round == 0
            again = await devices[0].assignment()
            assert (again.id.round, again.id.attempt) == (1, of.attempt + 1)

    run_async(work())


def test_a_sum_that_counts_somebody_twice_is_not_used(tmp_path, monkeypatch):
    def twice(summed, batch, position):
        batch.lanes[:, 0] += position == 4
        add(summed, batch, position)

    async def work():
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, _ = await begun(server)
            await send(server, run, devices, of, range(5))
            assert "Of 5 there are 6" in (await server.given_up(of)).report["why"]

    add = RingFold.add
    monkeypatch.setattr(RingFold, "add", twice)
    run_async(work())


class Meeting:
    """Blobs whose every new sum waits until another is written too."""

    def __init__(self, blobs):
        self.blobs, self.barrier = blobs, asyncio.Barrier(2)

    def __getattr__(self, name):
        return getattr(self.blobs, name)

    async def put_made(self, name, make):
        await self.blobs.put_made(name, make)
        await self.barrier.wait()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_of_two_replicas_that_add_the_same_updates_one_counts(tmp_path, database, monkeypatch, request):
    monkeypatch.setattr(private_rounds, "fresh_key", lambda: b"n" * 32)
    settings = {"database": request.getfixturevalue("postgres").fresh()} if database == "postgresql" else {}

    async def work():
        async with deployed(tmp_path / "two", fold_every=1000, **settings) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0, 1, 2])
            for _ in range(500):
                if (round_ := await server.round(of)).state == "collecting":
                    break
                await asyncio.sleep(0.02)
            meeting, of_services = Meeting(server.services.blobs), server.services
            other = SimpleNamespace(
                store=of_services.store, blobs=meeting, keys=of_services.keys, settings=SimpleNamespace(fold_every=2)
            )
            context = await server.context(run)
            both = [partial_sums.fold(other, context, round_, reported=3) for _ in range(2)]
            told = await asyncio.gather(*both, return_exceptions=True)
            assert sorted(map(type, told), key=str) == sorted([bool, StoreConflictError], key=str)
            await folded(server, key, 2)
            assert [report.folded for report in await reports_of(server, key)] == [1, 1, 0]
            await send(server, run, devices, of, [3, 4])
            await until(server, of)
            return (await server.context(run)).run.model

    alone = run_async(model_after(tmp_path / "one", fold_every=1000, order=range(5)))
    assert run_async(work()) == alone


@pytest.mark.parametrize("point", ["coordinator.fold.written", "coordinator.fold.committed"])
def test_a_replica_that_dies_in_between_leaves_nothing_that_the_next_fold_does_not_find(tmp_path, point, monkeypatch):
    died = []

    def dies(name):
        if name == point and not died:
            died.append(name)
            raise RuntimeError(name)

    monkeypatch.setattr(partial_sums, "reached", dies)
    monkeypatch.setattr(private_rounds, "fresh_key", lambda: b"n" * 32)
    found = run_async(model_after(tmp_path / "dies", fold_every=2, order=range(5), looked_at=lambda most: most == 4))
    assert died == [point]
    assert found == run_async(model_after(tmp_path / "lives", fold_every=1000, order=range(5)))


def test_partial_sums_of_rounds_that_are_over_are_swept_and_those_of_open_rounds_are_kept(tmp_path):
    async def work():
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0, 1])
            round_ = await folded(server, key, 2)
            services, orphan = server.services, partial_name(replace(key, round=7), 3, "ab")
            await services.blobs.put_bytes(orphan, b"left by a replica that died")
            swept = await sweep(services.store, services.blobs, services.keys, now=server.clock.now() + 9e9)
            assert swept.updates == 1
            assert await services.blobs.names("updates/") == [Partial.of(round_).blob]

    run_async(work())


def test_a_round_that_was_partly_summed_when_a_backup_was_made_is_given_up_after_a_restore(tmp_path):
    async def work():
        folder, now = tmp_path / "server", 0.0
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0, 1, 2])
            await folded(server, key, 2)
            url, now = server.services.settings.database_url, server.clock.now()
            await asyncio.to_thread(back_up, url, folder / "blobs", tmp_path / "backup", now=now)
            await send(server, run, devices, of, [3, 4])
            await until(server, of)
        for name in ("hansa.sqlite", "hansa.sqlite-wal", "hansa.sqlite-shm"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "blobs")
        assert await restore(tmp_path / "backup", url, folder / "blobs", now=now) == 1
        async with deployed(tmp_path, fold_every=2) as again:
            assert (await again.round(of)).state == "abandoned"
            assert any(name.startswith(sums_prefix(key)) for name in await again.services.blobs.names("updates/"))
            services = again.services
            swept = await sweep(services.store, services.blobs, services.keys, now=again.clock.now() + 9e9)
            assert swept.updates == 2
            assert await services.blobs.names(round_prefix(key)) == []

    run_async(work())


def test_who_has_the_database_and_the_blobs_reads_no_sum_once_the_rounds_key_is_gone(tmp_path):
    async def work():
        async with deployed(tmp_path, fold_every=2) as server:
            run, devices, of, key = await begun(server)
            await send(server, run, devices, of, [0, 1])
            round_ = await folded(server, key, 2)
            partial, services = Partial.of(round_), server.services
            sealed = services.blobs.path(partial.blob).read_bytes()
            sealing = services.keys.unwrap(round_name(key), round_.key)
            bound = partial_binding(key, partial.number, partial.reports)
            assert len(b"".join(unseal(sealing, bound, [sealed]))) > 0
            await send(server, run, devices, of, [2, 3, 4])
            await until(server, of)
            for _ in range(500):
                if not [held for held in services.keys.held() if held.id == round_name(key)]:
                    return
                await asyncio.sleep(0.02)
            raise TimeoutError("the key is still there")

    run_async(work())


def test_a_run_whose_updates_come_faster_than_they_are_added_holds_up_no_other(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path, fold_every=1) as server:
            run, devices, of, _ = await begun(server, clients=3)
            adding = asyncio.Event()

            async def fold(*_args, **_more):
                adding.set()
                await asyncio.sleep(0)
                return True  # there is always more

            monkeypatch.setattr(partial_sums, "fold", fold)
            await send(server, run, devices, of, [0])
            await asyncio.wait_for(adding.wait(), 30)
            other = await server.submit(*PRIVATE, *SCALED)
            assert (await first_round(server, other)).id.run == other

    run_async(work())


async def submitted(server, *overrides):
    for number in range(16):
        await (await server.device(f"hospital {number}")).check_in()
    return await server.submit(*SCALED, "evaluation={federated=false}", *overrides)


def test_a_plan_whose_rounds_do_not_fit_the_quota_is_refused_with_the_numbers(tmp_path):
    """What floats need grows with the cohort, what integers need does not."""

    async def floats():
        async with deployed(tmp_path / "floats", fold_every=1, quota_bytes=1500) as server:
            await submitted(server)

    async def whole_numbers():
        async with deployed(tmp_path / "integers", fold_every=1, quota_bytes=1500) as server:
            await budget(server, epsilon=1000.0)
            assert await submitted(server, *PRIVATE)

    with pytest.raises(StoreError, match=r"16 x \d+ bytes of updates in an open round") as caught:
        run_async(floats())
    assert caught.value.code == "HANSA-SERVER-STORAGE"
    run_async(whole_numbers())
