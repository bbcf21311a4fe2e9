"""Reports that come in numbers share a transaction; one that comes alone does not wait for others."""

from __future__ import annotations

import asyncio

from hansa.server.recorder import Recorder
from hansa.wire.verdicts import ACCEPTED


async def batches_of(count, apart):
    """Return how many reports each transaction held, of so many that come so many seconds apart."""
    found, recorder = [], Recorder(None)

    async def write(batch):
        found.append(len(batch))
        for each in batch:
            each.answer.set_result(ACCEPTED)

    recorder._write = write
    calls = []
    for _ in range(count):
        calls.append(asyncio.create_task(recorder.record(None)))
        await asyncio.sleep(apart)
    assert await asyncio.gather(*calls) == [ACCEPTED] * count
    return found


def test_a_few_reports_are_written_as_they_come():
    assert asyncio.run(batches_of(4, 0.002)) == [1, 1, 1, 1]


def test_many_reports_are_gathered_and_none_is_lost():
    found = asyncio.run(batches_of(120, 0.0))
    assert sum(found) == 120
    assert max(found) > 1
