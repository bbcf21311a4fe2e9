"""How the server records reports, on each database: each once, and whoever reports gets a verdict of its own."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.store.rows import enrolled, opened, report_of

from hansa.core.errors import RefusedError, StoreConflictError, StoreError
from hansa.server.board import Board
from hansa.server.recorder import Recorder
from hansa.wire.verdicts import ACCEPTED, LATE


def _recorder(store):
    return Recorder(SimpleNamespace(store=store, board=Board()))


def _code(verdict):
    return verdict.code if isinstance(verdict, Exception) else verdict


async def _recorded(recorder, reports):
    found = await asyncio.gather(*[recorder.record(each) for each in reports], return_exceptions=True)
    return [_code(each) for each in found]


def test_the_same_report_is_acknowledged_again_and_another_refused_however_many_come_at_once(run_on):
    async def test(store, seed):
        [client] = await enrolled(store, seed.population, 1)
        round_ = await opened(store, seed.run, [client])
        reports = [report_of(round_.id, client, digest * 64) for digest in "aab" * 4]
        for _ in range(2):  # in one transaction, and in one that finds what an earlier one wrote
            assert await _recorded(_recorder(store), reports) == [ACCEPTED, ACCEPTED, "HANSA-REPORT-ANSWERED"] * 4
        async with store.reading() as rows:
            assert [each.sha256 for each in await rows.reports.of(round_.id)] == ["a" * 64]
            assert await rows.rounds.count_fates(round_.id) == {"reported": 1}

    run_on(test)


def test_reports_that_are_written_together_get_verdicts_of_their_own(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 6)
        frozen = await opened(store, seed.run, clients[:1], number=1, state="aggregating")
        round_ = await opened(store, seed.run, clients[:5], number=2)
        async with store.transaction() as rows:
            await rows.rounds.set_fates(round_.id, {clients[1].id: "lost", clients[2].id: "declined"})
        unknown = replace(report_of(round_.id, clients[4]), blob="")
        reports = [report_of(frozen.id, clients[0]), *[report_of(round_.id, each) for each in clients[:4]], unknown]
        verdicts = await _recorded(_recorder(store), [*reports, report_of(round_.id, clients[5])])
        assert verdicts == [LATE, ACCEPTED, LATE, LATE, ACCEPTED, "HANSA-SERVER-BUSY", "HANSA-REPORT-UNEXPECTED"]
        async with store.reading() as rows:
            assert [each.client for each in await rows.reports.of(round_.id)] == [clients[0].id, clients[3].id]
            assert [each.position for each in await rows.reports.of(round_.id)] == [0, 3]
            fates = {each.client: each.fate for each in await rows.rounds.assigned(round_.id)}
        assert [fates[each.id] for each in clients[:5]] == ["reported", "late", "declined", "reported", None]

    run_on(test)


def test_two_recorders_that_write_at_once_record_each_report_once(run_on):
    """Two replicas get the same reports, in another order: one waits for the other."""

    async def test(store, seed):
        clients = await enrolled(store, seed.population, 40)
        round_ = await opened(store, seed.run, clients)
        reports = [report_of(round_.id, each) for each in clients]
        found = await asyncio.gather(
            _recorded(_recorder(store), reports), _recorded(_recorder(store), list(reversed(reports)))
        )
        assert found == [[ACCEPTED] * 40] * 2
        async with store.reading() as rows:
            assert len(await rows.reports.of(round_.id)) == 40

    run_on(test)


def test_a_report_of_a_round_that_is_not_there_is_unexpected(run_on):
    async def test(store, seed):
        [client] = await enrolled(store, seed.population, 1)
        round_ = await opened(store, seed.run, [client])
        nowhere = replace(report_of(round_.id, client), round=replace(round_.id, attempt=7))
        with pytest.raises((RefusedError, StoreError), match="HANSA-REPORT-UNEXPECTED|assignments"):
            await _recorder(store).record(nowhere)

    run_on(test)


def test_a_report_goes_into_one_partial_sum_whoever_asks(run_on):
    async def test(store, seed):
        clients = await enrolled(store, seed.population, 4)
        round_ = await opened(store, seed.run, clients)
        await _recorded(_recorder(store), [report_of(round_.id, each) for each in clients])
        async with store.transaction() as rows:
            waiting = await rows.reports.waiting(round_.id, 2)
            assert [each.client for each in waiting] == [each.id for each in clients[:2]]
            await rows.reports.fold(round_.id, [each.client for each in waiting], 1)
        with pytest.raises(StoreConflictError):
            async with store.transaction() as rows:
                await rows.reports.fold(round_.id, [clients[1].id, clients[2].id], 2)
        async with store.reading() as rows:
            assert [each.folded for each in await rows.reports.of(round_.id)] == [1, 1, 0, 0]
            assert await rows.reports.folded(round_.id, [clients[1].id, clients[2].id]) == {clients[1].id}
            assert len(await rows.reports.waiting(round_.id, 9)) == 2
        again = [report_of(round_.id, clients[0]), report_of(round_.id, clients[0], "b" * 64)]
        assert await _recorded(_recorder(store), again) == [ACCEPTED, "HANSA-REPORT-ANSWERED"]

    run_on(test)
