"""Real fakes for tests of plans, pieces and federations: small and exact.

A plan names the pieces here as it names a user's own, ``kind = "hansa.testing:QuadraticTrainer"``.
"""

from __future__ import annotations

from hansa.testing.clients import MemoryClients, MemoryView, quadratic_clients, quadratic_signature
from hansa.testing.proxy import Proxy
from hansa.testing.rehearsal import Rehearsal
from hansa.testing.trainers import QuadraticTrainer, StumpTrainer
from hansa.testing.transforms import FixedPoint, RingNoise, TopK, ValueNoise

__all__ = [
    "FixedPoint",
    "MemoryClients",
    "MemoryView",
    "Proxy",
    "QuadraticTrainer",
    "Rehearsal",
    "RingNoise",
    "StumpTrainer",
    "TopK",
    "ValueNoise",
    "quadratic_clients",
    "quadratic_signature",
]
