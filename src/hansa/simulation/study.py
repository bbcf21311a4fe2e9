"""Whether privacy is affordable: a plan over budgets, cohorts and seeds, beside the same plan without privacy.

A study is a folder: a plan for each setting, a run folder for each seed. What is finished there is not run again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from hansa.algorithms.plan import Plan, plan_from_mapping
from hansa.core.errors import HansaError, PlanError, Problem, RunError
from hansa.core.schema import to_mapping
from hansa.reporting.figures import nested, number
from hansa.reporting.run_folder import PLAN, REPLAY, RunFolder, storing
from hansa.simulation.engine import Callback
from hansa.simulation.run import RunResult, resume, run
from hansa.wire.plans import write_plan

PLANS: Final = "plans"
RUNS: Final = "runs"
_KEPT: Final = frozenset({
    "HANSA-RUN-INTERRUPTED", "HANSA-RUN-FOLDER", "HANSA-RUN-STORAGE", "HANSA-RUN-CHANGED", "HANSA-EXTRA-MISSING"
})  # fmt: skip
"""Errors that say nothing of a setting: the study ends with them, and goes on where it was."""


@dataclass(frozen=True)
class Setting:
    """One point of the sweep. ``epsilon`` is None without privacy; ``plan`` is None where it does not build."""

    epsilon: float | None
    cohort: int | None
    plan: Plan | None
    reason: str = ""

    @property
    def name(self) -> str:
        """Return what its plan and its runs are called."""
        budget = "no-privacy" if self.epsilon is None else f"epsilon-{self.epsilon:g}"
        return budget if self.cohort is None else f"{budget}-cohort-{self.cohort}"


@dataclass(frozen=True)
class Measured:
    """A setting, the utility of each of its seeds that ended, its cost, and why the others did not end."""

    setting: Setting
    utility: Mapping[int, float]
    cost: Mapping[str, Any] | None
    failures: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it for programs and for the page."""
        setting, values = self.setting, list(self.utility.values())
        divisor: Any = None if setting.plan is None else setting.plan.aggregator
        return {
            "name": setting.name,
            "epsilon": setting.epsilon,
            "cohort": setting.cohort,
            "divisor": getattr(divisor, "divisor", None),
            "privacy": self.cost,
            "utility": {str(seed): value for seed, value in self.utility.items()},
            "mean": statistics.fmean(values) if values else None,
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "failures": list(self.failures),
        }


def settings_of(plan: Plan, epsilons: Sequence[float], cohorts: Sequence[int]) -> list[Setting]:
    """Return the settings of a sweep: for each size of the cohort each budget, and last no privacy.

    Where no cohorts are given, there is the plan's own. A divisor is scaled as the cohort is. Raises PlanError for a
    plan without privacy, or whose cohort has no size where sizes are given.
    """
    if plan.privacy is None:
        raise PlanError([Problem("privacy", "a study compares budgets of a plan with [privacy]; add that table.")])
    own: int | None = getattr(plan.cohort, "size", None)
    if cohorts and own is None:
        raise PlanError([Problem("cohort", "it has no size, which --cohort would change; leave --cohort out.")])
    budgets: list[float | None] = [*epsilons, None]
    sizes: Sequence[int | None] = cohorts or [own]
    return [_setting(plan, epsilon, size) for size, epsilon in product(sizes, budgets)]


def _setting(plan: Plan, epsilon: float | None, size: int | None) -> Setting:
    tables = to_mapping(plan)
    tables["evaluation"]["baselines"] = []
    if size is not None:
        _scale(tables, size)
    if epsilon is None:
        tables.pop("privacy")
        tables.pop("secure_aggregation", None)
    else:
        tables["privacy"] |= {"epsilon": epsilon}
        tables["privacy"].pop("noise_multiplier", None)
    try:
        return Setting(epsilon, size, plan_from_mapping(tables))
    except PlanError as error:
        return Setting(epsilon, size, None, "; ".join(map(str, error.problems)))


def _scale(tables: dict[str, Any], size: int) -> None:
    """Set the size of a cohort, and scale what a sum is divided by."""
    ratio = size / tables["cohort"]["size"]
    tables["cohort"]["size"] = size
    tables["aggregator"]["divisor"] *= ratio


class Study:
    """Runs every setting with every seed in a folder, or takes the run that is there."""

    def __init__(self, folder: Path, metric: str | None = None, **how: Any) -> None:
        """Work in a folder. ``how`` is what :func:`hansa.simulation.run.run` takes: executor, workers, chunk."""
        self.folder = folder
        self.metric = metric
        self.how = how

    def measured(
        self,
        settings: Sequence[Setting],
        seeds: int,
        watch: Callable[[str], Sequence[Callback]] = lambda name: (),  # noqa: ARG005 - nobody watches
    ) -> Iterator[Measured]:
        """Yield the settings as they are measured; ``seeds`` count from the plan's.

        ``watch`` gives what is called with the events of a run, from its name. Raises HansaError where the folder
        holds another study, or is no place for one, where a run is interrupted, and where nothing is measured.
        """
        self._write_plans(settings)
        for setting in settings:
            if setting.plan is None:
                yield Measured(setting, {}, None, (setting.reason,))
                continue
            yield self._measure(setting, setting.plan, seeds, watch)

    def _measure(
        self, setting: Setting, plan: Plan, seeds: int, watch: Callable[[str], Sequence[Callback]]
    ) -> Measured:
        utility: dict[int, float] = {}
        failed: dict[str, list[int]] = {}
        cost = None
        for seed in range(plan.seed, plan.seed + seeds):
            folder = self.folder / RUNS / setting.name / f"seed-{seed}"
            try:
                result = self._run(replace(plan, seed=seed), folder, watch(f"{setting.name}, seed {seed}"))
            except HansaError as error:
                if error.code in _KEPT:
                    raise
                failed.setdefault(_reason(error), []).append(seed)
            else:
                utility[seed], cost = self._utility(result), result.summary["privacy"]
        return Measured(setting, utility, cost, tuple(f"{_seeds(of)}: {why}" for why, of in failed.items()))

    def _run(self, plan: Plan, folder: Path, callbacks: Sequence[Callback]) -> RunResult:
        if (folder / PLAN).is_file() and (folder / REPLAY).is_file():
            if _comparable(RunFolder.open(folder).read(PLAN)) != _comparable(write_plan(plan)):
                raise _another(folder)
            return resume(folder, callbacks=callbacks)
        return run(plan, out=folder, callbacks=callbacks, **self.how)

    def _utility(self, result: RunResult) -> float:
        central = nested(result.summary, "metrics", "central")
        self.metric = self.metric or next(iter(central), None) if isinstance(central, Mapping) else self.metric
        found = number(nested(central, self.metric or ""))
        if found is None:
            raise PlanError(
                [
                    Problem(
                        "evaluation",
                        f"a study needs {self.metric or 'a metric'} on the server's own examples, and this run has "
                        "none; choose data with a central test set, or hold out clients' examples with "
                        'data.test_fraction and data.test_at = "server", or choose another --metric.',
                    )
                ]
            )
        return found

    def _write_plans(self, settings: Sequence[Setting]) -> None:
        plans = self.folder / PLANS
        with storing(self.folder):
            plans.mkdir(parents=True, exist_ok=True)
        for setting in settings:
            if setting.plan is None:
                continue
            path, text = plans / f"{setting.name}.toml", write_plan(setting.plan)
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise _another(path)
            with storing(self.folder):
                path.write_text(text, encoding="utf-8")


def _reason(error: HansaError) -> str:
    if isinstance(error, PlanError):
        return "; ".join(map(str, error.problems))
    return f"{error.found} {error.action} [{error.code}]"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _comparable(text: str) -> str:
    """Return a plan's text without what a run fills in: the columns of its data."""
    import tomllib  # noqa: PLC0415 - only where a run is there already

    return repr({key: table for key, table in tomllib.loads(text).items() if key != "features"})


def _another(path: Path) -> RunError:
    return RunError(
        "HANSA-RUN-FOLDER",
        rule="A study goes on only with the plan that it began with.",
        found=f"{path} is of another plan.",
        action="Choose another --out.",
    )
