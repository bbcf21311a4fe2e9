"""A network that fails on demand: a TCP proxy between a client and a server under test.

    async with Proxy("127.0.0.1", port, seed=1, loss=0.1) as proxy:
        ...                      # connect to proxy.host and proxy.port
        proxy.delay = 0.2        # from now on
        proxy.partition()        # nothing passes, in both directions, until heal()
        proxy.cut()              # every connection is reset

What befalls a connection follows from the seed and the connection's number, not from how bytes are timed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

_BLOCK: Final = 64 * 1024
_IN_FLIGHT: Final = 16
"""Blocks of one direction that are on their way at most."""
_STEPS: Final = 50
"""Pieces of a second in which a bandwidth is shared out."""


@dataclass(eq=False)
class _Connection:
    """Two sockets, and how many bytes may pass between them until it breaks."""

    client: asyncio.StreamWriter
    left: float
    server: asyncio.StreamWriter | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def writers(self) -> list[asyncio.StreamWriter]:
        return [self.client] if self.server is None else [self.client, self.server]

    def end(self, *, reset: bool) -> None:
        """Close both sockets at once; with ``reset`` what was on its way is lost too."""
        for writer in self.writers():
            sock: socket.socket | None = writer.get_extra_info("socket")
            if reset and sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class Proxy:
    """Passes connections on to a target, as badly as it is told. All settings may change at any time.

    ``delay``: seconds that every byte takes in each direction. ``bandwidth``: bytes a second in each direction of a
    connection; None: no limit. ``loss``: probability that a connection breaks, after a number of bytes up to
    ``loss_within`` that the seed draws. ``cut_after``: bytes, both directions together, after which every connection
    breaks; None: never. The last three are those of the moment at which a connection begins.
    """

    def __init__(  # noqa: PLR0913 - one for each way to fail
        self,
        target_host: str,
        target_port: int,
        *,
        seed: int = 0,
        delay: float = 0.0,
        bandwidth: float | None = None,
        loss: float = 0.0,
        loss_within: int = _BLOCK,
        cut_after: int | None = None,
    ) -> None:
        self.target = (target_host, target_port)
        self.seed = seed
        self.delay = delay
        self.bandwidth = bandwidth
        self.loss = loss
        self.loss_within = loss_within
        self.cut_after = cut_after
        self.host = "127.0.0.1"
        self.port = 0
        self.accepted = 0
        """Connections that came."""
        self.broken = 0
        """Connections that ``loss``, ``cut_after`` or ``cut()`` broke."""
        self.passed = [0, 0]
        """Bytes that passed to the target, and back."""
        self._passing = asyncio.Event()
        self._passing.set()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=_BLOCK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        ending = [task for connection in self._connections for task in connection.tasks]
        for connection in tuple(self._connections):
            connection.end(reset=True)
        await asyncio.gather(*ending, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    @property
    def open(self) -> int:
        """Return how many connections are open."""
        return len(self._connections)

    def partition(self) -> None:
        """Let nothing pass: what is sent waits, and connections that are made get no answer."""
        self._passing.clear()

    def heal(self) -> None:
        """Let pass again; what waited goes on."""
        self._passing.set()

    def cut(self) -> None:
        """Reset every connection. New ones are taken."""
        for connection in tuple(self._connections):
            self._break(connection, reset=True)

    def fate(self, number: int) -> float:
        """Return after how many bytes connection ``number`` (from 1) breaks under the settings of now; or infinity."""
        drawn = random.Random(f"{self.seed}/{number}")  # noqa: S311 - repeats with the seed, protects nobody
        unlucky, within = drawn.random() < self.loss, drawn.randint(0, self.loss_within)
        limits = [float(within)] if unlucky else []
        return min([*limits, float("inf") if self.cut_after is None else float(self.cut_after)])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(writer, self.fate(self.accepted))
        self._connections.add(connection)
        task = asyncio.current_task()
        if task is not None:
            connection.tasks.append(task)
        try:
            await self._serve(connection, reader)
        except (OSError, asyncio.CancelledError):
            connection.end(reset=False)
        finally:
            self._connections.discard(connection)
            for each in connection.writers():
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    each.close()
                    await each.wait_closed()

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        await self._passing.wait()
        from_server, connection.server = await asyncio.open_connection(*self.target, limit=_BLOCK)
        for writer in connection.writers():
            writer.transport.set_write_buffer_limits(high=0)  # so that drain() waits until all is written
        directions = (reader, connection.server, 0), (from_server, connection.client, 1)
        tasks = [asyncio.create_task(self._pass(connection, *direction)) for direction in directions]
        connection.tasks.extend(tasks)
        await asyncio.gather(*tasks)

    async def _pass(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int
    ) -> None:
        """Pass on what one side sends until it ends. What is delayed does not hold up what comes after it."""
        blocks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        sending = asyncio.create_task(self._send(connection, blocks, writer, direction))
        connection.tasks.append(sending)
        clock = asyncio.get_running_loop().time
        block = b"more"
        while block:
            block = await reader.read(_BLOCK)
            await blocks.put((clock() + self.delay, block))
        await sending

    async def _send(
        self,
        connection: _Connection,
        blocks: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        direction: int,
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, block = await blocks.get()
            await asyncio.sleep(max(0.0, due - clock()))
            await self._passing.wait()
            if not block:
                writer.write_eof()
                return
            while block:
                piece = block if self.bandwidth is None else block[: max(1, int(self.bandwidth / _STEPS))]
                block = block[len(piece) :]
                await self._write(connection, piece, writer, direction)

    async def _write(self, connection: _Connection, piece: bytes, writer: asyncio.StreamWriter, direction: int) -> None:
        if self.bandwidth is not None:
            await asyncio.sleep(len(piece) / self.bandwidth)
            await self._passing.wait()
        breaks = connection.left <= len(piece)
        allowed = piece[: int(connection.left)] if breaks else piece
        connection.left -= len(allowed)
        self.passed[direction] += len(allowed)
        writer.write(allowed)
        await writer.drain()
        if breaks:
            self._break(connection, reset=False)

    def _break(self, connection: _Connection, *, reset: bool) -> None:
        self._connections.discard(connection)
        self.broken += 1
        connection.end(reset=reset)
