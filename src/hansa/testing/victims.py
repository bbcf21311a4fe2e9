"""Processes that are killed at one named instant after another, and started again each time."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hansa.cli.local_federation import LocalFederation
from hansa.core.settings import KILL_AT

ANYWHERE: Final = "anywhere"
"""Stands for a kill at no point: after a random time."""
ENROLMENT: Final = ("client.enrolled", "server.enrolled")
"""Points that are passed before the first run, and not later."""
_OFTEN: Final = {"coordinator.leased": 8, "storage.blob-written": 3, "storage.blob-renamed": 3}
"""Points that are passed so many times more often than others."""
_RARE: Final = (*ENROLMENT, "coordinator.run.ended")
"""Points of which the first pass kills: there may be no second, or only in another run."""
_LIFE: Final = (8.0, 30.0)
"""Seconds that a restless agent lives. Were it less, round after round would fail, and each rests longer than the last:
in the end longer than anybody waits."""
_TRIES: Final = 3
_PATIENCE: Final = 40.0
"""Seconds that a point may be waited for."""
_SHARED: Final = 6.0
"""Seconds of them after which a rival has to be away: what leads to the point may be the rival's to do."""


@dataclass
class Tally:
    """What happened: kills at each point, points that were waited for in vain, processes that ended by themselves."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    suffering: Counter[str] = field(default_factory=Counter)
    """Who is still to be killed somewhere."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set where everything is to stop: then nobody is started again."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, point: str, *, hit: bool) -> None:
        """Count one attempt."""
        with self.lock:
            (self.kills if hit else self.missed)[point] += 1

    @property
    def total(self) -> int:
        """Return the number of kills."""
        return sum(self.kills.values())


@dataclass
class Rivals:
    """Who does alone, one after another, what any of several processes may do: the replicas of a server, say."""

    turns: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, name: str) -> None:
        """Ask that the others be away, once those who asked before have had their turn."""
        with self.lock:
            if name not in self.turns:
                self.turns.append(name)

    def release(self, name: str) -> None:
        """Let the others be there again, if it was this one's turn; it asks for none any more."""
        with self.lock:
            self.turns = [each for each in self.turns if each != name]

    def excludes(self, name: str) -> bool:
        """Say whether it is somebody else's turn to be alone."""
        return self.turns[:1] not in ([], [name])


@dataclass
class Victim:
    """One process of a federation, killed at one of the first ``passes`` of a point, and away for a while then."""

    name: str
    wanted: Sequence[str]
    """Points; from now on others may wait until it was killed at each."""
    start: Callable[[dict[str, str]], None]
    local: LocalFederation
    tally: Tally
    coins: random.Random
    passes: int = 3
    outage: float = 0.0
    """Seconds, at most, until it is started again; every other time it is so at once."""
    restless: bool = False
    """Whether it is killed anywhere while others are still to be killed: they may wait for what comes of it."""
    ends: float = math.inf
    """When to suffer no more, as ``time.monotonic`` tells it."""
    died: Callable[[str], None] = lambda _: None
    rivals: Rivals = field(default_factory=Rivals)

    def __post_init__(self) -> None:
        self.tally.suffering[self.name] = len(self.wanted)

    def run(self) -> None:
        """Suffer, then live on unharmed. A point that was waited for in vain is tried again at the end: at any pass."""
        left = deque((point, _TRIES) for point in self.wanted)
        while left and self.suffers:
            point, tries = left.popleft()
            passes = 1 if tries < _TRIES or point in _RARE else self.passes * _OFTEN.get(point, 1)
            hit = self.once(point, passes)
            if hit is None:
                left.appendleft((point, tries))
            elif not hit and tries > 1:
                left.append((point, tries - 1))
        del self.tally.suffering[self.name]
        while self.restless and self.tally.suffering and self.suffers:
            self.once(ANYWHERE, within=_LIFE)
        self.rivals.release(self.name)
        if not self.tally.over.is_set():
            self.start({})

    @property
    def suffers(self) -> bool:
        """Say whether it is still to be killed."""
        return time.monotonic() < self.ends and not self.tally.over.is_set()

    def once(self, point: str, most: int = 1, *, within: tuple[float, float] = (0.5, 4.0)) -> bool | None:
        """Be started, and killed at a point: at the one of its first passes that coins say. False if it never came.

        ``within`` is for a kill at no point: seconds, from and to. It is not started while a rival has to be alone, and
        where that begins later it is killed at once, and has the next turn: None.
        """
        while self.rivals.excludes(self.name) and not self.tally.over.is_set():
            time.sleep(0.01)
        passes = self.coins.randint(1, most)
        patience = self.coins.uniform(*within) if point == ANYWHERE else _PATIENCE
        self.start({} if point == ANYWHERE else {KILL_AT.name: f"{point}:{passes}"})
        ended = self._wait(patience, alone=point != ANYWHERE)
        excluded = ended is None and self.rivals.excludes(self.name)
        if ended is None:
            self.local.kill(self.name)
        elif ended != -signal.SIGKILL:
            said = " / ".join(self.local.log(self.name).splitlines()[-3:])
            self.tally.surprises.append(f"{self.name} ended with {ended} before {point}: {said}")
        self.died(self.name)
        self.rivals.release(self.name)
        if excluded:
            if point != ANYWHERE:
                self.rivals.claim(self.name)
            self.tally.note(ANYWHERE, hit=True)
            return None
        hit = ended == (None if point == ANYWHERE else -signal.SIGKILL)
        self.tally.note(point, hit=hit)
        self.tally.over.wait(self.coins.choice((0.0, self.coins.uniform(0.6, 1.0))) * self.outage)
        return hit

    def _wait(self, patience: float, *, alone: bool) -> int | None:
        """Wait until the process ends, or there is nothing to wait for any more; return how it ended.

        That is where patience ends, somebody else has to be alone, or nobody is left to be killed. ``alone``: whether
        it claims to be alone where it takes long.
        """
        process, began = self.local.processes[self.name], time.monotonic()
        while (ended := process.poll()) is None and self.tally.suffering and not self.tally.over.is_set():
            waited = time.monotonic() - began
            if waited >= patience or self.rivals.excludes(self.name):
                break
            if alone and waited >= _SHARED:
                self.rivals.claim(self.name)
            time.sleep(0.01)
        return ended
