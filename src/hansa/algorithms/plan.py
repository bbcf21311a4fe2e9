"""The plan: the whole recipe as data. It builds only when it is valid and sound."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Annotated, Any, Final

from annotated_types import Ge, Le, MinLen

from hansa.algorithms import privacy_checks, secure_checks, soundness
from hansa.algorithms.aggregators import Mean
from hansa.algorithms.recipes import essential_problems
from hansa.algorithms.samplers import Full
from hansa.algorithms.schedule import Sync
from hansa.algorithms.server_optimizers import Sgd
from hansa.core import pieces, schema
from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.privacy import Privacy
from hansa.core.registry import nearest, resolve
from hansa.core.schema import Doc, Family
from hansa.core.sections import Data, Devices, Evaluation, Features, Model, Stopping
from hansa.core.secure_aggregation import SecureAggregation

FORMAT: Final = 1
"""Version of the plan's schema; part of its hash."""

_NOT_HASHED: Final = ("name", "data", "devices")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who takes part, what is trained, what protects it, how it is combined, how it is judged.

    Sections may be given as objects or as plain tables. Raises PlanError with every problem found.
    """

    name: Annotated[str, MinLen(1), Doc("what the run is called; not part of the plan's hash")]
    seed: Annotated[int, Ge(0), Le(2**53 - 1), Doc("where all randomness of a simulation comes from")] = 0
    rounds: Annotated[int, Ge(1), Le(10**9), Doc("number of rounds")]
    data: Annotated[Data | None, Doc("where the examples come from; simulation only")] = None
    devices: Annotated[
        Devices | None, Doc("how fast clients are and when they can be reached; simulation only, absent: no clock")
    ] = None
    features: Annotated[Features | None, Doc("the columns of a table, for csv and parquet")] = None
    model: Annotated[Model, Doc("the model that is trained")]
    trainer: Annotated[pieces.Trainer, Family("trainer"), Doc("what a client does with its examples")]
    cohort: Annotated[pieces.CohortSampler, Family("sampler"), Doc("who takes part in a round")] = field(
        default_factory=Full
    )
    schedule: Annotated[
        pieces.Schedule, Family("schedule"), Doc("when the server takes a step, and whose reports are part of it")
    ] = field(default_factory=Sync)
    transforms: Annotated[
        tuple[pieces.Transform, ...], Family("transform"), Doc("layers around the wire, outermost last")
    ] = ()
    aggregator: Annotated[pieces.Aggregator, Family("aggregator"), Doc("combines the updates")] = field(
        default_factory=Mean
    )
    server_optimizer: Annotated[
        pieces.ServerOptimizer, Family("server_optimizer"), Doc("turns the combined update into the next model")
    ] = field(default_factory=Sgd)
    evaluation: Annotated[Evaluation, Doc("what is measured")] = field(default_factory=Evaluation)
    stopping: Annotated[Stopping, Doc("when a run ends early")] = field(default_factory=Stopping)
    privacy: Annotated[
        Privacy | None, Doc("differential privacy: clipped updates and noise on their sum; absent: off")
    ] = None
    secure_aggregation: Annotated[
        SecureAggregation | None, Doc("secure sums: the server sees the sum of a cohort only; absent: off")
    ] = None

    def __post_init__(self) -> None:
        try:
            tables = schema.to_mapping(self)
        except RecursionError:
            raise PlanError([Problem("plan", "holds arrays or tables that are nested too deeply.")]) from None
        sections, found = schema.from_mapping(Plan, tables)
        found += soundness.problems(_with_defaults(sections, found))
        if found:
            raise PlanError(found)
        for name, section in sections.items():
            object.__setattr__(self, name, section)
        if self.privacy is not None:
            object.__setattr__(self, "privacy", resolve("calibration", "privacy")(self))


def _with_checked_names(init: Callable[..., None]) -> Callable[..., None]:
    """Return the plan's ``__init__`` with a PlanError for sections that are unknown or missing, as a file has it."""

    @wraps(init)
    def checked(self: Plan, *positional: Any, **sections: Any) -> None:
        declared = schema.fields_of(Plan)
        required = {name for name, section in declared.items() if section.required}
        if not positional and (sections.keys() - declared.keys() or required - sections.keys()):
            given = {name: section for name, section in sections.items() if section is not None}
            raise PlanError(schema.from_mapping(Plan, given)[1])
        init(self, *positional, **sections)

    return checked


Plan.__init__ = _with_checked_names(Plan.__init__)  # type: ignore[method-assign]  # dataclass wrote it


def plan_from_mapping(mapping: Mapping[str, Any]) -> Plan:
    """Return the plan that tables describe, ``recipe`` included. Raises PlanError with every problem found."""
    mapping, found = expand_recipe(mapping, essential=True)
    sections, more = schema.from_mapping(Plan, mapping)
    found += more
    found += soundness.problems(_with_defaults(sections, found))
    if found:
        raise PlanError(found)
    return Plan(**sections)


def recipe(kind: str, /, **sections: Any) -> Plan:
    """Return the plan of a published method (:mod:`hansa.algorithms.recipes`) with the given sections.

    The method's own settings are given beside the sections: ``recipe("fedprox", mu=0.1, name=..., ...)``.
    Of a section given as an object, what is as its default leaves the method's own setting in place.
    """
    declared = schema.fields_of(Plan)
    own = {name: value for name, value in sections.items() if name not in declared}
    tables = {
        name: schema.given_only(value, declared[name].family)
        for name, value in sections.items()
        if name in declared and value is not None
    }
    return plan_from_mapping({"recipe": {"kind": kind, **own}, **tables})


def plan_sha256(plan: Plan) -> str:
    """Return SHA-256 of the canonical JSON (RFC 8785) of the resolved plan, without name, data and devices.

    How a simulation computes a secure sum is no part of it either: the plan that is simulated is the one that is run.
    """
    import rfc8785  # noqa: PLC0415 - needed when a plan is hashed, not when a piece is imported

    tables = {name: table for name, table in schema.to_mapping(plan).items() if name not in _NOT_HASHED}
    if plan.secure_aggregation is not None:
        tables["secure_aggregation"].pop("mode")
    floats = list(_whole_floats(tables["model"]["arguments"], ()))
    told = {"whole_floats": floats} if floats else {}
    return hashlib.sha256(rfc8785.dumps({"format": FORMAT, **told, **tables})).hexdigest()


def _whole_floats(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield where whole numbers are floats. Canonical JSON writes 1.0 as 1, but a factory sees another type."""
    if isinstance(value, float) and value.is_integer():
        yield path
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ()
    for key, item in sorted((str(key), item) for key, item in items):
        yield from _whole_floats(item, (*path, key))


def population_problems(plan: Plan, population: int) -> list[Problem]:
    """Return what cannot work with a population of that size."""
    cohort = plan.schedule.expected_reports(plan.cohort, population)
    return [
        *(Problem(f"cohort.{key}", text) for key, text in plan.cohort.problems(population, plan.rounds)),
        *(Problem(f"schedule.{key}", text) for key, text in plan.schedule.problems(plan.cohort, population)),
        *(Problem(f"aggregator.{key}", text) for key, text in plan.aggregator.problems(cohort)),
        *secure_checks.population_problems(plan, population),
        *privacy_checks.population_problems(plan.privacy, population),
    ]


def _with_defaults(sections: Mapping[str, Any], found: list[Problem]) -> dict[str, Any]:
    """Return the sections with defaults for those that were not given; a section with problems stays out."""
    broken = {problem.path.split(".")[0] for problem in found}
    defaults = {
        name: declared.default
        for name, declared in schema.fields_of(Plan).items()
        if not declared.required and name not in broken
    }
    return {**defaults, **sections}


def expand_recipe(mapping: Mapping[str, Any], *, essential: bool = False) -> tuple[Mapping[str, Any], list[Problem]]:
    """Return a plan's tables laid over those of its recipe, if it names one, and what is wrong with that.

    With ``essential``, also where they take away what the recipe is named for.
    """
    if "recipe" not in mapping:
        return mapping, []
    own = {key: value for key, value in mapping.items() if key != "recipe"}
    named = mapping["recipe"]
    under, found = _recipe_tables(named)
    expanded = overlay(under, own)
    if essential and not found:
        kind = named if isinstance(named, str) else named["kind"]
        found = essential_problems(kind, under, expanded)
    return expanded, found


def _recipe_tables(named: Any) -> tuple[Mapping[str, Any], list[Problem]]:
    """Return the tables of ``"kind"`` or ``{kind = ..., ...}``, and every problem met."""
    arguments = {"kind": named} if isinstance(named, str) else named
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("kind"), str):
        return {}, [Problem("recipe", "must be a name, or a table with a key 'kind' that holds it.")]
    kind = arguments["kind"]
    try:
        method = resolve("recipe", kind)
    except LookupError as error:
        return {}, [Problem("recipe", str(error.args[0]))]
    except HansaError as error:
        return {}, [Problem("recipe", f"{error} [{error.code}]")]
    return _called(method, kind, {key: value for key, value in arguments.items() if key != "kind"})


def _called(method: Any, kind: str, given: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Problem]]:
    """Return the tables that a recipe makes of its settings, and every problem met."""
    known = _parameters(method)
    unknown = [key for key in given if known is not None and key not in known]
    if unknown:
        return {}, [Problem(f"recipe.{key}", f"unknown key; {nearest(key, known or ())}") for key in unknown]
    try:
        tables = method(**given) if callable(method) else method
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a recipe may be code of the user's own
        return {}, [Problem("recipe", f"{kind!r}, called with its settings, raised {type(error).__name__}: {error}.")]
    if not isinstance(tables, Mapping):
        return {}, [Problem("recipe", f"{kind!r} is no recipe: it returns no tables.")]
    return tables, []


def _parameters(method: Any) -> Mapping[str, Any] | None:
    """Return the parameters of a recipe, or None where it does not tell them (as with what is written in C)."""
    try:
        return inspect.signature(method).parameters if callable(method) else {}
    except ValueError:
        return None


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables with others laid over them, key by key; a table of another kind replaces the whole."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and _same_kind(below, value):
            merged[key] = overlay(below, value)
        else:
            merged[key] = value
    return merged


def _same_kind(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return len({table["kind"] for table in (below, value) if "kind" in table}) < 2
