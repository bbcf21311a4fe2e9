"""Admission "checked-in": picked are those who called lately, whichever replica; of others nothing is written."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from tests.server.by_hand import deployed, run_async, serving

from hansa.server.callers import Callers
from hansa.server.opening import eligible_of
from hansa.server.shared_callers import SharedCallers, recent_callers, window
from hansa.store.schema import parse_url

TRAINS_AT_ONCE = ("evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=9")
IDLE = {"tick_seconds": 60, "lease_seconds": 300}
"""Of a replica that looks for runs once, as it starts."""


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request):
    """Settings of replicas that share a database, SQLite in their folder or a PostgreSQL."""
    return {} if request.param == "sqlite" else {"database": request.getfixturevalue("postgres").fresh()}


async def admit(server, admission="checked-in"):
    async with server.services.store.transaction() as rows:
        await rows.populations.change(replace(server.population, admission=admission))


def written(services):
    """Return the rows about callers, each with its moment and size."""
    engine = create_engine(parse_url(services.settings.database_url))
    with engine.connect() as connection:
        found = connection.execute(text("SELECT at, length(callers) FROM recent_callers ORDER BY number")).all()
    engine.dispose()
    return [tuple(row) for row in found]


async def recent(services, population="population-1"):
    async with services.store.reading() as rows:
        return (await recent_callers(services, rows, population)).tolist()


def sharing_alone(services):
    """Return what tells of callers when a test says so, and never by itself."""
    services.stopping.set()  # the work in the background ends; calls are answered still
    return SharedCallers(services)


async def until_written(services, count=1):
    for _ in range(500):
        if len(written(services)) >= count:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


def test_a_replica_picks_those_who_called_another(tmp_path, settings):
    async def work():
        async with deployed(tmp_path, **settings) as server:
            await admit(server)
            async with serving(tmp_path, server.clock, **settings, **IDLE) as (other, http):
                devices = [await server.device(name) for name in "abc"]
                stranger = await server.device("d")
                for device in devices:
                    device.http = http
                    await device.check_in()
                server.clock.time += window(other, 4) / 5  # by now the replica has told of all three
                run = await server.submit(*TRAINS_AT_ONCE, wait_for=3)
                assigned = await asyncio.gather(*[device.assignment(10.0) for device in devices])
                assert {each.id.run for each in assigned} == {run}
                assert not (await stranger.check_in()).HasField("assignment"), "it had not called when the round opened"
                assert other.board.callers.count("population-1") == 3
                assert server.services.board.callers.count("population-1") == 1

    run_async(work())


def test_a_replica_that_was_started_again_picks_those_who_called_before(tmp_path, settings):
    async def work():
        async with deployed(tmp_path, **settings, **IDLE) as server:
            await admit(server)
            devices = [await server.device(name) for name in "abc"]
            for device in devices:
                await device.check_in()
            run = await server.submit(*TRAINS_AT_ONCE, wait_for=3)
        server.clock.time += 30
        async with serving(tmp_path, server.clock, **settings) as (services, _):
            for _ in range(500):
                async with services.store.reading() as rows:
                    opened = await rows.rounds.open_of(run)
                if opened:
                    break
                await asyncio.sleep(0.02)
            assert [round_.cohort_size for round_ in opened] == [3]

    run_async(work())


def test_a_replica_that_was_lost_told_of_its_callers_before(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await admit(server)
            devices = [await server.device(name) for name in "abc"]
            await devices[0].check_in()
            await until_written(server.services)  # at once; those who call now are told of a little later
            for device in devices[1:]:
                await device.check_in()
            server.clock.time += window(server.services, 3) / 5
            await until_written(server.services, count=2)
            async with serving(tmp_path, server.clock, **IDLE) as (other, _):  # while the first one has not ended
                assert await recent(other) == [0, 1, 2]

    run_async(work())


def test_who_called_before_the_window_is_not_picked_whatever_replica_is_asked(tmp_path):
    async def work():
        async with deployed(tmp_path) as server, serving(tmp_path, server.clock, **IDLE) as (other, _):
            await admit(server)
            context = await server.context(await server.submit(*TRAINS_AT_ONCE, wait_for=5))
            first, second = [await server.device(name) for name in "ab"]
            sharing = sharing_alone(server.services)

            async def eligible():
                counts = [(await eligible_of(each, context)).count for each in (server.services, other)]
                assert counts[0] == counts[1]
                return counts[0]

            assert await eligible() == 0, "enrolling is no check-in"
            await first.check_in()
            server.clock.time += 1
            await sharing.share(at_once=True)
            assert await eligible() == 1
            server.clock.time += window(other, 2) / 2
            assert await eligible() == 1
            await second.check_in()
            await sharing.share(at_once=True)
            assert await eligible() == 2
            server.clock.time += window(other, 2) / 2 + 1
            assert await eligible() == 1
            server.clock.time += window(other, 2)
            assert await eligible() == 0

    run_async(work())


def test_a_row_is_written_once_in_a_while_and_only_if_somebody_called_and_old_ones_go(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            await admit(server)
            board = SimpleNamespace(callers=Callers())  # not the one that the server's own work tells of
            services = SimpleNamespace(**{**vars(server.services), "board": board})
            sharing, began = SharedCallers(services), server.clock.time
            for second in range(200):
                if second < 100:
                    services.board.callers.called("population-1", second % 7, server.clock.now())
                await sharing.share()
                server.clock.time += 1
            moments = [at - began for at, _ in written(services)]
            pause = window(services, 0) / 10
            assert pause == 7.5
            assert np.diff(moments).min() >= pause, "seldom"
            assert moments[-1] <= 100 + pause + 1, "nobody called after that"
            assert moments[0] >= moments[-1] - window(services, 0), "what is older is gone"
            assert len(moments) == 10

    run_async(work())


def test_of_a_population_that_is_admitted_by_enrolment_nothing_is_written(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            sharing = sharing_alone(server.services)
            await device.check_in()
            for _ in range(3):
                await sharing.share(at_once=True)
                server.clock.time += 100
            assert written(server.services) == []
            await admit(server)
            await sharing.share(at_once=True)
            assert written(server.services) == [], "a call that was never told is not told as new"

    run_async(work())


def test_who_of_a_million_called_is_told_in_125_kilobytes_and_nobody_else_is(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            services, million = server.services, 1_000_000
            await admit(server)
            numbers = np.flatnonzero(np.random.default_rng(7).random(million) < 0.5)
            for number in (million - 1, *numbers.tolist()):
                services.board.callers.called("population-1", number, server.clock.now())
            engine = create_engine(parse_url(services.settings.database_url))
            with engine.begin() as connection:
                connection.execute(text("UPDATE populations SET numbers = :n"), {"n": million})
            engine.dispose()
            await SharedCallers(services).share(at_once=True)
            assert max(size for _, size in written(services)) <= million / 8 + 100
            services.board.callers.times.clear()
            assert await recent(services) == sorted({*numbers.tolist(), million - 1})

    run_async(work())
