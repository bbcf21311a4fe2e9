"""``--executor auto``: times the plan's own model on some of its clients, and takes what ends the run first.

What was chosen is kept in the user's cache, so that the next run of a like plan on this machine computes in the same
way, and in replay.json, so that a replay does. The seed is not part of what makes plans alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from hansa.algorithms.fold import BLOCK
from hansa.algorithms.rounds import clip_norm_of
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import Assignment
from hansa.core.schema import to_mapping
from hansa.core.settings import cache_folder
from hansa.reporting.run_folder import describe_environment, replace_file
from hansa.simulation.choice import Choice, processors
from hansa.simulation.executors import Batched, StatesOf, Work, compute
from hansa.simulation.identity import code_digests
from hansa.simulation.memory import free_memory
from hansa.simulation.preparation import Prepared
from hansa.simulation.spans import Span, spans
from hansa.training.kernels import Kernels, chosen, measure, use

_ALIKE: Final = ("rounds", "model", "trainer", "cohort", "schedule", "transforms", "aggregator", "data")
"""The sections of a plan on which the fastest executor depends."""
_CHUNKS: Final = (BLOCK, 32, 64, 128, 256)
"""Sizes that are tried, as a cohort is shared out evenly; the first one is taken whatever memory there is."""
_SECONDS: Final = 0.06
"""About how long one way to compute is timed."""
_LITTLE_SECONDS: Final = 10.0
"""A run that takes no longer needs no workers, which take some seconds until they compute."""
_LONG_SECONDS: Final = 0.05
"""A client that takes longer alone is held up by arithmetic, which training together does not save."""
_KEEP_UP: Final = 1.4
"""Threads may take so much longer than one span alone: processes share caches and memory too, and cost more of it."""
_VERY_LONG_SECONDS: Final = 1.0
"""A client that takes longer alone is not tried out in other ways: that would cost much of a run."""
_SIZES: Final = 1000
"""Clients whose sizes tell what data are like."""
_SHARE_OF_MEMORY: Final = 0.25
_CACHED: Final = 2**24
"""About the bytes of a chunk that a processor's caches hold."""
_COPIES: Final = 6
"""Vectors of the model that a client in a chunk takes, about: itself, gradients, memory, its update and encodings."""


@dataclass(frozen=True)
class _Trial:
    """Some clients of a plan, and what they would be asked to do in round 1."""

    prepared: Prepared
    assignment: Assignment

    @property
    def states_of(self) -> StatesOf:
        """Return first rows for any clients."""

        def first(ordinals: Int64s) -> dict[str, Array]:
            return {name: np.repeat(row[None], len(ordinals), axis=0) for name, row in self.prepared.first_rows.items()}

        return first

    def seconds_each(self, chunk: int, count: int) -> float:
        """Return the seconds that a client takes when ``count`` are computed, so many at once; the best of a few."""
        span = Span(0, min(count, len(self.assignment.cohort)))
        return self.seconds(span, chunk) / (span.stop - span.start)

    def seconds(self, span: Span, chunk: int) -> float:
        """Return the seconds that a span takes, so many clients at once; the best of a few."""
        work = Work(span, chunk, self.states_of(self.assignment.cohort[span.positions]), None)
        return _best(lambda: compute(self.prepared, self.assignment, work))

    def seconds_on(self, executor: Batched) -> float:
        """Return the seconds that all clients take on an executor; the best of a few."""

        def everyone() -> None:
            for _ in executor.partials(self.prepared, self.assignment, self.states_of):
                pass

        return _best(everyone)


def _best(compute_it: Callable[[], Any]) -> float:
    """Return the least seconds of some runs, two at least: the first one builds what the others find."""
    best, spent, runs = float("inf"), 0.0, 0
    while spent < _SECONDS or runs < 2:
        runs += 1
        began = time.perf_counter()
        compute_it()
        took = time.perf_counter() - began
        best, spent = min(best, took), spent + took
    return best


def choose(prepared: Prepared, device: str = "") -> Choice:
    """Return how to compute a plan: as the last time, or what a short trial finds fastest."""
    path = cache_folder() / "executors" / f"{_key(prepared, device)}.json"
    with suppress(OSError, ValueError, TypeError, LookupError):  # a cache that cannot be read is made anew
        return Choice.from_json(json.loads(path.read_text(encoding="utf-8")))
    try:
        with threadpool_limits(limits=1), use(Kernels(device=device)):
            found = _measured(prepared)
        choice = replace(found, kernels={**Kernels(device=device).record(), **found.kernels})
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the run meets it too, and tells it with its folder
        kernels = Kernels(device=device).record()
        return Choice(executor="serial", kernels=kernels, why=f"a trial of others ended with {type(error).__name__}")
    with suppress(OSError):  # a choice that cannot be kept is made anew the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(choice.as_json()).encode())
    return choice


def _key(prepared: Prepared, device: str) -> str:
    tables = {name: table for name, table in to_mapping(prepared.plan).items() if name in _ALIKE}
    machine = {name: value for name, value in describe_environment("").items() if name != "platform"}
    some = np.unique(np.linspace(0, prepared.population - 1, _SIZES).astype(np.int64))
    sizes = prepared.data.train.sizes(some)
    examples = [round(math.log2(max(1, number))) for number in (sizes.mean(), sizes.max())]
    model = (code_digests(prepared.plan), prepared.first.layout.size)
    where = (prepared.population, examples, str(prepared.data.signature), machine, processors(), device)
    alike = (tables, model, where)
    return hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _measured(prepared: Prepared) -> Choice:
    plan = prepared.plan
    cohort = max(1, round(plan.schedule.expected_reports(plan.cohort, prepared.population)))
    trial = _trial(prepared, min(cohort, 2 * max(_CHUNKS)))
    kind, reason = plan.trainer.batching(plan.model, prepared.data.signature)
    if kind == "fused":
        return _batched(trial, cohort, reason)
    alone = trial.seconds_each(1, 1)
    together = _together(trial, cohort) if kind == "vmap" and alone <= _LONG_SECONDS else ()
    each, chunk = min([(alone, 1), *together])
    if each * cohort * plan.rounds <= _LITTLE_SECONDS or cohort <= BLOCK or chosen().device:
        name = "serial" if chunk == 1 else "batched"
        return Choice(executor=name, chunk=chunk, why=f"{_rate(each)} one after the other; {reason}")
    workers = min(processors(), -(-cohort // max(chunk, BLOCK)))
    if alone > _VERY_LONG_SECONDS:
        return Choice(executor="batched", workers=workers, why=f"{_rate(alone)} alone, side by side; {reason}")
    if chunk == 1:
        return _side_by_side(trial, workers, reason)
    return Choice(executor="process", chunk=chunk, workers=workers, why=f"{_rate(each)} in each worker; {reason}")


def _side_by_side(trial: _Trial, workers: int, reason: str) -> Choice:
    """Return how clients that train one by one are shared out: on threads where these keep up, or else to processes."""
    plan = trial.prepared.plan
    kernels = _kernels(trial.prepared, getattr(plan.trainer, "batch_size", 32))
    cohort = trial.assignment.cohort[: BLOCK * workers]
    some = replace(trial, assignment=replace(trial.assignment, cohort=cohort))
    sizes = trial.prepared.data.train.sizes(cohort)
    longest = max(spans(len(cohort), BLOCK), key=lambda span: int(sizes[span.positions].sum()))
    with use(kernels):
        alone = some.seconds(longest, 1)
    threads = Batched(chunk=1, workers=workers, kernels=kernels)
    together = some.seconds_on(threads)
    if together > _KEEP_UP * alone:  # something else may have held them up
        together = min(together, some.seconds_on(threads))
    threads.close()
    each, on_threads = alone / (longest.stop - longest.start), together / len(cohort)
    return Choice(
        executor="batched" if together <= _KEEP_UP * alone else "process",
        workers=workers,
        kernels=kernels.record(),
        why=f"{_rate(each)} alone, {_rate(on_threads)} on {workers} threads; {reason}",
    )


def _batched(trial: _Trial, cohort: int, reason: str) -> Choice:
    """Return the fastest size of a chunk, on one thread or on several."""
    best = min(_together(trial, cohort), default=None)
    if best is None:
        return Choice(executor="batched", why=f"a cohort of one client; {reason}")
    each, chunk = best
    workers = processors()
    shared_out = min(chunk, _even(cohort, workers))
    if workers > 1 and shared_out < cohort:
        for size in {shared_out, _even(cohort, 2 * workers)}:
            threads = Batched(chunk=size, workers=workers)
            found = trial.seconds_on(threads) / len(trial.assignment.cohort)
            threads.close()
            if found < each:
                each, chunk, best = found, size, None
    workers = 1 if best is not None else workers
    return Choice(executor="batched", chunk=chunk, workers=workers, why=f"{_rate(each)}; {reason}")


def _together(trial: _Trial, cohort: int) -> Iterator[tuple[float, int]]:
    """Yield the seconds that a client takes, and the size of the chunk, for sizes that fit a cohort and the memory."""
    room = min(_CACHED, _SHARE_OF_MEMORY * free_memory() / processors())
    each, best = 4 * _COPIES * trial.assignment.layout.size, float("inf")
    for size in sorted({_even(cohort, -(-cohort // chunk)) for chunk in _CHUNKS}):
        if size > 1 and (size * each <= room or size <= BLOCK):
            found = trial.seconds_each(size, size)
            yield found, size
            if found > best:
                return  # larger chunks gain nothing more
            best = found


def _even(cohort: int, parts: int) -> int:
    """Return the size of chunks that share a cohort out evenly: whole blocks, or the cohort."""
    return min(cohort, -(-cohort // (parts * BLOCK)) * BLOCK)


def _trial(prepared: Prepared, count: int) -> _Trial:
    population = prepared.population
    ordinals = np.unique(np.linspace(0, population - 1, count).astype(np.int64))
    first = prepared.first
    return _Trial(
        prepared, Assignment(1, first.layout, first.model, ordinals, population, first.features, clip_norm_of(first))
    )


def _kernels(prepared: Prepared, batch: Any) -> Kernels:
    plan = prepared.plan
    size = batch if isinstance(batch, int) else int(prepared.data.train.sizes(np.arange(1))[0])
    return measure(plan.model, prepared.data.signature, size)


def _rate(seconds: float) -> str:
    return f"{1 / max(seconds, 1e-9):,.0f} updates a second"
