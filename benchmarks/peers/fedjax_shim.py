"""Makes FedJAX 0.0.17, last released in 2023, run under a current JAX.

FedJAX calls ``jax.tree_map`` and its kin, which JAX 0.4.26 deprecated and later releases removed; they live on in
``jax.tree_util`` under the same names. Import this before FedJAX.
"""

from __future__ import annotations

import jax

_MOVED = ("tree_map", "tree_leaves", "tree_structure", "tree_flatten", "tree_unflatten")

PATCHED: list[str] = []
"""What was missing and has been put back, for the result's notes."""

for _name in _MOVED:
    if not hasattr(jax, _name):
        setattr(jax, _name, getattr(jax.tree_util, _name))
        PATCHED.append(f"jax.{_name}")
