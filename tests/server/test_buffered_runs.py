"""What becomes of reports of a run whose clients train all the time, whatever comes between."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from tests.server.by_hand import Deployed, Device, deployed, run_async

from hansa.core.errors import StoreConflictError
from hansa.server import buffered_runs, coordinator
from hansa.server.round_ends import RoundEnds
from hansa.store.records import RoundKey
from hansa.wire.generated import federation_pb2 as messages

PLAN = (
    "features.label=disease",
    "features.scaling=none",
    "evaluation.federated=false",
    'aggregator={kind="fixed-mean", divisor=2}',
)


async def _asked(devices: list[Device], count: int) -> list[tuple[Device, messages.Assignment]]:
    """Return who is asked to train, and what, once so many are."""
    for _ in range(200):
        answers = [(device, await device.check_in()) for device in devices]
        found = [(device, each.assignment) for device, each in answers if each.HasField("assignment")]
        if len(found) >= count:
            return [(device, messages.Assignment.FromString(each.assignment)) for device, each in found]
        await asyncio.sleep(0.02)
    raise TimeoutError


async def _started(server: Deployed, *plan: str, clients: int = 4) -> tuple[str, list[Device]]:
    devices = [await server.device(f"device {number}") for number in range(clients)]
    for device in devices:
        await device.check_in()
    return await server.submit(*PLAN, *plan), devices


def _key(assigned: messages.Assignment) -> RoundKey:
    return RoundKey(assigned.id.run, "training", assigned.id.round, assigned.id.attempt)


def test_an_update_that_cannot_be_counted_leaves_the_buffer_and_the_run_goes_on(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            run, devices = await _started(
                server,
                'schedule={kind="buffered", buffer_size=2, concurrency=2}',
                'transforms=[{kind="int8-rotation", block=64}]',
            )
            (bad, first), (good, second) = await _asked(devices, 2)
            lanes = safetensors.numpy.load(await server.update(first))["lanes"]

            def update(scale: float) -> bytes:
                form = {"values": np.full(64, 127, dtype=np.int8), "side/scales": np.full(1, scale, dtype=np.float32)}
                return safetensors.numpy.save({"lanes": lanes, **form})

            await bad.put(first.id, update(3e38))
            await asyncio.sleep(0.1)  # the run's notes hold it now
            await good.put(second.id, update(1.0))
            await asyncio.sleep(0.1)
            others = [device for device in devices if device not in (bad, good)]
            device, assigned = (await _asked(others, 1))[0]
            await device.put(assigned.id, update(1.0))
            for _ in range(100):
                async with server.services.store.reading() as rows:
                    found = await rows.runs.get(run)
                if found.round:
                    break
                await asyncio.sleep(0.02)
            assert (found.state, found.round) == ("running", 1)
            assert [event.client for event in await server.events("client.suspended")] == [bad.id]

    run_async(work())


def test_a_buffered_run_for_which_too_few_clients_are_there_says_so_until_it_goes_on(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            schedule = 'schedule={kind="buffered", buffer_size=2, concurrency=2}'
            run = await server.submit(*PLAN, schedule, wait_for=3)
            for _ in range(500):
                if events := await server.events("run.waiting"):
                    break
                await asyncio.sleep(0.02)
            assert events[0].detail["why"] == "the run (--wait-for) needs 3 eligible clients, and fewer are"
            assert (await server.context(run)).run.why == events[0].detail["why"]
            await _asked([*devices, await server.device("c")], 2)
            assert (await server.context(run)).run.why is None
            assert len(await server.events("run.waiting")) == 1

    run_async(work())


def test_a_report_that_is_too_stale_when_it_is_looked_at_is_late_and_not_open_for_ever(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            schedule = 'schedule={kind="buffered", buffer_size=1, concurrency=2, max_staleness=0}'
            _, devices = await _started(server, schedule)
            asked = await _asked(devices, 2)
            both, look = asyncio.Event(), buffered_runs.look

            async def later(*arguments):
                await both.wait()
                return await look(*arguments)

            monkeypatch.setattr(buffered_runs, "look", later)
            await asyncio.sleep(0.1)  # a look that had begun is over
            for device, assigned in asked:
                answer = await device.put(assigned.id, await server.update(assigned))
                assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
            both.set()
            for _ in range(100):
                if (await server.round(asked[0][1].id)).state == "closed":
                    break
                await asyncio.sleep(0.02)
            outcomes = [(await device.check_in(reported=assigned.id)).outcome for device, assigned in asked]
            assert sorted(outcomes) == [messages.OUTCOME_INCLUDED, messages.OUTCOME_NOT_INCLUDED]

    run_async(work())


def test_who_has_just_answered_is_not_given_up(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            _, devices = await _started(server, 'schedule={kind="buffered", buffer_size=2, concurrency=2}')
            device, assigned = (await _asked(devices, 2))[0]
            await device.put(assigned.id, await server.update(assigned))
            given_up = {_key(assigned): {device.id: "lost"}}
            with pytest.raises(StoreConflictError):
                async with server.services.store.transaction() as rows:
                    await buffered_runs._settle(rows, given_up)
            async with server.services.store.reading() as rows:
                assert await rows.rounds.fate(_key(assigned), device.id) == "reported"

    run_async(work())


def test_a_paused_run_opens_nothing(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            schedule = 'schedule={kind="buffered", buffer_size=1, concurrency=2}'
            run, devices = await _started(server, schedule)
            await _asked(devices, 2)
            opened = []

            async def open_next(*arguments):
                opened.append(arguments)
                raise StoreConflictError("A run")

            monkeypatch.setattr(coordinator, "open_next", open_next)
            due = coordinator.lifecycle.Upcoming("evaluation", 0, everyone=True)
            monkeypatch.setattr(coordinator.lifecycle, "upcoming", lambda *_: due)
            async with server.services.store.transaction() as rows:
                found = await rows.runs.get(run)
                await rows.runs.change(replace(found, state="paused"))
            await asyncio.sleep(0.1)
            opened.clear()
            await asyncio.sleep(0.2)
            assert opened == []

    run_async(work())


def test_a_replica_that_is_behind_refuses_no_update_that_another_has_counted(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            _, devices = await _started(server, 'schedule={kind="buffered", buffer_size=2, concurrency=2}')
            asked = await _asked(devices, 2)
            for device, assigned in asked:
                await device.put(assigned.id, await server.update(assigned))
            for _ in range(500):
                if await server.events("round.closed"):
                    break
                await asyncio.sleep(0.02)
            device, assigned = asked[0]
            async with server.services.store.reading() as rows:
                report = await rows.reports.get(_key(assigned), device.id)
            with pytest.raises(StoreConflictError):
                await RoundEnds(server.services).refuse(report)
            async with server.services.store.reading() as rows:
                assert await rows.rounds.fate(_key(assigned), device.id) == "included"
            assert await server.events("client.suspended") == []

    run_async(work())
