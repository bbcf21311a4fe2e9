"""From a plan to what a server is sent: built here, where the code that the plan names is trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hansa.algorithms.plan import Plan
from hansa.client.policy import MOST_ROUNDS
from hansa.core.errors import PlanError, Problem
from hansa.core.nouns import Signature
from hansa.core.schema import to_mapping
from hansa.core.sections import Features
from hansa.core.streams import Streams
from hansa.data import load
from hansa.data.inference import is_open
from hansa.wire.jobs import layout_to_mapping
from hansa.wire.models import values_of
from hansa.wire.server_models import ServedModel


@dataclass(frozen=True)
class BuiltJob:
    """A job's body for the operator API, and the initial model that is uploaded before it."""

    body: Mapping[str, Any]
    model: bytes
    notes: tuple[str, ...]


def build_job(
    plan: Plan, *, population: str, signature: Signature | None = None, begin_from: bytes | None = None, **options: Any
) -> BuiltJob:
    """Return the job of a plan. Raises HansaError.

    The signature follows from ``[features]`` where they are complete; else it is given, or found in ``[data]``, which
    completes the features too. ``begin_from``: a model file to begin from, instead of the model that the plan's factory
    makes. ``options``: eligibility, priority, purpose, as the API has them.
    """
    notes: tuple[str, ...] = ()
    found = signature or (None if plan.features is None else signature_of(plan.features))
    if found is None:
        plan, found, notes = _from_data(plan)
    model = plan.trainer.initial(plan.model, found, Streams(plan.seed).of("model"))
    values = model.values if begin_from is None else values_of(begin_from, model.layout, model.values)
    content = ServedModel(values, None).to_bytes()
    body = {
        "name": plan.name,
        "population": population,
        "plan": to_mapping(replace(plan, data=None, devices=None)),
        "signature": {**asdict(found), "shape": list(found.shape)},
        "layout": {"branches": layout_to_mapping(model.layout)["branches"]},
        "model": hashlib.sha256(content).hexdigest(),
        **options,
    }
    return BuiltJob(body, content, (*notes, *_too_long(plan), *plan.trainer.notes(plan.model, found)))


def _too_long(plan: Plan) -> tuple[str, ...]:
    """Return a note on a plan of more rounds than sites take part in where their policies do not say."""
    told = f"sites take part in plans of at most {MOST_ROUNDS} rounds, unless their policies say more (most_rounds)"
    return (told,) if plan.rounds > MOST_ROUNDS else ()


def signature_of(features: Features) -> Signature | None:
    """Return what features say of the data, or None where they leave it to the data."""
    if features.task is None or is_open(features):
        return None
    if features.task == "classification" and len(features.classes) < 2:
        return None
    classes = len(features.classes) if features.task == "classification" else 0
    return Signature((len(features.slots()),), classes)


def _open(features: Features) -> str:
    """Return which setting leaves the form of the data open."""
    if features.task is None:
        return "task"
    return "classes" if features.task == "classification" and len(features.classes) < 2 else "columns"


def _from_data(plan: Plan) -> tuple[Plan, Signature, tuple[str, ...]]:
    if plan.data is None:
        where = "data" if plan.features is None else f"features.{_open(plan.features)}"
        raise PlanError(
            [
                Problem(
                    where,
                    "what the model is built for must be known: complete [features] (task, classes, columns with their "
                    "bounds or categories), or give [data] with examples of the same form here, or --shape and "
                    "--classes.",
                )
            ]
        )
    data = load(plan.data, plan.features, plan.seed)
    if data.features is None:
        return plan, data.signature, ()
    note = "features were completed from [data] here; every client applies them as they are now"
    return replace(plan, features=data.features), data.signature, () if data.features == plan.features else (note,)
