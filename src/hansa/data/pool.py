"""What a source hands over: examples to be dealt and split, or clients that make their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hansa.core.datasets import Examples, FederatedData
from hansa.core.nouns import Signature
from hansa.core.sections import Data, Features
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


@runtime_checkable
class Population(Protocol):
    """Clients whose examples are made when they are read; nothing of them is kept."""

    def federated(self, data: Data, seed: int) -> FederatedData:
        """Return the population, split as ``data`` says. Raises PlanError for what it cannot honour."""
