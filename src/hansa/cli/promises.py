"""What a plan promises and what it costs, in words and numbers, before it is run."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from threadpoolctl import threadpool_limits

from hansa.algorithms.example_checks import example_privacy_of
from hansa.algorithms.plan import Plan
from hansa.algorithms.round_storage import folded_early, round_storage, update_bytes
from hansa.algorithms.schedule import has_fixed_size, picking
from hansa.algorithms.secure_sums import training_code
from hansa.core.layout import Layout
from hansa.core.nouns import ServerState
from hansa.core.registry import kind_of
from hansa.core.schema import to_mapping, to_plain
from hansa.core.sections import Data
from hansa.data.sources import Source, find
from hansa.reporting import example_sentences, privacy_sentences
from hansa.reporting.disclosure import server_sees
from hansa.reporting.figures import bytes_text, count_text, plural, seconds_text
from hansa.reporting.secure_sentences import sentences
from hansa.server.settings import ServerSettings
from hansa.simulation import auto
from hansa.simulation.choice import executor_of
from hansa.simulation.client_store import ClientStore
from hansa.simulation.engine import simulate_round
from hansa.simulation.measuring import measure
from hansa.simulation.preparation import Prepared, federated_scaling
from hansa.simulation.secure_sum import MEANING
from hansa.simulation.timeline import timeline_of

_MEASURED: Final = 1000
"""Most clients on which an evaluation is tried out."""
_MANY: Final = 10**9
"""Clients, where a population is not known and does not matter."""
NO_UNIT: Final = "none"
NO_CLIENT: Final = "a client as a whole: none, nothing bounds what tells about it; single examples: see below"
NO_EPSILON: Final = "none: this plan makes no differential privacy claim"


def promises(prepared: Prepared) -> list[tuple[str, str]]:
    """Return what the plan promises, as names and sentences."""
    plan = prepared.plan
    kept = "examples" + (", and what a client keeps between rounds" if prepared.first_rows else "")
    data = prepared.data
    on_clients = any(part is not None for part in (data.test, data.validation, data.held_out))
    metrics = [metric.name for metric in prepared.metrics]
    seen = server_sees(to_mapping(plan), metrics=metrics, on_clients=on_clients)
    found = privacy_promises(plan, prepared.first.layout)
    found += [("the server sees" if phrase == seen[0] else "", phrase) for phrase in seen]
    if any(kind_of("transform", transform) == "clip" for transform in plan.transforms):
        found.append(("clip", "bounds the size of an update; without noise it protects no one"))
    found += secure_promises(plan, prepared.first.layout, prepared.population)
    return [*found, ("stays with clients", kept), ("this simulation", _simulated(plan))]


def privacy_promises(plan: Plan, layout: Layout) -> list[tuple[str, str]]:
    """Return what differential privacy a plan promises, or that it promises none."""
    examples = [(about, text) for about, text in example_sentences.example_sentences(plan)]
    if plan.privacy is None and examples:
        return [("privacy unit", NO_CLIENT), *examples]
    if plan.privacy is None:
        return [("privacy unit", NO_UNIT), ("epsilon", NO_EPSILON)]
    clients = [(about, text) for about, text in privacy_sentences.sentences(plan, training_code(plan, layout))]
    return [*clients, *examples]


def secure_promises(plan: Plan, layout: Layout, population: int | None) -> list[tuple[str, str]]:
    """Return what secure sums protect, from whom and on which assumptions; nothing where the plan has none.

    ``population`` is None where only a server knows it: then a cohort of no fixed size is as large as one may be.
    """
    section, code = plan.secure_aggregation, training_code(plan, layout)
    if section is None or code is None:
        return []
    sampler: Any = picking(plan.schedule, plan.cohort)  # type: ignore[arg-type]  # secure sums are refused beside buffers
    size = sampler.size if has_fixed_size(sampler) else section.maximum_cohort or 0
    usual = size if population is None else int(sampler.expected_size(population))
    cohort = max(usual, section.minimum_cohort)
    return [(about, text) for about, text in sentences(section, code, cohort // section.groups(cohort))]


def _simulated(plan: Plan) -> str:
    """Return who sees what in a simulation, exactly."""
    text = "all clients' data are on this machine; nothing is pooled to train the model"
    if plan.evaluation.baselines:
        names = " and ".join(plan.evaluation.baselines)
        text += f", but the baselines for comparison ({names}) need the data in one place"
    if plan.data is not None and _dealt(plan.data):
        text += "; the clients are made up: their examples are dealt from one pool"
    if plan.privacy is not None:
        text += f"; its epsilon is {privacy_sentences.HYPOTHETICAL}"
    if example_privacy_of(plan.trainer) is not None:
        text += f"; the epsilon of single examples is {example_sentences.SIMULATED}"
    if plan.secure_aggregation is not None:
        text += f"; secure sums are {MEANING[plan.secure_aggregation.mode]}"
    return text + "."


def _dealt(data: Data) -> bool:
    """Say whether examples are dealt to clients, instead of being theirs in the source."""
    if data.partition is not None:
        return kind_of("partition", data.partition) != "natural"
    source = find(data.source)
    return isinstance(source, Source) and source.partition is not None


@dataclass(frozen=True)
class Costs:
    """What a round and a run cost; times are of this machine, from one round and one evaluation."""

    parameters: dict[str, int]
    population: int
    cohort: float
    rounds: int
    bytes_up: float
    bytes_down: float
    computed: str
    seconds_per_round: float
    seconds_per_evaluation: float
    evaluations: int
    baselines: tuple[str, ...]
    sends: str = ""
    """What the bytes that a client sends are."""
    stored: str = ""
    """What a server stores of an open round."""

    @property
    def seconds(self) -> float:
        """Return how long rounds and evaluations are expected to take; baselines come on top."""
        return self.rounds * self.seconds_per_round + self.evaluations * self.seconds_per_evaluation

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values, as text."""
        total = self.cohort * self.rounds
        shares = ", ".join(f"{name} {count_text(size)}" for name, size in self.parameters.items())
        several = f" ({shares})" if len(self.parameters) > 1 else ""
        extra = "; the baselines come on top" if self.baselines else ""
        expected = "" if float(self.cohort).is_integer() else " expected"
        time_here = (
            f"about {seconds_text(float(f'{self.seconds:.2g}'))}: {seconds_text(self.seconds_per_round)} a round, "
            f"{seconds_text(self.seconds_per_evaluation)} an evaluation, one of each measured ({self.computed})"
        )
        return [
            ("parameters", count_text(sum(self.parameters.values())) + several),
            ("clients", f"{count_text(self.population)}, of which {self.cohort:g}{expected} take part in a round"),
            ("rounds x cohort", f"{count_text(self.rounds)} x {self.cohort:g} = {count_text(total)} client updates"),
            ("up", f"{_each_and_all(self.bytes_up, total)}: {self.sends}"),
            ("down", f"{_each_and_all(self.bytes_down, total)}: 4 bytes a number"),
            ("at rest", self.stored),
            ("time here", time_here + extra),
        ]

    def as_mapping(self) -> dict[str, Any]:
        """Return the costs for programs."""
        total = self.cohort * self.rounds
        return {
            "parameters": sum(self.parameters.values()),
            "branches": self.parameters,
            "population": self.population,
            "cohort": self.cohort,
            "rounds": self.rounds,
            "client_updates": total,
            "bytes_up_per_client": self.bytes_up,
            "bytes_down_per_client": self.bytes_down,
            "bytes_up_total": self.bytes_up * total,
            "bytes_down_total": self.bytes_down * total,
            "computed": self.computed,
            "seconds_per_round": self.seconds_per_round,
            "seconds_per_evaluation": self.seconds_per_evaluation,
            "seconds_without_baselines": self.seconds,
        }


def _each_and_all(size: float, updates: float) -> str:
    return f"{bytes_text(size)} per client and round, {bytes_text(size * updates)} in all"


def costs(prepared: Prepared) -> Costs:
    """Return what a prepared plan costs. Two rounds and one evaluation are done, in a folder that is thrown away."""
    plan, choice = prepared.plan, auto.choose(prepared)
    with (
        threadpool_limits(limits=1),
        closing(executor_of(choice)) as executor,
        tempfile.TemporaryDirectory(prefix="hansa-check-") as temporary,
        closing(ClientStore(Path(temporary), prepared.data.train.names, prepared.first_rows)) as store,
    ):
        state = replace(prepared.first, features=federated_scaling(prepared))
        for _ in range(2):  # the first one starts workers
            closed = simulate_round(prepared, timeline_of(prepared), state, store, executor)
        evaluating = _seconds_of_evaluation(prepared, closed.state, store)
    return Costs(
        parameters={branch.name: branch.size for branch in prepared.first.layout.branches},
        population=prepared.population,
        cohort=plan.schedule.expected_reports(plan.cohort, prepared.population),
        rounds=plan.rounds,
        bytes_up=closed.bytes_up,
        bytes_down=float(prepared.first.model.nbytes),
        computed=choice.text,
        seconds_per_round=closed.seconds,
        seconds_per_evaluation=evaluating,
        evaluations=plan.rounds // plan.evaluation.every + 2,
        baselines=plan.evaluation.baselines,
        sends=sends(plan),
        stored=stored(plan, prepared.first.layout, prepared.population),
    )


def sends(plan: Plan) -> str:
    """Return what the bytes are that a client sends in a round of training."""
    if plan.secure_aggregation is not None:
        return "the vector of integers above; the keys and shares of the secure sums come on top"
    if plan.privacy is not None:
        return "the integers above"
    return "4 bytes a number and 8 a count, where no transform compresses it"


def stored(plan: Plan, layout: Layout, clients: int | None) -> str:
    """Return what a server, as it is without settings, stores of a round of training while it is open.

    ``clients`` is the population, where that is known.
    """
    update = bytes_text(update_bytes(plan, layout))
    schedule: Any = plan.schedule
    if not schedule.synchronous:
        return f"each update, {update}, is kept sealed as long as anybody may train from its model version"
    if clients is None and not (has_fixed_size(plan.cohort) or folded_early(plan)):
        return f"what each client of the cohort sends is kept sealed until the round is closed: {update} each"
    of = round_storage(plan, layout, _MANY if clients is None else clients, ServerSettings.fold_every)
    if of is None:
        raise LookupError("a synchronous round has an end")
    every = f"{bytes_text(of.total)} in an open round at a server: {of.waiting} updates of {update}"
    sums = f"and two sums of {update}, of those before: the one that counts, and the one that takes its place"
    return f"{every}, {sums}" if of.sums else f"{every}, until it is closed"


def _seconds_of_evaluation(prepared: Prepared, state: ServerState, store: ClientStore) -> float:
    """Return how long an evaluation takes; of many clients some are measured, and the others taken to be like them."""
    wanted = min(prepared.plan.evaluation.federated_clients or prepared.population, prepared.population)
    measured = min(wanted, _MEASURED)
    evaluation = replace(prepared.plan.evaluation, federated_clients=measured)
    some = replace(prepared, plan=replace(prepared.plan, evaluation=evaluation))
    began = time.perf_counter()
    measure(some, state, store, everyone=False)
    return (time.perf_counter() - began) * wanted / measured


def pieces(plan: Plan) -> list[tuple[str, str]]:
    """Return the resolved pieces of a plan, as names and values."""
    tables = {
        "model": plan.model.factory,
        "trainer": to_plain(plan.trainer, "trainer"),
        "cohort": to_plain(plan.cohort, "sampler"),
        "schedule": to_plain(plan.schedule, "schedule"),
        "transforms": to_plain(plan.transforms, "transform"),
        "aggregator": to_plain(plan.aggregator, "aggregator"),
        "server optimizer": to_plain(plan.server_optimizer, "server_optimizer"),
    }
    if plan.devices is not None:
        tables["devices"] = to_plain(plan.devices)
    return [(name, _text(table)) for name, table in tables.items()]


def _text(value: Any) -> str:
    """Return a table as ``kind (key value, ...)``."""
    if isinstance(value, dict):
        kind = str(value.get("kind", ""))
        rest = ", ".join(
            f"{key} {_text(inner)}" for key, inner in value.items() if key != "kind" and inner not in ({}, [])
        )
        if not kind:
            return f"{{{rest}}}"
        return f"{kind} ({rest})" if rest else kind
    if isinstance(value, list):
        return " > ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def held_out(prepared: Prepared) -> str:
    """Return what the plan is judged on."""
    data = prepared.data
    parts = [
        "held-out examples of the clients" if data.test is not None else "",
        plural(len(data.held_out.names), "client") + " that never train" if data.held_out is not None else "",
        plural(len(data.central.y), "example") + " of the server's own" if data.central is not None else "",
    ]
    named = ", ".join(metric.name for metric in prepared.metrics)
    return f"{named} on " + (", ".join(part for part in parts if part) or "nothing: set data.test_fraction")
