"""One round, in four pure functions that the simulation and the server both call.

    start(plan, model)                                            -> ServerState
    open_round(plan, state, eligible, coins)                      -> Assignment
    client_update(plan, assignment, clients, states, streams)     -> Batch, next states
    close_round(plan, state, aggregate)                           -> ServerState, RoundReport

Between the last two, the caller hands each batch to :func:`receive` and folds what comes back in the order of
cohort positions (:mod:`hansa.algorithms.fold`, or rows for the rules that need them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from hansa.algorithms.adaptive_clip import next_clip_norm
from hansa.algorithms.fixed_point import encode
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import protected, withheld
from hansa.algorithms.schedule import picking
from hansa.algorithms.secure_sums import training_code
from hansa.algorithms.server_optimizers import Sgd
from hansa.algorithms.travelling import BELOW_CLIP, travelling_lanes
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import COUNT, NON_FINITE, TRAIN_LOSS, Array, Branch, Floats, Int64s, Layout, weight_lane
from hansa.core.nouns import (
    Aggregate,
    Assignment,
    Batch,
    ClientBatch,
    ClientContext,
    ClientStates,
    InitialModel,
    RoundReport,
    ServerState,
    Signature,
)
from hansa.core.pieces import CohortSampler, EligibleView, ServerOptimizer
from hansa.core.registry import kind_of
from hansa.core.streams import Coins, Streams

_CLIP: Final = "privacy.clip"
RANGE = 1 << 22
"""Entries of a branch that an elementwise server optimizer takes at a time."""


def start(plan: Plan, model: InitialModel) -> ServerState:
    """Return the state before the first round: the model, zeros in every hook's branch, and empty slots."""
    layout = travelling_layout(plan, model.layout)
    values = np.zeros(layout.size, dtype=np.float32)
    values[: model.layout.size] = model.values
    slots = {_slot(branch): _optimizer(plan, branch.name).start(branch.size) for branch in layout.branches}
    if plan.privacy is not None:
        slots[_CLIP] = {"norm": np.array([plan.privacy.clip_norm])}
    return ServerState(round=0, layout=layout, model=values, slots=slots)


def travelling_layout(plan: Plan, model: Layout) -> Layout:
    """Return the layout of what travels: a model's, with the branch of every hook and all lanes."""
    parameters = model.branch("params").parameters
    added = [Branch(name, parameters) for hook in plan.trainer.hooks for name in hook.branches]
    layout = model.with_branches(*added)
    names = [branch.name for branch in layout.branches]
    privacy, secure = plan.privacy, plan.secure_aggregation is not None
    adaptive = privacy is not None and privacy.adaptive_clip is not None
    lanes = travelling_lanes(names, plan.transforms, integers=secure or privacy is not None, adaptive=adaptive)
    return layout.with_lanes(*lanes)


def client_start(plan: Plan, layout: Layout, signature: Signature) -> dict[str, Array]:
    """Return the first row of everything that a client keeps between rounds: name -> [...]."""
    size = layout.branch("params").size
    rows = {name: np.zeros(size, dtype=np.float32) for hook in plan.trainer.hooks for name in hook.state}
    return rows | plan.trainer.client_rows(plan.model, signature)


def open_round(plan: Plan, state: ServerState, eligible: EligibleView, coins: Coins) -> Assignment:
    """Return what the next round's cohort is asked to do, those included who are picked on top (over-selection).

    The cohort may be empty (Poisson).

    Raises PlanError where the plan's sampler returns anything but distinct ordinals of the eligible.
    """
    number = state.round + 1
    schedule: Any = plan.schedule
    sampler = picking(schedule, plan.cohort) if schedule.synchronous else plan.cohort
    cohort = draw_cohort(sampler, eligible, number, coins)
    size, features = eligible.size, state.features
    return Assignment(number, state.layout, state.model, cohort, size, features, clip_norm_of(state))


def draw_cohort(sampler: CohortSampler, eligible: EligibleView, number: int, coins: Coins) -> Int64s:
    """Return the ordinals that a sampler picks for a round. Raises PlanError as :func:`open_round`."""
    return _ordinals(sampler, sampler.draw(eligible, number, coins), eligible.size)


def clip_norm_of(state: ServerState) -> float | None:
    """Return the clip norm of the next round, or None where nothing is clipped by the plan's privacy."""
    return float(state.slots[_CLIP]["norm"][0]) if _CLIP in state.slots else None


def clip_facts(plan: Plan, state: ServerState) -> dict[str, float]:
    """Return what a round's event tells of an adaptive clip norm: that of the round, which noised bits gave."""
    adaptive = plan.privacy is not None and plan.privacy.adaptive_clip is not None
    return {"clip_norm": clip_norm_of(state) or 0.0} if adaptive else {}


def client_update(
    plan: Plan, assignment: Assignment, clients: ClientBatch, states: ClientStates, streams: Streams
) -> tuple[Batch, dict[str, Array]]:
    """Train, then encode in order: n clients at once, on a device n = 1.

    Returns the encoded updates (under a secure sum the integers of :mod:`hansa.algorithms.fixed_point`) and the
    clients' next states, which become current when the round has closed with these clients included. An update
    that is not finite is emptied and counted, and its client's states stay.
    """
    context = ClientContext(assignment, clients, streams)
    batch, following = plan.trainer.train(plan.model, context, states)
    batch, following = _counted(batch, states, following)
    for transform in plan.transforms:
        batch = transform.encode(batch, context, following)
    batch = replace(batch, side={name: column for name, column in batch.side.items() if name != "steps"})
    code, clip_norm = training_code(plan, assignment.layout, assignment.clip_norm), assignment.clip_norm
    if plan.privacy is None or code is None:
        return (batch if code is None else encode(code, batch, context)), following
    if clip_norm is None:
        raise LookupError("an assignment of a plan with [privacy] names the round's clip norm")
    return withheld(encode(code, protected(plan, batch, clip_norm), context)), following


def receive(plan: Plan, assignment: Assignment, batch: Batch, streams: Streams) -> Batch:
    """Return updates with the outer, non-linear encodings undone row by row, ready to fold."""
    for transform in reversed(plan.transforms):
        batch = transform.decode_rows(batch, assignment, streams)
    return batch


def weighed(batch: Batch, factors: Floats) -> Batch:
    """Return updates and their weights times one factor a client, [n]: what staleness leaves of them."""
    weights = {
        lane.name: batch.lane(lane.name) * factors
        for lane in batch.layout.lanes
        if lane.weighted or lane.purpose == "weight"
    }
    return replace(batch, values=batch.values * factors[:, None]).with_lanes(weights)


def close_round(plan: Plan, state: ServerState, aggregate: Aggregate) -> tuple[ServerState, RoundReport]:
    """Decode the sum in reverse order, divide branch by branch, and take one step of each server optimizer.

    A branch to which nobody contributed keeps its values. The aggregate is used up: its values become the update, so
    that memory is one vector in double precision and the next model.
    """
    for transform in reversed(plan.transforms):
        aggregate = transform.decode_sum(aggregate, state)
    layout = state.layout
    model, slots, update = state.model.copy(), dict(state.slots), aggregate.values
    for branch in layout.branches:
        weight, part = aggregate.weights[branch.name], layout.slices[branch.name]
        if weight <= 0:
            update[part] = 0.0
            continue
        np.divide(update[part], weight, out=update[part])
        optimizer, name = _optimizer(plan, branch.name), _slot(branch)
        slots[name] = _stepped(optimizer, model[part], update[part], state.slots[name], aggregate.share)
    if _CLIP in slots:
        slots[_CLIP] = {"norm": np.array([_next_clip_norm(plan, state, aggregate)])}
    closed = replace(state, round=state.round + 1, model=model, slots=slots)
    return closed, _report(plan, closed, aggregate, update)


def _next_clip_norm(plan: Plan, state: ServerState, aggregate: Aggregate) -> float:
    adaptive, clip_norm = plan.privacy.adaptive_clip if plan.privacy else None, clip_norm_of(state) or 0.0
    if adaptive is None:
        return clip_norm
    return next_clip_norm(adaptive, clip_norm, aggregate.lane(BELOW_CLIP.name), aggregate.weights["params"])


def _ordinals(sampler: CohortSampler, drawn: Any, population: int) -> Int64s:
    """Return a sampler's cohort as int64 [cohort], or raise PlanError; in the time of the cohort."""
    try:
        cohort = np.asarray(drawn)
    except ValueError:  # rows of several lengths
        cohort = np.asarray(None)
    what = None
    if cohort.ndim != 1 or not (np.issubdtype(cohort.dtype, np.integer) or not cohort.size):
        what = f"a {type(drawn).__name__} of {cohort.dtype} with shape {list(cohort.shape)}"
    elif cohort.size and (cohort.min() < 0 or cohort.max() >= population):
        what = f"the ordinals {cohort.min()} to {cohort.max()}"
    elif cohort.size > len(distinct := np.unique(cohort)):
        what = f"{cohort.size} ordinals of which {len(distinct)} are distinct"
    if what is not None:
        kind = kind_of("sampler", sampler)
        wanted = f"an array of distinct integers from 0 to {population - 1}, the ordinals of the clients to pick"
        raise PlanError([Problem("cohort", f"{kind!r} drew {what}; a sampler returns {wanted}.")])
    return cohort.astype(np.int64, copy=False)


def _counted(batch: Batch, states: ClientStates, following: Mapping[str, Array]) -> tuple[Batch, dict[str, Array]]:
    """Return the batch with its counts and equal weights, and the next states.

    A non-finite update is emptied and weighs nothing, and its client keeps the states that it had.
    """
    finite: Array = np.asarray(np.isfinite(batch.values).all(axis=1))
    ones = finite.astype(np.float64)
    weights = {weight_lane(branch.name): ones for branch in batch.layout.branches}
    loss = {TRAIN_LOSS.name: batch.lane(TRAIN_LOSS.name) * ones}
    lanes: Mapping[str, Array] = {COUNT.name: np.ones(len(batch)), NON_FINITE.name: 1 - ones, **loss, **weights}
    counted = batch.with_lanes(lanes)
    if finite.all():
        return counted, dict(following)
    kept = {name: np.where(_like(finite, rows), rows, states[name]) for name, rows in following.items()}
    return replace(counted, values=np.where(finite[:, None], batch.values, np.float32(0))), kept


def _like(flags: Array, rows: Array) -> Array:
    """Return flags [n] in a shape that spreads over rows [n, ...]."""
    return flags.reshape(-1, *([1] * (rows.ndim - 1)))


def _optimizer(plan: Plan, branch: str) -> ServerOptimizer:
    """Return the server optimizer of a branch; buffers always take the plain mean."""
    if branch == "params":
        return plan.server_optimizer
    return plan.server_optimizer.branches.get(branch, Sgd())


def _stepped(
    optimizer: ServerOptimizer, model: Array, update: Array, slot: Mapping[str, Array], share: float
) -> Mapping[str, Array]:
    """Let a branch's values take a step, in place; return the next slot. What is elementwise goes range by range."""
    size = len(model)
    length = RANGE if getattr(optimizer, "elementwise", False) else size
    if size <= length:
        model[:], following = optimizer.step(model.astype(np.float64), update, slot, share)
        return following
    whole: dict[str, Array] = {}
    for begin in range(0, size, length):
        some = slice(begin, begin + length)
        part = {name: array[some] if array.shape == (size,) else array for name, array in slot.items()}
        model[some], following = optimizer.step(model[some].astype(np.float64), update[some], part, share)
        for name, array in following.items():
            if slot[name].shape != (size,):
                whole[name] = array
                continue
            whole.setdefault(name, np.empty(size, array.dtype))[some] = array
    return whole


def _norm(vector: Array) -> float:
    """Return the L2 norm, in double precision."""
    ranges = (vector[begin : begin + RANGE].astype(np.float64, copy=False) for begin in range(0, len(vector), RANGE))
    return (
        float(np.linalg.norm([np.linalg.norm(part) for part in ranges]))
        if len(vector) > RANGE
        else float(np.linalg.norm(vector.astype(np.float64, copy=False)))
    )


def _slot(branch: Branch) -> str:
    return f"server_optimizer.{branch.name}"


def _report(plan: Plan, state: ServerState, aggregate: Aggregate, update: Array) -> RoundReport:
    params = state.layout.slices["params"]
    finite = aggregate.count - int(aggregate.lane(NON_FINITE.name)) if plan.privacy is None else 0
    return RoundReport(
        round=state.round,
        count=aggregate.count,
        train_loss=aggregate.lane(TRAIN_LOSS.name) / finite if finite else None,
        update_norm=_norm(update[params]),
        model_norm=_norm(state.model[params]),
        non_finite=0 if plan.privacy is not None else aggregate.count - finite,
    )
