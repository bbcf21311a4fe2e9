"""How long an agent stays away: when it is told to, when its machine is busy, and after calls that failed."""

from __future__ import annotations

import logging
import math
import random
from typing import Final

from hansa.client.transport import passes_by_itself, wanted_pause
from hansa.core.errors import RefusedError

log = logging.getLogger("hansa.client")

_LONGEST_BACKOFF: Final = 300.0
_LONGEST_REST: Final = 86400.0
"""Seconds, at most, that a server can send an agent away."""
OBSTRUCTED: Final = 60.0
"""Seconds until an agent that may not work now looks again."""


def backoff(error: RefusedError, failures: int) -> float:
    """Return how many seconds to wait after so many failures one after another, and tell."""
    longest = min(_LONGEST_BACKOFF, 2.0 ** min(failures, 16))
    pause = max(rest(wanted_pause(error)), longest * random.uniform(0.5, 1.0))  # noqa: S311 - spreads calls
    what = "waiting" if passes_by_itself(error) else "refused"
    log.warning("%s code=%s seconds=%.1f found=%r action=%r", what, error.code, pause, error.found, error.action)
    return pause


def rest(seconds: float) -> float:
    """Return for how long to stay away: what was asked, but never for ever, and a while where that is no number."""
    return OBSTRUCTED if math.isnan(seconds) else min(max(0.0, seconds), _LONGEST_REST)
