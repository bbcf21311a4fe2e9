"""What a source hands over before examples are dealt and split."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.core.datasets import Examples
from hansa.core.nouns import Signature
from hansa.core.sections import Features
from hansa.data.rows import Roster
from hansa.data.stores import ExampleStore


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """All examples of a source.

    ``roster`` names the source's own clients, None where it has none. ``ordered`` says that neighbouring
    examples overlap (text), so that a client's test examples are its last ones instead of random ones.
    """

    store: ExampleStore
    signature: Signature
    class_names: tuple[str, ...]
    roster: Roster | None
    central: Examples | None = None
    features: Features | None = None
    ordered: bool = False
    notes: tuple[str, ...] = ()
