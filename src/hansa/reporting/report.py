"""The report of a run: one HTML file that opens offline, on a phone, on a desk and on paper."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from hansa.reporting.alarms import alarms
from hansa.reporting.charts import Chart, Level, Series, Style, line_chart
from hansa.reporting.charts_clients import DotChart, dot_chart, histogram
from hansa.reporting.clock_section import clock_section
from hansa.reporting.data_section import data_section
from hansa.reporting.disclosure import server_sees
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
    plural,
    read_plan,
    seconds_text,
    total_of,
)
from hansa.reporting.findings import NAMED_CLIENTS, findings, headline, lede, other_rows, result_rows

if TYPE_CHECKING:
    from jinja2 import Environment

_LISTED_CLIENTS: Final = 25


def render_report(
    *,
    summary: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    plan_text: str,
    environment: Mapping[str, str],
) -> str:
    """Return the report of one run as a self-contained HTML page.

    ``summary`` and ``events`` are what a run writes; any number in them may be None, which the report
    calls "not defined" and never counts as zero. ``plan_text`` is the resolved plan as TOML.
    """
    run = Figures(summary, tuple(events), read_plan(plan_text))
    return render(
        "report.html",
        title=str(summary.get("name") or "A run without a name"),
        run=run,
        summary=summary,
        alarms=alarms(run),
        lede=lede(run),
        headline=headline(run),
        findings=findings(run),
        notes=_texts(summary.get("notes")),
        about=_facts(run),
        results=[
            (metric_title(name), _direction(name), rows) for name in run.metrics if (rows := result_rows(run, name))
        ],
        others=other_rows(run),
        curves=curves(run),
        clients=[chart for metric in run.metrics if (chart := _client_chart(run, metric))],
        client_table=_client_table(run),
        costs=_cost_charts(run),
        cost_facts=_cost_facts(run),
        clock=clock_section(run),
        data=data_section(summary.get("data")),
        plan_text=plan_text,
        environment={str(key): str(value) for key, value in environment.items()},
        digests=_digests(summary),
        privacy=_privacy(run),
    )


def render(template: str, **context: object) -> str:
    """Return a template of this room filled in, with its style, script and content policy."""
    style, script = _static("report.css"), _static("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shared = {"style": style, "script": script, "script_digest": f"sha256-{digest}"}
    words = {"metric_text": metric_text, "metric_title": metric_title}
    return _templates().get_template(template).render(**shared, **words, **context)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only a report needs it

    return Environment(
        loader=PackageLoader("hansa.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _static(name: str) -> str:
    return files("hansa.reporting").joinpath("static", name).read_text(encoding="utf-8")


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _direction(metric: str) -> str:
    if metric in HIGHER_IS_BETTER:
        return "higher is better"
    return "lower is better" if metric in LOWER_IS_BETTER else ""


def _facts(run: Figures) -> list[tuple[str, str]]:
    """Return what was trained, as names and values."""
    planned, done = number(run.plan.get("rounds")), run.value("rounds")
    rounds = count_text(done) if planned in (None, done) else f"{count_text(done)} of {count_text(planned)}"
    sizes = nested(run.summary, "data", "sizes")
    sizes = [number(size) for size in sizes] if isinstance(sizes, list | tuple) else []
    examples = total_of(sizes) if run.clients == len(sizes) else None
    facts = [
        ("Model", nested(run.plan, "model", "factory")),
        ("Data", nested(run.summary, "data", "source")),
        ("Clients", None if run.clients is None else count_text(run.clients)),
        ("Training examples", None if examples is None else count_text(examples)),
        ("Rounds", rounds),
        ("Ended because", run.summary.get("stopped_because")),
        ("Seed", run.plan.get("seed")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def curves(run: Figures) -> list[list[Chart]]:
    """Return every metric over rounds, and beside them the training loss and the size of the update."""
    metrics = itertools.chain.from_iterable(_metric_charts(run, metric) for metric in run.metrics)
    training = [
        _round_chart(run, "Training loss", "train_loss", "Mean over the cohort, as its clients trained."),
        _round_chart(run, "Size of the update", "update_norm", "L2 norm of the combined update."),
    ]
    drawn = [[chart for chart in charts if chart] for charts in (metrics, training)]
    return [charts for charts in drawn if charts]


def _round_chart(run: Figures, title: str, key: str, subtitle: str) -> Chart | None:
    xs = [number(event["round"]) or 0.0 for event in run.rounds]
    line = Series(title, "fed", [number(event.get(key)) for event in run.rounds])
    return line_chart(title, xs, [line], style=Style(subtitle, log=True))


def _metric_charts(run: Figures, metric: str) -> list[Chart | None]:
    """Return a metric over rounds: on the clients' and the server's examples; on validation and new clients."""
    xs = [number(event["round"]) or 0.0 for event in run.evaluations]

    def line(label: str, tone: str, part: str, kind: str, dash: str = "") -> Series:
        found = [nested(event, part, metric) for event in run.evaluations]
        values = [number(nested(row, kind)) if isinstance(row, Mapping) else number(row) for row in found]
        return Series(label, tone, values, dash)

    main = [
        line("all examples", "fed", "federated", "overall"),
        line("mean of clients", "fed", "federated", "mean", "dash"),
        line("worst 10% of clients", "fed", "federated", "worst_10_percent", "dot"),
        line("server's examples", "central", "central", "overall"),
    ]
    local = run.value("baselines", "local_only", "overall", metric, "mean")
    levels = [
        Level("pooled, all examples", "pooled", run.value("baselines", "centralised", "overall", metric)),
        Level("alone, all examples", "alone", local),
        Level("pooled, server's examples", "pooled", run.value("baselines", "centralised", "central", metric), "dot"),
    ]
    other = [
        line("validation, all examples", "alone", "validation", "overall"),
        line("validation, mean of clients", "alone", "validation", "mean", "dash"),
        line("new clients, all examples", "central", "held_out_clients", "overall"),
        line("new clients, worst 10%", "central", "held_out_clients", "worst_10_percent", "dot"),
    ]
    title, better, log = metric_title(metric), _direction(metric).capitalize(), metric not in HIGHER_IS_BETTER
    subtitle = f"{better}. Round 0 is untrained." if better else "Round 0 is untrained."
    return [
        line_chart(title, xs, main, levels=levels, style=Style(subtitle, log=log)),
        line_chart(f"{title}, other examples", xs, other, style=Style("New clients never train.", log=log)),
    ]


def _client_groups(run: Figures, metric: str) -> tuple[list[str], list[Series]]:
    """Return all clients with a row, and a metric of theirs: before, alone and federated."""
    found = {model: run.own(model, metric) for model in ("before", "alone", "federated")}
    clients = list(dict.fromkeys([*found["federated"], *found["before"]]))
    labels = {"before": "before training", "alone": "own model alone", "federated": "federated"}
    tones = {"before": "before", "alone": "alone", "federated": "fed"}
    return clients, [
        Series(labels[model], tones[model], [values.get(client) for client in clients])
        for model, values in found.items()
        if any(value is not None for value in values.values())
    ]


def _client_chart(run: Figures, metric: str) -> Chart | DotChart | None:
    """Return a metric per client before and after training: a dot each, or a histogram of many."""
    clients, groups = _client_groups(run, metric)
    federated = run.own("federated", metric)
    missing = sum(federated.get(client) is None for client in clients)
    note = f"Not defined for {count_text(missing)} of {plural(len(clients), 'client')}." if missing else ""
    if len(clients) <= NAMED_CLIENTS:
        return dot_chart(metric_title(metric), clients, groups, subtitle=note, missing="not defined")
    drawn = [group for group in groups if group.tone != "alone"]
    subtitle = f"Number of clients by {metric_name(metric)}. {note}".strip()
    return histogram(metric_title(metric), drawn, subtitle=subtitle)


def _client_table(run: Figures) -> dict[str, Any] | None:
    """Return every metric of every client, or of those with the worst final values when there are many."""
    rows = run.after
    if not rows:
        return None
    metric, note = run.primary, ""
    if len(rows) > NAMED_CLIENTS:
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        defined = [(value, row) for row in rows if (value := number(row.get(str(metric)))) is not None]
        rows = [row for _, row in sorted(defined, key=lambda pair: sign * pair[0])[:_LISTED_CLIENTS]]
        name = metric_name(metric or "")
        note = f"The {count_text(len(rows))} clients with the worst {name}; metrics.jsonl in the run folder has all."
    shown = [name for name in run.metrics if any(number(row.get(name)) is not None for row in run.after)]
    columns: dict[str, dict[str, float | None]] = {}
    for name in shown:
        for model in ("before", "federated", "alone", "pooled"):
            values = run.own(model, name)
            if values and (model == "federated" or name == metric):
                columns[f"{metric_title(name)} {model}"] = values
    body = [(str(row.get("client")), count_text(number(row.get("examples"))), *_cells(row, columns)) for row in rows]
    return {"head": ("Client", "Examples", *columns), "rows": body, "note": note}


def _cells(row: Mapping[str, Any], columns: Mapping[str, Mapping[str, float | None]]) -> tuple[str, ...]:
    """Return one client's values of several columns, each by client."""
    return tuple(metric_text(values.get(str(row.get("client")))) for values in columns.values())


def _cost_charts(run: Figures) -> list[Chart]:
    """Return the cohort and the bytes of every round."""
    xs = [number(event["round"]) or 0.0 for event in run.rounds]
    cohort = Series("clients in the cohort", "fed", [number(event.get("cohort")) for event in run.rounds])
    sent = [
        Series(label, tone, [bytes_of(key)(event) for event in run.rounds], dash)
        for label, tone, key, dash in (
            ("up, to the server", "fed", "bytes_up", ""),
            ("down, to the clients", "central", "bytes_down", "dash"),
        )
    ]
    combined = Style("Clients whose updates were combined.", zero=True, text=count_text, ticks=count_text)
    encoded = Style("Over all clients, as encoded.", zero=True, text=bytes_text, ticks=bytes_text)
    drawn = [
        line_chart("Cohort size", xs, [cohort], style=combined),
        line_chart("Bytes per round", xs, sent, style=encoded),
    ]
    return [chart for chart in drawn if chart]


def _cost_facts(run: Figures) -> list[tuple[str, str]]:
    """Return totals of the run, as names and values."""
    facts = [
        ("Sent up in total", bytes_text(run.total(bytes_of("bytes_up")))),
        ("Sent down in total", bytes_text(run.total(bytes_of("bytes_down")))),
        ("Up, per client and round", bytes_text(run.value("bytes_up_per_client"))),
        ("Down, per client and round", bytes_text(run.value("bytes_down_per_client"))),
        ("Client updates", count_text(run.total(lambda event: number(event.get("cohort"))))),
        ("Time in rounds", seconds_text(run.total(lambda event: number(event.get("seconds"))))),
        ("Median round", seconds_text(run.value("seconds_per_round"))),
        ("Client updates a second", count_text(run.value("client_updates_per_second"))),
    ]
    peak = run.value("peak_rss_mb")
    facts.append(("Peak memory", NOT_RECORDED if peak is None else f"{count_text(peak)} MB"))
    return [(name, value) for name, value in facts if value != NOT_RECORDED]


def _digests(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies the run, by name."""
    keys = ("run_id", "plan_sha256", "data_sha256", "model_sha256")
    return {key: str(summary[key]) for key in keys if summary.get(key)}


def _guarantee(run: Figures) -> str | None:
    """Return what the run's differential privacy is worth, in a sentence; None without any."""
    told = nested(run.summary, "privacy")
    if not isinstance(told, Mapping):
        return None
    return (
        f"charged epsilon {told['epsilon_charged']:.4g} at delta {told['delta']:g} (reference "
        f"{told['epsilon_reference']:.4g}, which is not the guarantee), for one {told['unit']}, {told['adjacency']}; "
        f"noise of {told['noise_multiplier']:g} clip norms by the {told['noise_by']}. {told['meaning']}"
    )


def _of_examples(run: Figures) -> str | None:
    """Return what the privacy of single examples is worth, in a sentence; None without any."""
    told = nested(run.summary, "example_privacy")
    if not isinstance(told, Mapping):
        return None
    return (
        f"charged epsilon {told['epsilon_charged']:.4g} at delta {told['delta']:g} (reference "
        f"{told['epsilon_reference']:.4g}, which is not the guarantee), for one {told['unit']}, {told['adjacency']}; "
        f"noise of {told['noise_multiplier']:g} clip norms in each of {told['steps']:,} steps, by every client itself. "
        f"{told['meaning']}"
    )


def _privacy(run: Figures) -> dict[str, Any]:
    """Return what the privacy note must know of the plan and the results."""
    places = (run.summary.get("auc_error"), nested(run.summary, "metrics", "auc_error"))
    parts = ("federated", "validation", "held_out_clients")
    on_clients = any(isinstance(nested(run.summary, "metrics", part), Mapping) for part in parts)
    errors = [error for place in places if (error := number(place)) is not None]
    return {
        "readable": bool(run.plan),
        "protected": [name for name in ("secure_aggregation", "privacy") if name in run.plan]
        + ["example_privacy"] * (nested(run.plan, "trainer", "example_privacy") is not None),
        "secure": nested(run.summary, "secure_aggregation", "meaning"),
        "private": _guarantee(run),
        "examples": _of_examples(run),
        "sees": server_sees(run.plan, metrics=run.metrics, on_clients=on_clients),
        "baselines": any(nested(run.summary, "baselines", key) for key in ("local_only", "centralised")),
        "on_clients": on_clients,
        "auc": "auc" in run.metrics,
        "auc_error": f"{errors[0]:.2g}" if errors else None,
    }
