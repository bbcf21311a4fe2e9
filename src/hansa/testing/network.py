"""The network between agents and servers, in a thread of its own, and its weather."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from hansa.testing.proxy import Proxy


class Network:
    """A proxy that tests without a loop of their own can tell to be bad. Entered, it passes on."""

    def __init__(self, port: int, seed: int) -> None:
        self.proxy = Proxy("127.0.0.1", port, seed=seed)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # connections end in every possible way
        self._ready, self._done = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def port(self) -> int:
        """Return where agents connect."""
        return self.proxy.port

    def tell(self, what: Callable[[Proxy], None]) -> None:
        """Do something with the proxy, in its own thread; nothing once the network is no more."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, self.proxy)

    def set(self, **settings: float) -> None:
        """Change settings of the proxy: delay, loss ..."""
        self.tell(lambda proxy: proxy.__dict__.update(settings))

    def lead_to(self, port: int) -> None:
        """Send new connections to another replica."""
        self.tell(lambda proxy: proxy.__dict__.update(target=("127.0.0.1", port)))

    def weather(self, stop: threading.Event, coins: random.Random) -> None:
        """Delay, lose, part and cut, now this and now that, until told to stop; then all passes."""
        while not stop.wait(coins.uniform(0.5, 2.0)):
            kind = coins.choice(("delay", "loss", "partition", "cut", "fair"))
            if kind == "partition":
                self.tell(Proxy.partition)
                stop.wait(coins.uniform(0.2, 1.5))
                self.tell(Proxy.heal)
            elif kind == "cut":
                self.tell(Proxy.cut)
            elif kind == "delay":
                self.set(delay=coins.uniform(0.0, 0.1))
            elif kind == "loss":
                self.set(loss=coins.uniform(0.1, 0.4))
            else:
                self.set(delay=0.0, loss=0.0)
        self.set(delay=0.0, loss=0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self.proxy:
            self._ready.set()
            await self._done.wait()
