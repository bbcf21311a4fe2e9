"""What a run is about: its plan, the state of its model, its metrics. Read from the store once, and kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hansa.algorithms import rounds
from hansa.algorithms.plan import Plan, plan_from_mapping
from hansa.algorithms.prologue import declared_scaling
from hansa.core.allowed import Allowance, allowing
from hansa.core.layout import Layout
from hansa.core.nouns import InitialModel, ServerState, Signature
from hansa.core.streams import Streams
from hansa.evaluation.metrics import Metric, choose
from hansa.server.rounds_at_rest import descriptor_name, model_name, slots_name
from hansa.store.blobs import Blobs
from hansa.store.records import Job, Run
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel, slots_bytes, slots_from_bytes


@dataclass(frozen=True)
class RunContext:
    """A run with what follows from its rows: everything that a round of it needs."""

    run: Run
    job: Job
    plan: Plan
    layout: Layout
    """Of the submitted model, before hooks and lanes are added."""
    signature: Signature
    metrics: tuple[Metric, ...]
    state: ServerState
    model_size: int
    """Bytes of the blob that clients fetch."""

    @property
    def streams(self) -> Streams:
        """Return the public streams of the plan's seed."""
        return Streams(self.plan.seed, "federation")

    @property
    def tally_widths(self) -> dict[str, int]:
        """Return how many numbers each metric's tally has."""
        empty = np.zeros((0, max(1, self.signature.classes))), np.zeros(0), np.zeros(0, dtype=np.int64)
        return {metric.name: metric.tallies(*empty, 1).shape[1] for metric in self.metrics}

    def with_state(self, run: Run, state: ServerState, model_size: int) -> RunContext:
        """Return the context after a round was closed."""
        return replace(self, run=run, state=state, model_size=model_size)


async def load_context(blobs: Blobs, run: Run, job: Job, allowances: tuple[Allowance, ...]) -> RunContext:
    """Read what a run is about. The plan was checked when it was submitted, and is built under the same allow-list."""
    descriptor = JobDescriptor.from_bytes(await whole(blobs, descriptor_name(job.descriptor)))
    with allowing(allowances):
        plan = plan_from_mapping(descriptor.plan)
    first = await _first(blobs, job, plan, descriptor.layout)
    metrics = choose(plan.evaluation.metrics, descriptor.signature)
    state = first
    model = _served(first).to_bytes()
    if run.slots is not None:
        model = await whole(blobs, model_name(run.model))
        served = ServedModel.from_bytes(model, first.layout.size)
        slots = slots_from_bytes(await whole(blobs, slots_name(run.slots)), first.slots)
        state = replace(first, round=run.round, model=served.values, features=served.features, slots=slots)
    return RunContext(run, job, plan, descriptor.layout, descriptor.signature, metrics, state, len(model))


async def _first(blobs: Blobs, job: Job, plan: Plan, layout: Layout) -> ServerState:
    initial = ServedModel.from_bytes(await whole(blobs, model_name(job.model)), layout.size)
    state = rounds.start(plan, InitialModel(layout, initial.values))
    return replace(state, features=declared_scaling(plan.features))


async def store_state(blobs: Blobs, state: ServerState) -> tuple[str, str, int]:
    """Write a state's two blobs; return the digests of model and slots, and the model's bytes."""
    model, model_digest = await asyncio.to_thread(_named, _served(state).to_bytes)
    await blobs.put_bytes(model_name(model_digest), model)
    slots, slots_digest = await asyncio.to_thread(_named, lambda: slots_bytes(state))
    await blobs.put_bytes(slots_name(slots_digest), slots)
    return model_digest, slots_digest, len(model)


def _served(state: ServerState) -> ServedModel:
    """Return what clients fetch."""
    return ServedModel(state.model, state.features, rounds.clip_norm_of(state))


async def whole(blobs: Blobs, name: str) -> bytes:
    """Return all bytes of a blob. Chunks are let go of one by one: a list of them would leave the heap in pieces."""
    content, place = bytearray(await blobs.size(name)), 0
    async for chunk in blobs.read(name, 0, len(content)):
        content[place : place + len(chunk)] = chunk
        place += len(chunk)
    return bytes(content)


def _named(make: Callable[[], bytes]) -> tuple[bytes, str]:
    """Return what is made, and its digest."""
    content = make()
    return content, hashlib.sha256(content).hexdigest()


def public_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's notes tell an operator."""
    return {key: notes[key] for key in ("stopping", "evaluated", "waiting_for") if key in notes}
