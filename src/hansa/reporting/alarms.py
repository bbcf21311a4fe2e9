"""What must be said before any success: that a model ended worse than it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hansa.reporting.figures import Figures, mean, metric_name, metric_text, nested, number

_LOSSES: Final = ("loss", "rmse", "mae")
_MUCH: Final = 2.0
"""From this multiple of the untrained model's loss on, the multiple is said."""
_NOTICEABLE: Final = 1.02
"""Up to this multiple a loss is about that of the untrained model."""
_PLACES: Final = {
    "federated": "on all clients' held-out examples",
    "central": "on the server's own examples",
}


@dataclass(frozen=True)
class Alarm:
    """A model whose loss is worse than the untrained model's: "federated", "alone" or "pooled"."""

    model: str
    sentence: str
    much: bool


def alarms(run: Figures) -> list[str]:
    """Return a sentence for every model of a run that is worse than the untrained one, the federated one first."""
    return [alarm.sentence for alarm in found(run)]


def broken(run: Figures) -> frozenset[str]:
    """Return which models are so much worse than untrained that comparisons with them mean little."""
    return frozenset(alarm.model for alarm in found(run) if alarm.much)


def found(run: Figures) -> list[Alarm]:
    """Return an alarm for each model that is worse than untrained, the federated one first."""
    metric = next((name for name in _LOSSES if name in run.metrics), None)
    if metric is None:
        return []
    each = (_trained(run, metric, "federated"), _alone(run, metric), _trained(run, metric, "pooled"))
    return [alarm for alarm in each if alarm is not None]


def _trained(run: Figures, metric: str, model: str) -> Alarm | None:
    """Return the alarm of the federated or the pooled model, from the first place where it is worse."""
    who = {"federated": "The federated model", "pooled": "Pooled training"}[model]
    for part, where in _PLACES.items():
        key = "overall" if part == "federated" else "central"
        pooled = run.value("baselines", "centralised", key, metric)
        final = run.score(part, metric) if model == "federated" else pooled
        said, much = _worse(final, _untrained(run, metric, part))
        if said:
            sentence = f"{who} is worse than untrained: its {metric_name(metric)} {where} {said}"
            return Alarm(model, sentence, much)
    return None


def _alone(run: Figures, metric: str) -> Alarm | None:
    """Return the alarm of the clients' own models: on their own examples, as they know no others'."""
    own, before = run.own("alone", metric), run.own("before", metric)
    both = {client: value for client, value in own.items() if value is not None and before.get(client) is not None}
    said, much = _worse(mean(both.values()), mean(before[client] for client in both))
    if not said:
        return None
    what = f"their {metric_name(metric)} on their own held-out examples, on average,"
    return Alarm("alone", f"The clients' own models are worse than untrained: {what} {said}", much)


def _untrained(run: Figures, metric: str, part: str) -> float | None:
    """Return the loss of the untrained model."""
    first = next((event for event in run.evaluations if event.get("round") == 0), None)
    value = nested(first, part, metric)
    return number(nested(value, "overall")) if isinstance(value, Mapping) else number(value)


def _worse(final: float | None, start: float | None) -> tuple[str, bool]:
    """Return how a final loss is worse than the untrained model's, "" where it is not, and whether it is much worse."""
    if final is None or start is None or final <= _NOTICEABLE * start or final <= 0:
        return "", False
    pair = f"the untrained model ({metric_text(final)} against {metric_text(start)})"
    if start > 0 and final >= _MUCH * start:
        times = f"is {float(f'{final / start:.2g}'):,.3g} times that of {pair}"
        return f"{times}. The step size is likely too large; comparisons mean little.", True
    care = "The step size may be too large, or it was trained too long; compare with care."
    return f"is above that of {pair}. {care}", False
