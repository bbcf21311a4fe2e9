"""The end of a run on the screen: the federated model against every client alone and against pooled training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.cli.console import NOT_DEFINED_STYLE, new_table, sentence
from hansa.reporting.alarms import alarms
from hansa.reporting.clock_section import participation_text
from hansa.reporting.figures import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    NOT_DEFINED,
    Figures,
    bytes_text,
    count_text,
    mean,
    metric_name,
    metric_text,
    metric_title,
    nested,
    number,
    plural,
    read_plan,
    seconds_text,
    worst,
)
from hansa.reporting.findings import findings, lede

FEW: Final = 12
"""Most clients with a line of their own."""

_PLACES: Final = (
    ("federated", "overall", "on all clients' held-out examples together"),
    ("central", "central", "on the server's own examples"),
    ("held_out_clients", "", "on clients that never trained"),
)


def show_outcome(
    console: Console, summary: Mapping[str, Any], events: Sequence[Mapping[str, Any]], plan_text: str
) -> None:
    """Print the tables of a finished run, what they say in words, and what the run cost."""
    run = Figures(summary, tuple(events), read_plan(plan_text))
    for table in (*(_overall(run, *place) for place in _PLACES), own_table(run)):
        if table is not None:
            console.print()
            console.print(table)
    console.print()
    for said in alarms(run):
        sentence(console, said, "bold red")
    for said in (lede(run), *findings(run)):
        sentence(console, said)
    console.print()
    sentence(console, _cost(run), style="dim")
    if run.clock:
        sentence(console, _simulated(run), style="dim")


def _cost(run: Figures) -> str:
    """Return rounds, time and bytes in one line."""
    rounds = plural(run.value("rounds") or 0, "round")
    ended = run.summary.get("stopped_because")
    because = f" ({ended})" if ended and ended != "the last round of the plan" else ""
    peak = run.value("peak_rss_mb")
    memory = "" if peak is None else f"; {count_text(peak)} MB of memory at most"
    return (
        f"{rounds}{because}, {seconds_text(run.value('seconds_per_round'))} each; "
        f"{count_text(run.value('client_updates_per_second'))} client updates a second; per client and round "
        f"{bytes_text(run.value('bytes_up_per_client'))} up, "
        f"{bytes_text(run.value('bytes_down_per_client'))} down{memory}."
    )


def _simulated(run: Figures) -> str:
    """Return what the simulated clock tells, in one line."""
    told = [
        f"{count_text(run.value('simulated', key))} {label}"
        for key, label in (("late", "late"), ("too_stale", "too stale"), ("dropped_out", "dropped out"))
        if run.value("simulated", key)
    ]
    picked = f"{count_text(run.value('simulated', 'reported'))} of {count_text(run.value('simulated', 'selected'))}"
    lost = f" ({', '.join(told)})" if told else ""
    return (
        f"Simulated time {seconds_text(run.value('simulated', 'seconds'))}; {picked} picked clients reported in "
        f"time{lost}; {participation_text(run)} clients took part; "
        f"{bytes_text(run.value('simulated', 'bytes_up_total'))} up, "
        f"{bytes_text(run.value('simulated', 'bytes_down_total'))} down in all."
    )


def _overall(run: Figures, part: str, baseline: str, title: str) -> Table | None:
    """Return every model's metrics in one place, or None where nothing was measured there."""
    measured = nested(run.summary, "metrics", part)
    if not isinstance(measured, Mapping):
        return None
    metrics = [metric for metric in run.metrics if metric in measured]
    table = new_table(["model", *map(metric_name, metrics)], title=title[:1].upper() + title[1:])
    _add(table, "Federated", [run.score(part, metric) for metric in metrics], style="bold green")
    if not baseline:
        return table
    pooled = nested(run.summary, "baselines", "centralised", baseline)
    if isinstance(pooled, Mapping):
        _add(table, "Pooled training", [number(pooled.get(metric)) for metric in metrics])
    _add_alone(table, run, baseline, metrics)
    return table


def _add_alone(table: Table, run: Figures, place: str, metrics: Sequence[str]) -> None:
    """Add the models of single clients: each one's where they are few, and their mean."""
    alone = nested(run.summary, "baselines", "local_only")
    if not isinstance(alone, Mapping) or not isinstance(alone.get(place), Mapping):
        return
    models = [model for model in alone.get("clients") or [] if isinstance(model.get(place), Mapping)]
    if not models:
        return
    trained, of = count_text(number(alone.get("trained_clients"))), count_text(number(alone.get("of")))
    few = len(models) <= FEW
    table.add_section()
    if few:
        for model in models:
            _add(table, f"{model['client']} alone", [number(model[place].get(metric)) for metric in metrics])
        table.add_section()
    who = f"{trained} of {of} clients alone" if trained != of else "clients alone"
    for kind in ("mean",) if few else ("mean", "worst", "best"):
        values = [number(nested(alone, place, metric, kind)) for metric in metrics]
        _add(table, f"{who}, {kind}", values, style="italic" if kind == "mean" else "")


def own_table(run: Figures) -> Table | None:
    """Return the first metric on clients' own held-out examples: by client where they are few, else a summary."""
    metric = run.primary
    if metric is None or not run.own("federated", metric):
        return None
    return _few_clients(run, metric) if len(run.own("federated", metric)) <= FEW else _many_clients(run, metric)


def _few_clients(run: Figures, metric: str) -> Table:
    """Return a line per client."""
    found = {"federated": run.own("federated", metric)}
    labels = {"alone": "own model alone", "pooled": "pooled"}
    found |= {label: values for model, label in labels.items() if (values := run.own(model, metric))}
    sizes = {str(row.get("client")): number(row.get("examples")) for row in run.after}
    title = f"{metric_title(metric)} on each client's own held-out examples"
    table = new_table(["client", "examples", *found], title=title)
    for client in found["federated"]:
        cells = [_cell(values[client]) if client in values else Text("") for values in found.values()]
        table.add_row(Text(client), count_text(sizes.get(client)), *cells)
    table.add_section()
    for label, summary in (("mean", mean), ("worst", lambda values: worst(metric, values))):
        table.add_row(Text(label), "", *(_cell(summary(values.values())) for values in found.values()), style="italic")
    return table


def _many_clients(run: Figures, metric: str) -> Table:
    """Return mean, worst 10% and worst over clients; beside it the same of those that also trained alone."""
    alone = run.own("alone", metric)
    found = {"federated": run.own("federated", metric)}
    if pooled := run.own("pooled", metric):
        found["pooled"] = pooled
    if alone:
        those = "" if len(alone) == len(found["federated"]) else f" ({count_text(len(alone))} clients)"
        if those:
            found[f"federated{those}"] = {client: found["federated"].get(client) for client in alone}
        found[f"own model alone{those}"] = alone
    title = f"{metric_title(metric)} on each client's own held-out examples"
    table = new_table(["over clients", *found], title=title)
    table.add_row("mean", *(_cell(mean(values.values())) for values in found.values()))
    table.add_row("worst 10%", *(_cell(mean(_worst_tenth(metric, values.values()))) for values in found.values()))
    table.add_row("worst", *(_cell(worst(metric, values.values())) for values in found.values()))
    table.add_section()
    counts = [sum(value is not None for value in values.values()) for values in found.values()]
    table.add_row("clients", *map(count_text, counts), style="dim")
    missing = [len(values) - count for values, count in zip(found.values(), counts, strict=True)]
    if any(missing):
        table.add_row(NOT_DEFINED, *map(count_text, missing), style="dim")
    return table


def _worst_tenth(metric: str, values: Any) -> list[float]:
    """Return the worst tenth of the defined values, one at least; none for a metric of unknown direction."""
    if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        return []
    ordered = sorted((value for value in values if value is not None), reverse=metric in LOWER_IS_BETTER)
    return ordered[: max(1, -(-len(ordered) // 10))]


def _add(table: Table, label: str, values: Sequence[float | None], style: str = "") -> None:
    table.add_row(Text(label), *map(_cell, values), style=style)


def _cell(value: float | None) -> Text:
    return Text(metric_text(value), style="" if value is not None else NOT_DEFINED_STYLE)
