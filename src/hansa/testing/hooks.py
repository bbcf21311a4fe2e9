"""Code that test processes run as they start, and the one piece of it that many tests need."""

from __future__ import annotations

import hashlib
from os import environ
from pathlib import Path
from typing import Final

SEEDED: Final = """
import hansa.core.streams as streams

of = streams.Streams.of

def seeded(self, purpose, round_number=0):
    if purpose == "rounding":
        return streams.Stream(streams._key(self.seed, purpose, round_number))
    return of(self, purpose, round_number)

streams.Streams.of = seeded
"""
"""Agents round by the coins of the seed, which everybody knows, and not by their own: a secure sum of theirs is then
that of a simulation, bit for bit."""


def hooks(folder: Path, code: str) -> dict[str, str]:
    """Return the environment of processes that run some code as they start."""
    place = folder / f"hooks-{hashlib.sha256(code.encode()).hexdigest()[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": ":".join(filter(None, [str(place), environ.get("PYTHONPATH", "")]))}
