"""What a server answers to a report, and how rounds are named in paths."""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["VERDICT_ACCEPTED", "VERDICT_LATE"]
ACCEPTED: Final = "VERDICT_ACCEPTED"
"""Recorded; counted exactly once if the round closes."""
LATE: Final = "VERDICT_LATE"
"""The round was frozen before; not counted."""
KINDS: Final = ("statistics", "training", "evaluation")
"""The kinds of rounds as paths and rows name them; ``KIND_`` and the name in capitals in messages."""


def update_path(run: str, kind: str, round_number: int, attempt: int) -> str:
    """Return the path of one assignment's update."""
    return f"/v1/updates/{run}/{kind}/{round_number}/{attempt}"
