"""How many calls a second one caller may make: a bucket for each, which fills at that rate."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from hansa.core.errors import RefusedError

_KEPT = 100_000
_BURST = 2.0
"""Seconds of calls that may come at once."""


@dataclass
class Rates:
    """Refuses callers that call too often; 0 calls a second: none is."""

    per_second: float
    buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """Caller -> (calls left, when that was so)."""

    def take(self, caller: str, now: float) -> None:
        """Take note of a call. Raises RefusedError where it is one too many."""
        if not self.per_second:
            return
        most = max(1.0, _BURST * self.per_second)
        left, at = self.buckets.get(caller, (most, now))
        left = min(most, left + max(0.0, now - at) * self.per_second)
        self.buckets[caller] = (left - 1.0 if left >= 1.0 else left, now)
        self.buckets.move_to_end(caller)
        if len(self.buckets) > _KEPT:
            self.buckets.popitem(last=False)
        if left < 1.0:
            raise RefusedError(
                "HANSA-SERVER-LIMIT",
                rule=f"One client calls at most {self.per_second:g} times a second.",
                found="This one calls more often.",
                action="Come back when the server says so.",
            )
