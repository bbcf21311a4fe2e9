"""What a study of privacy found: the setting to recommend, its risks in sentences, and the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hansa.core.privacy import Privacy
from hansa.reporting.figures import HIGHER_IS_BETTER, count_text, metric_name, metric_text, metric_title, plural
from hansa.reporting.privacy_sentences import HYPOTHETICAL
from hansa.reporting.report import render
from hansa.reporting.study_charts import utility_charts

Row = Mapping[str, Any]

_ADJACENCY: Final = {
    "add-or-remove-one": "whether one client takes part or does not",
    "zero-out": "whether one client's updates are its own or zeros",
    "replace-one": "whether one client's updates are its own or any others",
}


def recommended(rows: Sequence[Row], metric: str, tolerance: float) -> Row | None:
    """Return the row of the smallest epsilon, then cohort, whose mean is within a tolerance of the best twin's.

    Returns None where there is none, or no twin. Only rows whose every seed ended count.
    """
    twin = best_twin(rows, metric)
    if twin is None:
        return None
    fit = [row for row in _private(rows) if shortfall(row, twin, metric) <= tolerance]
    return min(fit, key=lambda row: (row["epsilon"], row["cohort"] or 0), default=None)


def best_twin(rows: Sequence[Row], metric: str) -> Row | None:
    """Return the row without privacy that has the best mean, or None."""
    twins = [row for row in _whole(rows) if row["epsilon"] is None]
    return max(twins, key=lambda row: _sign(metric) * row["mean"], default=None)


def shortfall(row: Row, twin: Row, metric: str) -> float:
    """Return by how much a row's mean is worse than that of a twin."""
    return float(_sign(metric) * (twin["mean"] - row["mean"]))


def verdict(rows: Sequence[Row], metric: str, tolerance: float) -> str:
    """Return the answer of a study in a sentence or two."""
    twin, found, name = best_twin(rows, metric), recommended(rows, metric, tolerance), metric_name(metric)
    if twin is None:
        return "No run without privacy ended with every seed, so that nothing can be compared."
    without = f"{metric_text(twin['mean'])} without privacy"
    if found is not None:
        return (
            f"The smallest epsilon within {tolerance:g} of the {name} without privacy is {found['epsilon']:g}"
            f"{_of_cohort(found)}: {name} {metric_text(found['mean'])}{_deviation(found)}, against {without}"
            f"{_deviation(twin)}.{_unsure(found, twin, tolerance)}"
        )
    closest = min(_private(rows), key=lambda row: shortfall(row, twin, metric), default=None)
    if closest is None:
        return f"No setting with privacy ended with every seed; {name} is {without}."
    return (
        f"No setting is within {tolerance:g} of the {name} without privacy. The closest is epsilon "
        f"{closest['epsilon']:g}{_of_cohort(closest)}: {name} {metric_text(closest['mean'])}, against {without}. "
        "More clients, fewer parameters, or a larger tolerance or budget would be needed."
    )


def risks(rows: Sequence[Row], privacy: Privacy, seeds: int) -> Iterator[str]:
    """Yield what a reader of a recommendation must know, in sentences."""
    yield (
        f"Choosing a setting by the results of {plural(len(rows), 'setting')} is itself learned from the data. On "
        "private data that costs privacy, and no epsilon here counts it: study on public or synthetic data, or charge "
        "every run."
    )
    yield f"Every epsilon here is {HYPOTHETICAL}."
    yield (
        f"An epsilon bounds {_ADJACENCY[privacy.adjacency]} ({privacy.adjacency}), for one {privacy.unit} over the "
        f"whole run, at delta {privacy.delta:g}. It does not compare with one of another adjacency or unit."
    )
    yield (
        "Who takes part, when, and how many they are is not hidden: whoever sees the traffic, and the server, knows it."
    )
    yield (
        "The charged epsilon is the guarantee; the reference is that of an idealised mechanism, and is not to be "
        "quoted in its place."
    )
    yield _of_seeds(seeds)
    yield (
        "Utility was measured on the server's own examples. If they are somebody's private data, each of these figures "
        "is a release about them."
    )


def render_study(results: Mapping[str, Any], *, privacy: Privacy, plan_text: str) -> str:
    """Return the page of a study. ``results`` is what results.json holds."""
    rows, metric = results["settings"], results["metric"]
    found, twin = recommended(rows, metric, results["tolerance"]), best_twin(rows, metric)
    return render(
        "study.html",
        title=f"Is privacy affordable? {results['name']}",
        lede=results["verdict"],
        metric=metric,
        found=found,
        twin=twin,
        facts_of=_facts(results, privacy),
        charts=utility_charts(rows, metric),
        head=("Setting", "Charged", "Reference", "Noise", metric_title(metric), "Spread", "Behind", "Each seed"),
        table=[_cells(row, twin, metric) for row in rows if row["utility"]],
        failed=[(row["name"], row["failures"]) for row in rows if row["failures"]],
        promises=results["promises"],
        risks=results["risks"],
        tolerance=results["tolerance"],
        plan_text=plan_text,
    )


def _facts(results: Mapping[str, Any], privacy: Privacy) -> list[tuple[str, str]]:
    rows = results["settings"]
    return [
        ("Privacy unit", privacy.unit),
        ("Adjacency", privacy.adjacency),
        ("Delta", f"{privacy.delta:g}"),
        ("Mechanism", f"{privacy.mechanism}, noise by the {privacy.noise_by}"),
        ("Settings", count_text(len(rows))),
        ("Seeds each", count_text(results["seeds"])),
        ("Tolerance", f"{results['tolerance']:g}"),
    ]


def _cells(row: Row, twin: Row | None, metric: str) -> tuple[str, ...]:
    private, seeds = row["privacy"], [metric_text(value) for value in row["utility"].values()]
    behind = "not defined" if twin is None else f"{shortfall(row, twin, metric):.3f}"
    return (
        row["name"],
        *(
            ("none", "none", "none")
            if private is None
            else (
                f"{private['epsilon_charged']:.4g}",
                f"{private['epsilon_reference']:.4g}",
                f"{private['noise_multiplier']:.4g}",
            )
        ),
        metric_text(row["mean"]),
        metric_text(row["deviation"]),
        behind,
        ", ".join(seeds),
    )


def _private(rows: Sequence[Row]) -> list[Row]:
    return [row for row in _whole(rows) if row["epsilon"] is not None]


def _whole(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["mean"] is not None and not row["failures"]]


def _sign(metric: str) -> int:
    return 1 if metric in HIGHER_IS_BETTER else -1


def _of_cohort(row: Row) -> str:
    return "" if row["cohort"] is None else f" with {plural(row['cohort'], 'client')} a round"


def _deviation(row: Row) -> str:
    return "" if row["deviation"] is None else f" (standard deviation {metric_text(row['deviation'])})"


def _unsure(row: Row, twin: Row, tolerance: float) -> str:
    """Return a warning where the standard error of the difference, seed by seed, is larger than the tolerance."""
    differences = [twin["utility"][seed] - value for seed, value in row["utility"].items()]
    if len(differences) < 2 or statistics.stdev(differences) <= tolerance * math.sqrt(len(differences)):
        return ""
    return " Seeds differ by more than the tolerance can tell apart: run more of them before you rely on it."


def _of_seeds(seeds: int) -> str:
    if seeds == 1:
        return "One seed shows no spread: a difference between two settings may be chance. Give --seeds 3 or more."
    return (
        f"The spread is over {plural(seeds, 'seed')}, which change noise, cohorts, the first model and what of the "
        "data is drawn or dealt; real clients may differ by more. The recommended setting was picked for its result, "
        "which flatters it."
    )
