"""A running account: what many events cost, kept as integers, so that adding and taking away are exact.

The Renyi divergence of one event at each order is rounded up to a multiple of 2^-64. Sums of such integers depend on no
order of events, a void takes away what its reservation added to the last bit, and the work does not grow with the
number of events.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from hansa.core.privacy import Adjacency
from hansa.privacy.accounting import converted
from hansa.privacy.event import ORDERS, Event, renyi

ACCOUNTANT: Final = "renyi-" + hashlib.sha256(",".join(map(repr, ORDERS.tolist())).encode()).hexdigest()[:16]
"""Names the orders that are tried: an account that was kept at others is computed anew from its events."""

_BITS: Final = 64
_INFINITE: Final = 1 << 200
"""Stands for no bound at an order, and can be taken away again like any other number."""


@dataclass(frozen=True)
class Running:
    """The Renyi divergences of all events so far, in multiples of 2^-64, one for each of the orders."""

    units: tuple[int, ...]

    @classmethod
    def of(cls, events: Iterable[tuple[Event, int]], adjacency: Adjacency) -> Running:
        """Return the account of events, each with how often it happened."""
        account = nothing()
        for event, count in events:
            account = account.plus(event, adjacency, count)
        return account

    @classmethod
    def from_text(cls, text: str) -> Running:
        """Return what :attr:`text` gave."""
        return cls(tuple(int(each, 16) for each in text.split(",")))

    @property
    def text(self) -> str:
        """Return the integers in hexadecimal, with commas."""
        return ",".join(f"{each:x}" for each in self.units)

    def plus(self, event: Event, adjacency: Adjacency, count: int = 1) -> Running:
        """Return the account after an event; a negative count takes it away."""
        added = _units(event, adjacency)
        return Running(tuple(old + count * new for old, new in zip(self.units, added, strict=True)))

    def epsilon(self, delta: float) -> float:
        """Return the charged epsilon; 0 where nothing happened."""
        if not any(self.units):
            return 0.0
        divergences = [math.inf if each >= _INFINITE else math.ldexp(each, -_BITS) for each in self.units]
        return converted(np.array(divergences), delta)[0]


def nothing() -> Running:
    """Return the account of no event."""
    return Running((0,) * len(ORDERS))


@lru_cache(maxsize=256)
def _units(event: Event, adjacency: Adjacency) -> tuple[int, ...]:
    found = renyi(event, adjacency).tolist()
    most = math.ldexp(_INFINITE, -_BITS)
    return tuple(_INFINITE if each >= most else math.ceil(math.ldexp(each, _BITS)) for each in found)
