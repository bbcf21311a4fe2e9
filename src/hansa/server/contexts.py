"""What a run is about: its plan, the state of its model, its metrics. Read from the store once, and kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from hansa.algorithms import rounds
from hansa.algorithms.plan import Plan, plan_from_mapping
from hansa.algorithms.prologue import declared_scaling
from hansa.core.allowed import Allowance, allowing
from hansa.core.layout import Layout
from hansa.core.nouns import InitialModel, ServerState, Signature
from hansa.core.streams import Streams
from hansa.evaluation.metrics import Metric, choose
from hansa.server.forms import encoded_form
from hansa.server.rounds_at_rest import descriptor_name, model_name, slots_name
from hansa.store.blobs import Blobs
from hansa.store.records import Job, Run
from hansa.store.store import Store
from hansa.wire.jobs import JobDescriptor
from hansa.wire.server_models import ServedModel, slots_bytes, slots_from_bytes
from hansa.wire.update_checks import Wanted


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
    encoded: Mapping[str, Wanted]
    """The form of what the plan's transforms make of an update."""

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


_Key: TypeAlias = tuple[str, int, str, str | None]
"""A run, its round, the digests of its model and its slots."""


@dataclass
class Contexts:
    """What runs are about: a run's model is in memory once, whoever asks for it, as long as somebody holds it."""

    store: Store
    blobs: Blobs
    allowances: tuple[Allowance, ...]
    _held: WeakValueDictionary[_Key, RunContext] = field(default_factory=WeakValueDictionary)
    _loading: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def of(self, run: Run) -> RunContext:
        """Return what a run is about, read from the store unless it is held."""
        lock = self._loading.setdefault(run.id, asyncio.Lock())
        async with lock:
            known = self._held.get(_key(run))
            if known is None:
                return self.hold(await self._load(run))
        return known if known.run == run else replace(known, run=run)

    def hold(self, context: RunContext) -> RunContext:
        """Return a context, which is found from now on for as long as somebody holds it."""
        self._held[_key(context.run)] = context
        return context

    async def _load(self, run: Run) -> RunContext:
        """Read what a run is about. Its plan was checked when it was submitted, and is built under the allow-list."""
        async with self.store.reading() as rows:
            job = await rows.jobs.get(run.job)
        if job is None:
            raise LookupError("a run has a job")
        descriptor = JobDescriptor.from_bytes(await whole(self.blobs, descriptor_name(job.descriptor)))
        layout, signature = descriptor.layout, descriptor.signature
        with allowing(self.allowances):
            plan = plan_from_mapping(descriptor.plan)
        metrics = choose(plan.evaluation.metrics, signature)
        state = await self._first(job, plan, layout)
        if run.slots is None:
            size = len(await asyncio.to_thread(_served(state).to_bytes))
        else:
            state = await self._later(run, state)
            size = await self.blobs.size(model_name(run.model))
        form = await asyncio.to_thread(encoded_form, plan, state.layout, signature)
        return RunContext(run, job, plan, layout, signature, metrics, state, size, form)

    async def _first(self, job: Job, plan: Plan, layout: Layout) -> ServerState:
        initial = ServedModel.from_bytes(await whole(self.blobs, model_name(job.model)), layout.size)
        state = rounds.start(plan, InitialModel(layout, initial.values))
        return replace(state, features=declared_scaling(plan.features))

    async def _later(self, run: Run, first: ServerState) -> ServerState:
        served = ServedModel.from_bytes(await whole(self.blobs, model_name(run.model)), first.layout.size)
        slots = slots_from_bytes(await whole(self.blobs, slots_name(run.slots or "")), first.slots)
        return replace(first, round=run.round, model=served.values, features=served.features, slots=slots)


def _key(run: Run) -> _Key:
    return run.id, run.round, run.model, run.slots


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
    return bytes(memoryview(content)[:place])


def _named(make: Callable[[], bytes]) -> tuple[bytes, str]:
    """Return what is made, and its digest."""
    content = make()
    return content, hashlib.sha256(content).hexdigest()


def public_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's notes tell an operator."""
    return {key: notes[key] for key in ("stopping", "evaluated", "waiting_for") if key in notes}
