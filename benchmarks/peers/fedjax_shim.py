"""Makes FedJAX 0.0.17, last released in 2023, run under a current JAX.

FedJAX calls ``jax.tree_map`` and its kin, which JAX 0.4.26 deprecated and later releases removed; they live on in
``jax.tree_util`` under the same names. Call ``patch_jax`` before FedJAX is used.
"""

from __future__ import annotations

import jax

_MOVED = ("tree_map", "tree_leaves", "tree_structure", "tree_flatten", "tree_unflatten")

patched: list[str] = []
"""What was missing and has been put back, for the result's notes."""


def patch_jax() -> None:
    """Put back what FedJAX calls and JAX no longer has."""
    for name in _MOVED:
        if not hasattr(jax, name):
            setattr(jax, name, getattr(jax.tree_util, name))
            patched.append(f"jax.{name}")
