"""The proxy of tests: passes everything unless told otherwise, and fails as it is told, the same way each time."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from hansa.testing import Proxy


@contextlib.asynccontextmanager
async def echo():
    """Serve what comes in on a port of its own."""

    async def answer(reader, writer):
        with contextlib.suppress(OSError):
            while content := await reader.read(65536):
                writer.write(content)
                await writer.drain()
            writer.write_eof()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def through(**settings):
    async with echo() as port, Proxy("127.0.0.1", port, **settings) as proxy:
        yield proxy


async def ask(proxy, content):
    """Send some bytes; return all that comes back, and whether the connection was reset."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)

    async def send():
        with contextlib.suppress(OSError):
            writer.write(content)
            await writer.drain()
            writer.write_eof()

    sending, answer, reset = asyncio.create_task(send()), b"", False
    try:
        while block := await reader.read(65536):
            answer += block
    except OSError:
        reset = True
    await sending
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()
    return answer, reset


def runs(test):
    def run():
        asyncio.run(asyncio.wait_for(test(), 30))

    run.__name__ = test.__name__
    return run


@runs
async def test_everything_passes_unless_told_otherwise():
    content = bytes(range(256)) * 20_000
    async with through() as proxy:
        answers = await asyncio.gather(*(ask(proxy, content) for _ in range(3)))
        assert answers == [(content, False)] * 3
        assert (proxy.accepted, proxy.broken) == (3, 0)
        assert proxy.passed == [3 * len(content)] * 2


@runs
async def test_nothing_is_left_open():
    async with through() as proxy:
        await ask(proxy, b"x")
        for _ in range(100):
            if not proxy.open:
                break
            await asyncio.sleep(0.01)
        assert proxy.open == 0
        port = proxy.port
    with pytest.raises(OSError, match="refused|failed"):
        await asyncio.open_connection("127.0.0.1", port)


@runs
async def test_a_delay_is_paid_once_in_each_direction_however_much_is_sent():
    content = b"x" * 2_000_000
    async with through(delay=0.1) as proxy:
        began = time.perf_counter()
        assert await ask(proxy, content) == (content, False)
        first = time.perf_counter() - began
        proxy.delay = 0.0
        began = time.perf_counter()
        assert await ask(proxy, content) == (content, False)
        second = time.perf_counter() - began
    assert 0.2 <= first < 2
    assert second < first - 0.1


@runs
async def test_bandwidth_is_kept_to():
    content = b"x" * 50_000
    async with through(bandwidth=100_000) as proxy:
        began = time.perf_counter()
        assert await ask(proxy, content) == (content, False)
        assert 0.45 < time.perf_counter() - began < 3


@runs
async def test_a_connection_breaks_after_so_many_bytes():
    async with through(cut_after=70_000) as proxy:
        for _ in range(3):
            answer, _ = await ask(proxy, b"x" * 1_000_000)
            assert len(answer) < 70_000
        assert proxy.broken == 3
        assert sum(proxy.passed) == 3 * 70_000
        assert await ask(proxy, b"x" * 30_000) == (b"x" * 30_000, False)
        proxy.cut_after = None
        assert len((await ask(proxy, b"x" * 1_000_000))[0]) == 1_000_000


@runs
async def test_connections_break_by_chance_and_the_same_ones_with_the_same_seed():
    async def broken(seed):
        async with through(seed=seed, loss=0.5, loss_within=1000) as proxy:
            return [(await ask(proxy, b"x" * 2000))[0] != b"x" * 2000 for _ in range(30)]

    first = await broken(1)
    assert 5 < sum(first) < 25
    assert await broken(1) == first
    assert await broken(2) != first


def test_the_fate_of_a_connection_follows_from_seed_and_number_alone():
    proxy = Proxy("127.0.0.1", 1, seed=3, loss=0.3, loss_within=1000)
    fates = [proxy.fate(number) for number in range(1, 2001)]
    assert fates == [Proxy("other", 2, seed=3, loss=0.3, loss_within=1000).fate(number) for number in range(1, 2001)]
    lost = [fate for fate in fates if fate < float("inf")]
    assert 500 < len(lost) < 700
    assert 0 <= min(lost) < 50
    assert 950 < max(lost) <= 1000
    proxy.loss, proxy.cut_after = 0.0, 10
    assert proxy.fate(1) == 10


@runs
async def test_nothing_passes_a_partition_and_all_goes_on_when_it_heals():
    async with through() as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        proxy.partition()
        writer.write(b"during")
        new = asyncio.create_task(ask(proxy, b"new"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        assert proxy.passed == [6, 6]
        assert not new.done()
        proxy.heal()
        assert await reader.readexactly(6) == b"during"
        assert await new == (b"new", False)
        writer.close()
        await writer.wait_closed()


@runs
async def test_a_partition_holds_what_is_already_on_its_way():
    async with through(delay=0.05) as proxy:
        asking = asyncio.create_task(ask(proxy, b"x"))
        await asyncio.sleep(0.02)
        proxy.partition()
        await asyncio.sleep(0.2)
        assert not asking.done()
        assert proxy.passed == [0, 0]
        proxy.heal()
        assert await asking == (b"x", False)


@runs
async def test_all_connections_can_be_cut_and_new_ones_are_taken():
    async with through(delay=0.2) as proxy:
        asking = [asyncio.create_task(ask(proxy, b"x" * 1000)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert proxy.open == 3
        proxy.cut()
        assert await asyncio.gather(*asking) == [(b"", True)] * 3
        assert proxy.broken == 3
        proxy.delay = 0.0
        assert await ask(proxy, b"again") == (b"again", False)


@runs
async def test_a_target_that_is_away_closes_the_connection_and_may_come_back():
    async with echo() as port:
        pass
    async with Proxy("127.0.0.1", port) as proxy:
        answer, _ = await ask(proxy, b"x")
        assert answer == b""
        async with echo() as back:
            proxy.target = ("127.0.0.1", back)
            assert await ask(proxy, b"x") == (b"x", False)


@runs
async def test_one_that_leaves_early_is_no_trouble():
    async with through(delay=0.05) as proxy:
        for _ in range(5):
            _, writer = await asyncio.open_connection(proxy.host, proxy.port)
            writer.write(b"x" * 100_000)
            writer.transport.abort()
        await asyncio.sleep(0.2)
        assert await ask(proxy, b"x") == (b"x", False)
