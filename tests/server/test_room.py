"""Room in memory for what comes in."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hansa.core.errors import RefusedError
from hansa.server.room import Bodies, Room


async def _held(room, size, entered, leave):
    async with room.of(size):
        entered.append(size)
        await leave.wait()


def test_who_comes_when_it_is_full_waits_for_its_turn():
    async def work():
        room, entered, leave = Room(10), [], [asyncio.Event() for _ in range(4)]
        tasks = [
            asyncio.create_task(_held(room, size, entered, event))
            for size, event in zip((6, 5, 1, 4), leave, strict=True)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert entered == [6]  # the small one behind does not overtake: no one waits for ever
        leave[0].set()
        await tasks[0]
        await asyncio.sleep(0)
        assert entered == [6, 5, 1, 4]
        for event in leave:
            event.set()
        await asyncio.gather(*tasks)
        assert room.taken == 0

    asyncio.run(work())


def test_one_that_needs_more_than_all_has_it_alone():
    async def work():
        room = Room(10)
        async with room.of(25), asyncio.timeout(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), room.of(1):
                    pass
        async with room.of(1):
            assert room.taken == 1

    asyncio.run(work())


def test_who_gives_up_leaves_the_room_to_others():
    async def work():
        room, entered, leave = Room(10), [], asyncio.Event()
        first = asyncio.create_task(_held(room, 10, entered, leave))
        await asyncio.sleep(0)
        second = asyncio.create_task(_held(room, 10, entered, leave))
        third = asyncio.create_task(_held(room, 3, entered, leave))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        leave.set()
        await asyncio.gather(first, third)
        assert entered == [10, 3]
        assert room.taken == 0

    asyncio.run(work())


@pytest.mark.parametrize(("client", "most"), [("one", 2), ("", 64)])
def test_one_body_too_many_of_a_client_or_of_nobody_is_refused_and_room_is_given_back(client, most):
    bodies = Bodies()
    with contextlib.ExitStack() as held:
        for _ in range(most):
            held.enter_context(bodies.one(client))
        with pytest.raises(RefusedError) as caught, bodies.one(client):
            pass
        assert caught.value.code == "HANSA-SERVER-BUSY"
        with bodies.one("another"):
            pass
    assert not bodies.reading
