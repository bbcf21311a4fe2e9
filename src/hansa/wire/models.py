"""Models as safetensors files: parameters by name, averaged buffers, and the scaling that the features need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import safetensors.numpy

from hansa.algorithms.plan import Plan, plan_sha256
from hansa.core.layout import Array
from hansa.core.nouns import ServerState
from hansa.core.schema import to_mapping

_KEPT: Final = ("params", "buffers")


def model_bytes(plan: Plan, state: ServerState) -> bytes:
    """Return the model file of a state; the same state and plan give the same bytes.

    Tensors are named "params/NAME" and "buffers/NAME"; "features/center" and "features/scale" where the plan has
    features. What only travels beside the model (control variates) is left out.
    """
    tensors: dict[str, Array] = {}
    for branch in state.layout.branches:
        if branch.name in _KEPT:
            views = state.layout.views(state.model, branch.name)
            tensors |= {f"{branch.name}/{name}": np.ascontiguousarray(view) for name, view in views.items()}
    if state.features is not None:
        tensors |= {"features/center": state.features.center, "features/scale": state.features.scale}
    return safetensors.numpy.save(tensors, metadata={"hansa": json.dumps(_describe(plan, state), sort_keys=True)})


def _describe(plan: Plan, state: ServerState) -> Mapping[str, Any]:
    return {
        "plan_sha256": plan_sha256(plan),
        "rounds": state.round,
        "model": to_mapping(plan.model),
        "features": None if plan.features is None else to_mapping(plan.features),
    }


def sha256(content: bytes) -> str:
    """Return SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
