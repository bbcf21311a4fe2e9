"""Models as safetensors files: parameters by name, averaged buffers, and the scaling that the features need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy

from hansa.algorithms.plan import Plan, plan_sha256
from hansa.core.errors import ModelError
from hansa.core.layout import Array, Floats, Layout
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


def values_of(content: bytes, layout: Layout, values: Floats) -> Floats:
    """Return ``values`` [d] with the parameters and buffers of a model file in their places.

    Raises ModelError for a file that holds others than the layout has, or no model. Its scaling is left out.
    """
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _other(f"It is no safetensors file ({type(error).__name__}).") from None
    filled = values.copy()
    places = {
        f"{branch.name}/{name}": view
        for branch in layout.branches
        if branch.name in _KEPT
        for name, view in layout.views(filled, branch.name).items()
    }
    held = {name: array for name, array in tensors.items() if name.partition("/")[0] in _KEPT}
    for name in sorted(held.keys() ^ places.keys()):
        raise _other(f"{name} is in {'it' if name in held else 'the plan'} only.")
    for name, view in places.items():
        if held[name].shape != view.shape or held[name].dtype != view.dtype:
            raise _other(f"{name} is {held[name].dtype} {[*held[name].shape]}, not {view.dtype} {[*view.shape]}.")
        view[...] = held[name]
    return filled


def _other(found: str) -> ModelError:
    return ModelError(
        "HANSA-MODEL-UNSUITABLE",
        rule="A run begins from a file of the plan's own model.",
        found=found,
        action="Take one that `hansa models download` or a simulation wrote of the same model.",
    )


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
