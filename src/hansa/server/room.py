"""Room in memory for what comes in: whoever comes when it is full waits for its turn, and its bytes for it to read."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from hansa.core.errors import RefusedError

_OF_ONE: Final = 2
"""Bodies of one client that are read at once: the next one, and one whose connection broke off without a word."""
_OF_NOBODY: Final = 64
"""Bodies that are read at once of callers who name no client of the server."""


@dataclass
class Room:
    """So many bytes, given out in the order in which they are asked for; one that needs more has all, alone."""

    limit: int
    taken: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Hold room for some bytes, as soon as there is."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((size, turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                self.taken -= size
            self._let_in()

    def _let_in(self) -> None:
        while self.waiting:
            size, turn = self.waiting[0]
            if self.taken and self.taken + size > self.limit and not turn.cancelled():
                return
            self.waiting.popleft()
            if not turn.cancelled():
                self.taken += size
                turn.set_result(None)


@dataclass
class Bodies:
    """How many bodies are read at once of each client, by the name that a call says: it takes no room that others need.

    Whoever calls may say any name, until its body is there and proves it. All who say none count as one.
    """

    reading: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def one(self, client: str = "") -> Iterator[None]:
        """Count one while it is read. Raises RefusedError where as many of that client are being read."""
        most, whose = (_OF_ONE, "one client") if client else (_OF_NOBODY, "callers who are not known")
        if self.reading[client] >= most:
            raise RefusedError(
                "HANSA-SERVER-BUSY",
                rule=f"At most {most} bodies of {whose} are read at once.",
                found="As many are being read.",
                action="Try again.",
            )
        self.reading[client] += 1
        try:
            yield
        finally:
            self.reading[client] -= 1
            if not self.reading[client]:
                del self.reading[client]
