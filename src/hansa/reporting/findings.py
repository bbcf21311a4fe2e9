"""What a run's numbers say, in words: gains and losses by size, and what is not defined."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hansa.reporting.alarms import broken
from hansa.reporting.figures import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    NOT_EVALUATED,
    Figures,
    count_text,
    mean,
    metric_name,
    metric_text,
    metric_title,
    nested,
    not_evaluated,
    number,
    plural,
    worst,
)

SAME: Final = 0.005
LITTLE: Final = 0.02
"""Limits of "about the same" and "a little": absolute for AUC and accuracy, relative to the other value otherwise."""

_SLACK: Final = 1e-9
"""What floating point may add to a difference of two rounded figures."""

NAMED_CLIENTS: Final = 40
_WHERE: Final = {
    "federated": "on all clients' held-out examples",
    "central": "on the server's own examples",
    "validation": "on all clients' validation examples",
    "held_out_clients": "on the clients that never trained",
}


@dataclass(frozen=True)
class Verdict:
    """How one value compares with another: ``gain`` is positive when it is better."""

    gain: float
    kind: str

    @property
    def size(self) -> str:
        """Return the difference without its sign."""
        return metric_text(abs(self.gain))

    def against(self, what: str) -> str:
        """Return the comparison as words."""
        if self.kind == "same":
            return f"about the same as {what}"
        if self.kind == "differs":
            return f"{self.size} away from {what}"
        direction = "better" if self.gain > 0 else "worse"
        return f"{self.size} {direction} than {what}"


def compare(metric: str, value: float, other: float) -> Verdict:
    """Compare two values of a metric as they are shown, so that words and numbers agree."""
    value, other = float(metric_text(value)), float(metric_text(other))
    difference = max(-sys.float_info.max, min(sys.float_info.max, value - other))
    if metric in HIGHER_IS_BETTER:
        unit, gain = 1.0, difference
    else:
        unit, gain = abs(other), -difference
    if abs(gain) <= SAME * unit + _SLACK:
        return Verdict(gain, "same")
    if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        return Verdict(gain, "differs")
    return Verdict(gain, "little" if abs(gain) <= LITTLE * unit + _SLACK else "clear")


@dataclass(frozen=True)
class Headline:
    """The final model's headline number and what it is compared with."""

    metric: str
    where: str
    value: float
    alone: float | None
    pooled: float | None


def headline(run: Figures) -> Headline | None:
    """Return the headline numbers: on the clients' examples where that is defined, else on the server's."""
    metric = run.primary
    if metric is None:
        return None
    for part, where in _WHERE.items():
        value = run.score(part, metric)
        if value is None:
            continue
        alone = run.value("baselines", "local_only", "overall", metric, "mean") if part == "federated" else None
        key = {"federated": "overall", "central": "central"}.get(part)
        pooled = run.value("baselines", "centralised", key, metric) if key else None
        return Headline(metric, where, value, alone, pooled)
    value = run.score("federated", metric, "mean")
    if value is None:
        return None
    return Headline(metric, "as the mean over clients, each on its own held-out examples", value, None, None)


def lede(run: Figures) -> str:
    """Return the result in one or two sentences."""
    clients = "" if run.clients is None else f"Across {plural(run.clients, 'client')}, "
    found = headline(run)
    if found is None:
        return _without_evaluation(run, clients)
    start = f"{clients}federated training reached {_article(found.metric)} {metric_name(found.metric)}"
    start = start[:1].upper() + start[1:]
    sentence = f"{start} of {metric_text(found.value)} {found.where}"
    parts, bad = [], broken(run)
    if found.alone is not None and not bad & {"federated", "alone"}:
        models = _local_models(run)
        other = f"the {models} trained alone, on average ({metric_text(found.alone)})"
        parts.append(compare(found.metric, found.value, found.alone).against(other))
    if found.pooled is not None and not bad & {"federated", "pooled"}:
        other = f"training on pooled data ({metric_text(found.pooled)})"
        parts.append(compare(found.metric, found.value, found.pooled).against(other))
    return sentence + (": " + ", and ".join(parts) if parts else "") + "."


def _article(metric: str) -> str:
    """Return the article that goes with a metric's name."""
    return "an" if metric_name(metric)[:1] in "AaEeIiOo" or metric == "rmse" else "a"


def _local_models(run: Figures) -> str:
    """Return how many models were trained by one client alone, in words."""
    trained = run.value("baselines", "local_only", "trained_clients")
    return "models" if trained is None else plural(trained, "model")


def _without_evaluation(run: Figures, clients: str) -> str:
    """Return the result of a run that has no defined metric."""
    rounds = run.value("rounds")
    lasted = "" if rounds is None else f" for {plural(rounds, 'round')}"
    start = f"{clients}a model was trained{lasted}. "
    start = start[:1].upper() + start[1:]
    losses = [loss for event in run.rounds if (loss := number(event.get("train_loss"))) is not None]
    if run.metrics:
        names = ", ".join(map(metric_name, run.metrics))
        start += f"None of its metrics ({names}) is defined on the examples it was evaluated on."
    else:
        start += f"It was not evaluated, so nothing here says how good it is: {_remedy(run)}."
    if losses:
        start += f" The training loss went from {metric_text(losses[0])} to {metric_text(losses[-1])}."
    return start


def _remedy(run: Figures) -> str:
    """Return why a run was not evaluated and what to change; the notes of the run know best."""
    notes = run.summary.get("notes")
    said = [str(note) for note in notes if str(note).startswith(NOT_EVALUATED)] if isinstance(notes, list) else []
    return said[0].removeprefix(NOT_EVALUATED) if said else not_evaluated(run.plan)


def findings(run: Figures) -> list[str]:
    """Return what else the numbers say, one sentence or two each."""
    found = []
    metric = run.primary
    if metric is not None:
        bad = broken(run)
        found += [] if bad & {"federated", "alone"} else [_own(run, metric)]
        found += [] if bad & {"federated", "pooled"} else [_own_pooled(run, metric)]
        found += [_progress(run, metric)]
        found += [_central(run, metric), _newcomers(run, metric)]
        found += [undefined(run, name) for name in run.metrics]
    return [sentence for sentence in found if sentence]


def pairs(run: Figures, metric: str, other: str) -> list[tuple[str, float, float]]:
    """Return (client, federated, other) for the clients where the metric is defined for both models."""
    federated = run.own("federated", metric)
    found = []
    for client, theirs in run.own(other, metric).items():
        ours = federated.get(client)
        if ours is not None and theirs is not None:
            found.append((client, ours, theirs))
    return found


def _own(run: Figures, metric: str) -> str:
    """Say what federation gains each client on its own examples, client by client."""
    both = pairs(run, metric, "alone")
    ours, theirs = mean(ours for _, ours, _ in both), mean(theirs for _, _, theirs in both)
    if ours is None or theirs is None:
        return ""
    verdict = compare(metric, ours, theirs)
    says = {
        "same": "federation gains little or nothing on average",
        "little": f"federation {'gains little' if verdict.gain > 0 else 'loses a little'} on average",
        "clear": f"federation {'gains' if verdict.gain > 0 else 'loses'} on average",
        "differs": "the models differ on average",
    }[verdict.kind]
    where = "On the client's own held-out examples" if len(both) == 1 else "On each client's own held-out examples"
    among = "" if run.clients in (None, len(both)) else f", over the {plural(len(both), 'client')} with both"
    sentence = (
        f"{where} {says}: {metric_name(metric)} {metric_text(ours)} federated, {metric_text(theirs)} with the "
        f"client's own model{among}."
    )
    return sentence + _split(metric, both)


def _split(metric: str, both: list[tuple[str, float, float]]) -> str:
    """Say for how many clients federation is better and worse, and name the extremes of a few."""
    verdicts = [(client, compare(metric, ours, theirs)) for client, ours, theirs in both]
    if len(both) < 2 or any(verdict.kind == "differs" for _, verdict in verdicts):
        return ""
    clear = [(client, verdict) for client, verdict in verdicts if verdict.kind != "same"]
    better = sum(verdict.gain > 0 for _, verdict in clear)
    counts = {"better": better, "worse": len(clear) - better, "about the same": len(both) - len(clear)}
    said = ", ".join(f"{kind} for {count_text(count)}" for kind, count in counts.items() if count)
    sentence = f" It is {said} of {count_text(len(both))} clients."
    if len(both) > NAMED_CLIENTS or not clear:
        return sentence
    ordered = sorted(clear, key=lambda item: item[1].gain)
    named = []
    if ordered[-1][1].gain > 0:
        named.append(f"Largest gain: {_named(ordered[-1])}.")
    if ordered[0][1].gain < 0:
        named.append(f"Largest loss: {_named(ordered[0])}.")
    return " ".join([sentence, *named])


def _named(found: tuple[str, Verdict]) -> str:
    """Return a client with its difference; a bare number is called a client, so that it is not taken for a figure."""
    name, verdict = found
    return f"{'client ' if name.strip().isdigit() else ''}{name} ({verdict.size})"


def _own_pooled(run: Figures, metric: str) -> str:
    """Say how the federated model compares with pooled training on each client's own examples."""
    both = pairs(run, metric, "pooled")
    ours, theirs = mean(ours for _, ours, _ in both), mean(theirs for _, _, theirs in both)
    if ours is None or theirs is None:
        return ""
    said = compare(metric, ours, theirs).against(f"the pooled model ({metric_text(theirs)})")
    return f"On the clients' own held-out examples the federated model ({metric_text(ours)} on average) is {said}."


def _progress(run: Figures, metric: str) -> str:
    """Say what training changed since the untrained model."""
    found = headline(run)
    part = next((part for part, where in _WHERE.items() if found and where == found.where), None)
    first = next((event for event in run.evaluations if event.get("round") == 0), None)
    if found is None or part is None or first is None:
        return ""
    start = nested(first, part, metric)
    start = number(nested(start, "overall")) if isinstance(start, Mapping) else number(start)
    if start is None:
        return ""
    said = compare(metric, found.value, start).against(f"the untrained model ({metric_text(start)})")
    return f"After training, {metric_name(metric)} {found.where} is {said}."


def _central(run: Figures, metric: str) -> str:
    """Say how the model does on the server's own examples, beside the clients'."""
    value = run.score("central", metric)
    found = headline(run)
    if value is None or found is None or found.where == _WHERE["central"]:
        return ""
    pooled = run.value("baselines", "centralised", "central", metric)
    versus = "" if pooled is None else f", {compare(metric, value, pooled).against('pooled training')}"
    versus += "" if pooled is None else f" ({metric_text(pooled)})"
    return f"On the server's own examples {metric_name(metric)} is {metric_text(value)}{versus}."


def _newcomers(run: Figures, metric: str) -> str:
    """Say how the model does for clients that never trained."""
    value = run.score("held_out_clients", metric)
    found = headline(run)
    if value is None or found is None or found.where == _WHERE["held_out_clients"]:
        return ""
    count = run.value("metrics", "held_out_clients", metric, "clients")
    who = "the clients" if count is None else f"the {plural(count, 'client')}"
    return f"For {who} that never trained, {metric_name(metric)} is {metric_text(value)} over all their examples."


def undefined(run: Figures, metric: str) -> str:
    """Say for how many clients a metric is not defined, and that they are left out rather than counted as zero."""
    rows = run.own("federated", metric)
    count = run.value("metrics", "federated", metric, "undefined")
    missing = int(count) if count is not None else sum(value is None for value in rows.values())
    if not missing:
        return ""
    of = f"{count_text(missing)} of {plural(len(rows), 'client')}" if rows else plural(missing, "client")
    whose, left = ("its", "It is") if missing == 1 else ("their", "They are")
    why = f" ({whose} held-out examples are of one class only, or there are none)" if metric == "auc" else ""
    rest = f"{left} left out of means and of the worst clients, not counted as zero."
    return f"{metric_title(metric)} is not defined for {of}{why}. {rest}"


@dataclass(frozen=True)
class ModelRow:
    """One line of the result table: a model, and its metric overall and on clients' own examples, as text."""

    tone: str
    model: str
    detail: str
    overall: str
    own_mean: str
    own_worst: str
    spread: str = ""


def result_rows(run: Figures, metric: str) -> list[ModelRow]:
    """Return a metric of the federated model, of each client alone and of pooled training."""
    rows = []
    if isinstance(nested(run.summary, "metrics", "federated", metric), Mapping):
        scores = [metric_text(run.score("federated", metric, kind)) for kind in ("overall", "mean", "worst_client")]
        rows.append(ModelRow("fed", "Federated", "one model for all", *scores))
    rows += _alone_rows(run, metric)
    own = list(run.own("pooled", metric).values())
    if _has(run, "centralised", metric, own):
        overall = metric_text(run.value("baselines", "centralised", "overall", metric))
        rows.append(ModelRow("pooled", "Pooled", "all data in one place", overall, *_own_texts(metric, own)))
    return rows


def _has(run: Figures, baseline: str, metric: str, own: Sequence[float | None]) -> bool:
    """Say whether a baseline measured a metric at all, defined or not."""
    overall = nested(run.summary, "baselines", baseline, "overall")
    return (isinstance(overall, Mapping) and metric in overall) or mean(own) is not None


def _own_texts(metric: str, own: Sequence[float | None]) -> tuple[str, str]:
    """Return the mean and the worst of a metric over clients."""
    return metric_text(mean(own)), metric_text(worst(metric, own))


def _alone_rows(run: Figures, metric: str) -> list[ModelRow]:
    """Return the row of the local-only models and, if they are few of many, of the federated one on those clients."""
    place = ("baselines", "local_only")
    if not _has(run, "local_only", metric, list(run.own("alone", metric).values())):
        return []
    trained, of = run.value(*place, "trained_clients"), run.value(*place, "of")
    overall, low, high = (run.value(*place, "overall", metric, kind) for kind in ("mean", "worst", "best"))
    own = list(run.own("alone", metric).values()) or [run.value(*place, "own", metric, "mean")]
    sample = trained is not None and of is not None and trained < of
    detail = f"{count_text(trained)} of {count_text(of)} clients" if sample else "a model per client"
    spread = "" if low is None or high is None else f"{metric_text(low)} to {metric_text(high)}"
    rows = [ModelRow("alone", "Each alone", detail, metric_text(overall), *_own_texts(metric, own), spread)]
    both = [ours for _, ours, _ in pairs(run, metric, "alone")]
    if sample and both:
        those = f"those {len(both)} clients" if len(both) == trained else f"{len(both)} of those clients"
        label = "on that client" if trained == 1 else f"on {those}"
        rows.insert(0, ModelRow("fed", "Federated", label, "", *_own_texts(metric, both)))
    return rows


def other_rows(run: Figures) -> list[tuple[str, str, str, str]]:
    """Return (metric, where, federated, pooled) on examples that are not those clients test on."""
    rows = []
    for part, where in _WHERE.items():
        measured = nested(run.summary, "metrics", part)
        if part == "federated" or not isinstance(measured, Mapping):
            continue
        for metric in measured:
            pooled = run.value("baselines", "centralised", part, metric) if part == "central" else None
            text = "" if pooled is None else metric_text(pooled)
            rows.append((metric_title(metric), where.removeprefix("on "), metric_text(run.score(part, metric)), text))
    return rows
