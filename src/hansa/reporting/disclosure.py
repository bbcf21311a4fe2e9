"""What a server would see of its clients: the one list that ``hansa check``, the report and the documentation give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hansa.reporting.figures import metric_name, nested

IN_THE_CLEAR: Final = "every update in the clear"
UPDATES: Final = f"{IN_THE_CLEAR}, with its weight, counts and training statistics such as the mean training loss"
ATTENDANCE: Final = "who took part, when, from where and with which attributes"
SCALING: Final = "before round 1, in the clear: each client's count, sum and sum of squares of every numeric column"
BUFFERS: Final = "within each update: the client's statistics of activations (the averaged buffers)"
SUMS: Final = "for evaluation, in the clear: each client's counts and sums"
HISTOGRAMS: Final = "for evaluation, in the clear: each client's score histograms of every class"

_HISTOGRAM_METRICS: Final = frozenset({"auc"})


def server_sees(plan: Mapping[str, Any], *, metrics: Sequence[str], on_clients: bool) -> tuple[str, ...]:
    """Return what the server of a federation that runs a plan would see, a phrase each.

    ``plan`` is the plan's mapping, ``metrics`` the metrics that are measured, and ``on_clients`` says whether clients
    hold out examples that they evaluate on.
    """
    measured = set(metrics) if on_clients and nested(plan, "evaluation", "federated") is not False else set()
    sums = ", ".join(metric_name(name) for name in metrics if name in measured - _HISTOGRAM_METRICS)
    histograms = ", ".join(metric_name(name) for name in metrics if name in measured & _HISTOGRAM_METRICS)
    found = {
        UPDATES: True,
        ATTENDANCE: True,
        SCALING: nested(plan, "features", "scaling") == "federated",
        BUFFERS: nested(plan, "model", "buffers") == "average",
        f"{SUMS} ({sums})": bool(sums),
        f"{HISTOGRAMS} ({histograms})": bool(histograms),
    }
    return tuple(phrase for phrase, holds in found.items() if holds)
