"""The federated prologue: round 0, where lanes alone give every number's mean and spread.

Clients add, for each numeric feature, how many values they have, the sum, and the sum of squares, of values
mapped from [low, high] to [-1, 1]. Each is an integer lane, so the sum can be taken under any carrier. The
result is the centre and scale of the plan's features, part of the server's state and of the model file.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Array, Lane, Layout
from hansa.core.nouns import Aggregate, Batch, ClientBatch, Scaling, ServerState
from hansa.core.sections import Features

_MOST_EXAMPLES = 2.0**24


def declared_scaling(features: Features | None) -> Scaling | None:
    """Return what the plan itself declares: its numbers, or (under "none") only that missing becomes 0."""
    if features is None:
        return None
    slots = features.slots()
    declared = features.scaling == "declared"
    pairs = [(slot.column.declared if declared and slot.numeric else None) or (0.0, 1.0) for slot in slots]
    center, scale = np.array(pairs, dtype=np.float32).reshape(-1, 2).T.copy()
    return Scaling(center, scale)


def statistics_layout(features: Features) -> Layout:
    """Return the lanes of the prologue: three for each numeric slot. Raises PlanError without bounds."""
    problems = [
        Problem(
            f"features.columns.{position}",
            f'scaling = "federated" sums {column.name!r} in fixed point and needs its low and high; '
            'declare both, or use scaling = "declared".',
        )
        for position, column in enumerate(features.columns)
        if column.kind == "number" and column.low is None
    ]
    if problems:
        raise PlanError(problems)
    lanes = [
        lane
        for name in (slot.name for slot in features.slots() if slot.numeric)
        for lane in (
            Lane(f"n.{name}", 0.0, _MOST_EXAMPLES, purpose="statistic"),
            Lane(f"sum.{name}", -_MOST_EXAMPLES, _MOST_EXAMPLES, 2.0**-20, purpose="statistic"),
            Lane(f"squares.{name}", 0.0, _MOST_EXAMPLES, 2.0**-20, purpose="statistic"),
        )
    ]
    return Layout((), tuple(lanes))


def client_statistics(plan: Plan, clients: ClientBatch) -> Batch:
    """Return the lanes of n clients over their training examples, as imputed; no values."""
    features = _features(plan)
    layout = statistics_layout(features)
    x, _ = clients.everything()
    real = np.arange(x.shape[1])[None, :] < clients.sizes[:, None]
    columns: dict[str, Array] = {}
    for position, slot in enumerate(features.slots()):
        if slot.numeric:
            unit = _to_unit(x[:, :, position].astype(np.float64), slot.column.low or 0.0, slot.column.high or 0.0)
            known = real & np.isfinite(unit)
            unit = np.where(known, np.clip(unit, -1, 1), 0)
            columns[f"n.{slot.name}"] = known.sum(axis=1)
            columns[f"sum.{slot.name}"] = unit.sum(axis=1)
            columns[f"squares.{slot.name}"] = np.square(unit).sum(axis=1)
    lanes = layout.encode_lanes(columns, len(clients))
    return Batch(np.zeros((len(clients), 0), dtype=np.float32), lanes, layout)


def close_prologue(plan: Plan, state: ServerState, total: Aggregate) -> ServerState:
    """Return the state with the mean and standard deviation of every numeric slot; others stay as they are.

    A slot that nobody has, or that never varies, keeps its middle and half range.
    """
    center, scale = [], []
    for slot in _features(plan).slots():
        if not slot.numeric:
            center.append(0.0)
            scale.append(1.0)
            continue
        low, high = slot.column.low or 0.0, slot.column.high or 0.0
        half, middle = (high - low) / 2, (high + low) / 2
        count = max(total.lane(f"n.{slot.name}"), 1.0)
        mean = total.lane(f"sum.{slot.name}") / count
        variance = total.lane(f"squares.{slot.name}") / count - mean**2
        spread = float(np.sqrt(max(variance, 0.0)))
        center.append(middle + half * mean)
        scale.append(half * spread if spread > 1e-6 else half)
    return replace(state, features=Scaling(np.array(center, dtype=np.float32), np.array(scale, dtype=np.float32)))


def _features(plan: Plan) -> Features:
    if plan.features is None:
        raise PlanError([Problem("features", "a federated prologue needs the features of the plan.")])
    return plan.features


def _to_unit(values: Array, low: float, high: float) -> Array:
    return np.asarray((values - (high + low) / 2) / ((high - low) / 2))
