"""Room in memory for what comes in: whoever comes when it is full waits for its turn, and its bytes for it to read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


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
