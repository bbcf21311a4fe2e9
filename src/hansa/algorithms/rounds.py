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
from typing import Any

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.algorithms.schedule import picking
from hansa.algorithms.server_optimizers import Sgd
from hansa.core.errors import PlanError, Problem
from hansa.core.layout import COUNT, NON_FINITE, TRAIN_LOSS, Array, Branch, Floats, Int64s, Lane, Layout, weight_lane
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
from hansa.core.pieces import EligibleView, ServerOptimizer
from hansa.core.registry import kind_of
from hansa.core.streams import Coins, Streams


def start(plan: Plan, model: InitialModel) -> ServerState:
    """Return the state before the first round: the model, zeros in every hook's branch, and empty slots."""
    layout = travelling_layout(plan, model.layout)
    values = np.zeros(layout.size, dtype=np.float32)
    values[: model.layout.size] = model.values
    slots = {_slot(branch): _optimizer(plan, branch.name).start(branch.size) for branch in layout.branches}
    return ServerState(round=0, layout=layout, model=values, slots=slots)


def travelling_layout(plan: Plan, model: Layout) -> Layout:
    """Return the layout of what travels: a model's, with the branch of every hook and all lanes."""
    parameters = model.branch("params").parameters
    added = [Branch(name, parameters) for hook in plan.trainer.hooks for name in hook.branches]
    layout = model.with_branches(*added)
    weights = [
        Lane(weight_lane(branch.name), low=0.0, high=2.0**24, resolution=2.0**-8, purpose="weight")
        for branch in layout.branches
    ]
    own = [lane for transform in plan.transforms for lane in transform.lanes()]
    return layout.with_lanes(COUNT, NON_FINITE, TRAIN_LOSS, *weights, *own)


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
    cohort = _ordinals(plan, sampler.draw(eligible, number, coins), eligible.size)
    return Assignment(number, state.layout, state.model, cohort, population=eligible.size, features=state.features)


def client_update(
    plan: Plan, assignment: Assignment, clients: ClientBatch, states: ClientStates, streams: Streams
) -> tuple[Batch, dict[str, Array]]:
    """Train, then encode in order: n clients at once, on a device n = 1.

    Returns the encoded updates and the clients' next states, which become current when the round has closed
    with these clients included. An update that is not finite is emptied and counted, and its client's states stay.
    """
    context = ClientContext(assignment, clients, streams)
    batch, following = plan.trainer.train(plan.model, context, states)
    batch, following = _counted(batch, states, following)
    for transform in plan.transforms:
        batch = transform.encode(batch, context, following)
    return replace(batch, side={name: column for name, column in batch.side.items() if name != "steps"}), following


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

    A branch to which nobody contributed keeps its values.
    """
    for transform in reversed(plan.transforms):
        aggregate = transform.decode_sum(aggregate, state)
    layout = state.layout
    model, slots = state.model.copy(), dict(state.slots)
    update = np.zeros(layout.size)
    for branch in layout.branches:
        weight, part = aggregate.weights[branch.name], layout.slices[branch.name]
        if weight <= 0:
            continue
        np.divide(aggregate.values[part], weight, out=update[part])
        model[part], slots[_slot(branch)] = _optimizer(plan, branch.name).step(
            state.model[part].astype(np.float64), update[part], state.slots[_slot(branch)], aggregate.share
        )
    closed = replace(state, round=state.round + 1, model=model, slots=slots)
    return closed, _report(closed, aggregate, update)


def _ordinals(plan: Plan, drawn: Any, population: int) -> Int64s:
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
        kind = kind_of("sampler", plan.cohort)
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


def _slot(branch: Branch) -> str:
    return f"server_optimizer.{branch.name}"


def _report(state: ServerState, aggregate: Aggregate, update: Array) -> RoundReport:
    params = state.layout.slices["params"]
    finite = aggregate.count - int(aggregate.lane(NON_FINITE.name))
    return RoundReport(
        round=state.round,
        count=aggregate.count,
        train_loss=aggregate.lane(TRAIN_LOSS.name) / finite if finite else None,
        update_norm=float(np.linalg.norm(update[params])),
        model_norm=float(np.linalg.norm(state.model[params].astype(np.float64))),
        non_finite=aggregate.count - finite,
    )
