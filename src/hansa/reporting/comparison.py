"""Several runs side by side: rows for a terminal, and a page with their curves over one another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hansa.reporting.charts import Chart, Series, Style, line_chart
from hansa.reporting.clock_section import over_time, participation_text
from hansa.reporting.figures import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    NOT_RECORDED,
    Figures,
    bytes_of,
    bytes_text,
    count_text,
    metric_name,
    metric_text,
    metric_title,
    nested,
    number,
    read_plan,
    seconds_text,
)
from hansa.reporting.plan_differences import Differences, grouped, plan_rows, unlike
from hansa.reporting.report import render

MANY: Final = 3
"""More runs than this are rows of an overview, not columns."""
_COLUMNS: Final = 6
NOT_MEASURED: Final = "not measured"
_PLACES: Final = (
    ("federated", "overall", "all examples"),
    ("federated", "mean", "mean of clients"),
    ("federated", "worst_10_percent", "worst 10% of clients"),
    ("central", "overall", "server's examples"),
    ("validation", "overall", "validation examples"),
    ("held_out_clients", "overall", "new clients"),
)
_TONES: Final = 8
_DASHES: Final = ("", "dash", "dot", "long")

Targets = Mapping[str, float]
Rows = list[list[str]]


def comparison_rows(runs: Sequence[Mapping[str, Any]], *, targets: Targets | None = None) -> Rows:
    """Return a table of several runs: a header, then a row per property with a cell per run.

    A run is a mapping with ``summary``, ``events`` and ``plan_text`` (what :func:`render_report` takes)
    and, if it has one, a ``label``. ``targets`` asks for the rounds until a metric was reached, by name:
    "federated.auc", "federated.auc.mean", "central.accuracy".
    """
    figures = [_figures(run) for run in runs]
    sections = (
        _results(figures),
        _best(figures),
        _targets(figures, targets or {}),
        _costs(figures),
        plan_rows(figures),
    )
    return [["", *_labels(runs)], *itertools.chain.from_iterable(sections)]


def render_comparison(runs: Sequence[Mapping[str, Any]], *, targets: Targets | None = None) -> str:
    """Return several runs side by side as a self-contained HTML page; see :func:`comparison_rows`."""
    figures = [_figures(run) for run in runs]
    labels = _labels(runs)
    between = plan_rows(figures)
    many = len(runs) > MANY
    groups = [
        ("Final metrics", _results(figures)),
        ("Best over the rounds", _best(figures)),
        ("Rounds to a target", _targets(figures, targets or {})),
        ("Cost", _costs(figures)),
        ("Differences between the plans", [] if many else between),
    ]
    return render(
        "comparison.html",
        title=f"Comparison of {len(runs)} run{'' if len(runs) == 1 else 's'}",
        labels=labels,
        legend=[(label, *_look(position)) for position, label in enumerate(labels)],
        groups=[(name, rows) for name, rows in groups if rows],
        charts=_charts(figures, labels),
        overview=overview(runs, targets=targets) if many else None,
        differences=differences(runs) if many else [],
        same_plan=not between,
        timed=any(run.clock for run in figures),
        unlike=unlike(figures),
    )


def unlike_note(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a note where runs were tested on different examples, with what differs; else an empty text."""
    return unlike([_figures(run) for run in runs])


def differences(runs: Sequence[Mapping[str, Any]]) -> Differences:
    """Return where the plans of runs differ: (key, [(value, the labels of the runs that have it), ...])."""
    return grouped([_figures(run) for run in runs], _labels(runs))


def overview(runs: Sequence[Mapping[str, Any]], *, targets: Targets | None = None) -> Rows:
    """Return a table of many runs: a header, then a row per run with the few figures that tell them apart."""
    figures = [_figures(run) for run in runs]
    targeted = _targets(figures, targets or {})
    rows = {row[0]: row for row in (*_results(figures), *targeted, *_costs(figures))}
    primary = next((run.primary for run in figures if run.primary), None)
    places = [where for _, _, where in _PLACES]
    ordered = [metric for metric in _metrics(figures) if metric != primary]
    first = [f"{metric_name(primary or '')}, {where}" for where in places]
    others = [f"{metric_name(metric)}, {where}" for metric in ordered for where in (places[0], places[3])]
    wanted = [*first[:1], *(row[0] for row in targeted), *others, *first[1:], "rounds"]
    wanted += ["bytes up, total", "simulated time", "seconds, total"]
    known = [name for name in dict.fromkeys(wanted) if name in rows]
    chosen = [name for name in known if name == known[0] or len(set(rows[name][1:])) > 1][:_COLUMNS]
    body = [[label, *(rows[name][1 + place] for name in chosen)] for place, label in enumerate(_labels(runs))]
    return [["", *chosen], *body]


def _figures(run: Mapping[str, Any]) -> Figures:
    plan = read_plan(str(run.get("plan_text") or ""))
    return Figures(run.get("summary") or {}, tuple(run.get("events") or ()), plan)


def _labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label per run, numbered where several are the same."""
    names = [str(run.get("label") or nested(run, "summary", "name") or "run") for run in runs]
    repeated = {name for name in names if names.count(name) > 1}
    return [f"{name} ({names[: i + 1].count(name)})" if name in repeated else name for i, name in enumerate(names)]


def _look(position: int) -> tuple[str, str]:
    """Return the tone and the dash of a run's lines; 32 runs look different."""
    return f"s{position % _TONES}", _DASHES[position // _TONES % len(_DASHES)]


def _metrics(figures: Sequence[Figures]) -> list[str]:
    return list(dict.fromkeys(metric for run in figures for metric in run.metrics))


def _history(run: Figures, part: str, metric: str, kind: str) -> list[tuple[int, float | None]]:
    """Return (round, value) of every evaluation."""
    found = [(int(event["round"]), nested(event, part, metric)) for event in run.evaluations]
    return [(at, number(nested(row, kind)) if isinstance(row, Mapping) else number(row)) for at, row in found]


def _results(figures: Sequence[Figures]) -> Rows:
    """Return the final metrics and how the runs ended."""
    rows = [
        ["rounds", *(count_text(run.value("rounds")) for run in figures)],
        ["ended because", *(str(run.summary.get("stopped_because") or "not recorded") for run in figures)],
    ]
    for metric, (part, kind, where) in itertools.product(_metrics(figures), _PLACES):
        values = [run.score(part, metric, kind) for run in figures]
        if any(value is not None for value in values):
            rows.append([f"{metric_name(metric)}, {where}", *(_text(run, part, metric, kind) for run in figures)])
    return rows


def _text(run: Figures, part: str, metric: str, kind: str) -> str:
    """Return a final metric, or whether it is not defined or was not measured."""
    measured = nested(run.summary, "metrics", part)
    known = isinstance(measured, Mapping) and metric in measured
    return metric_text(run.score(part, metric, kind)) if known else NOT_MEASURED


def _best(figures: Sequence[Figures]) -> Rows:
    """Return the best value of every metric over the rounds, with its round."""
    rows = []
    for metric, (part, kind, where) in itertools.product(_metrics(figures), _PLACES):
        if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER or kind != "overall":
            continue
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        cells = []
        for run in figures:
            defined = [(sign * value, -at) for at, value in _history(run, part, metric, kind) if value is not None]
            best = max(defined, default=None)
            cells.append(NOT_MEASURED if best is None else f"{metric_text(sign * best[0])} (round {-best[1]})")
        if any(cell != NOT_MEASURED for cell in cells):
            rows.append([f"best {metric_name(metric)}, {where}", *cells])
    return rows


def _targets(figures: Sequence[Figures], targets: Targets) -> Rows:
    """Return the first evaluated round at which each target was reached."""
    rows = []
    for name, target in targets.items():
        part, metric, kind = (*name.split("."), "overall", "overall")[:3]
        sign = -1 if metric in LOWER_IS_BETTER else 1
        firsts: list[int | None] = []
        for run in figures:
            history = _history(run, part, metric, kind)
            reached = (at for at, value in history if value is not None and sign * value >= sign * target)
            firsts.append(next(reached, None))
        cells = ["not reached" if first is None else count_text(first) for first in firsts]
        rows.append([f"rounds to {name} {metric_text(target)}", *cells])
        if any(run.clock for run in figures):
            times = [_time_at(run, cell) for run, cell in zip(figures, firsts, strict=True)]
            rows.append([f"simulated time to {name} {metric_text(target)}", *times])
    return rows


def _time_at(run: Figures, at: int | None) -> str:
    """Return the simulated time of a round, or why there is none."""
    if at is None:
        return "not reached"
    return seconds_text(run.clock.get(at))


def _costs(figures: Sequence[Figures]) -> Rows:
    """Return bytes and seconds of the runs."""
    cells = {
        "bytes up, total": [bytes_text(run.total(bytes_of("bytes_up"))) for run in figures],
        "bytes down, total": [bytes_text(run.total(bytes_of("bytes_down"))) for run in figures],
        "seconds, total": [seconds_text(run.total(lambda event: number(event.get("seconds")))) for run in figures],
        "seconds per round, median": [seconds_text(run.value("seconds_per_round")) for run in figures],
    }
    if any(run.clock for run in figures):
        counts = {
            "picked": ("selected",),
            "reported in time": ("reported",),
            "late or too stale": ("late", "too_stale"),
        }
        counts["dropped out"] = ("dropped_out",)
        cells["simulated time"] = [seconds_text(run.value("simulated", "seconds")) for run in figures]
        cells["clients that took part"] = [participation_text(run) if run.clock else NOT_RECORDED for run in figures]
        cells |= {
            f"clients {name}, total": [count_text(_first_of(run, keys)) for run in figures]
            for name, keys in counts.items()
        }
    return [[name, *values] for name, values in cells.items()]


def _first_of(run: Figures, keys: Sequence[str]) -> float | None:
    """Return the first of some totals of simulated time that a run has."""
    found = (run.value("simulated", key) for key in keys)
    return next((value for value in found if value is not None), None)


def _charts(figures: Sequence[Figures], labels: Sequence[str]) -> list[Chart]:
    """Return the training loss and every metric of all runs over rounds, and over simulated time where there is."""
    charts = []
    for metric, (part, kind, where) in itertools.product(_metrics(figures), _PLACES):
        histories = [dict(_history(run, part, metric, kind)) for run in figures]
        charts.append(_timed(figures, labels, histories, metric, where))
        style = Style(where[:1].upper() + where[1:] + ".", log=metric not in HIGHER_IS_BETTER)
        charts.append(_overlaid(metric_title(metric), histories, labels, style))
    losses = [{int(event["round"]): number(event.get("train_loss")) for event in run.rounds} for run in figures]
    charts.append(_overlaid("Training loss", losses, labels, Style("Mean over the cohort, as it trained.", log=True)))
    return [chart for chart in charts if chart]


def _timed(
    figures: Sequence[Figures],
    labels: Sequence[str],
    histories: Sequence[Mapping[int, float | None]],
    metric: str,
    where: str,
) -> Chart | None:
    """Return one line per run with a clock over simulated time."""
    lines = []
    for position, (run, label, history) in enumerate(zip(figures, labels, histories, strict=True)):
        tone, dash = _look(position)
        values = {run.clock[at]: value for at, value in history.items() if at in run.clock}
        lines.append((Series(label, tone, (), dash), values))
    title = f"{metric_title(metric)} over simulated time"
    return over_time(title, lines, subtitle=where[:1].upper() + where[1:] + ".", log=metric not in HIGHER_IS_BETTER)


def _overlaid(
    title: str, histories: Sequence[Mapping[int, float | None]], labels: Sequence[str], style: Style
) -> Chart | None:
    """Return one line per run over all rounds that any run has."""
    xs = sorted({at for history in histories for at in history})
    lines = []
    for position, (history, label) in enumerate(zip(histories, labels, strict=True)):
        tone, dash = _look(position)
        lines.append(Series(label, tone, [history.get(at) for at in xs], dash))
    return line_chart(title, xs, lines, style=style)
