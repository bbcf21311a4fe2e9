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

SUM_ONLY: Final = "of the updates the sum of a cohort only"
SUM: Final = (
    f"{SUM_ONLY}, with the sums of their weights, counts and training statistics such as the mean training loss; "
    "nothing else about one client's update"
)
CLIPPED: Final = f"{IN_THE_CLEAR}, clipped and rounded, without weight or loss, and before the noise"
NOISELESS: Final = f"{SUM_ONLY}, clipped and rounded, before the noise; no weight, loss or other statistic"
NOISED: Final = f"{SUM_ONLY}, clipped and rounded, with the noise of its clients; no weight, loss or other statistic"
NOISED_STEPS: Final = f"{IN_THE_CLEAR}, with the noise of its client's steps; no loss, and no number of examples"
SUM_OF_NOISED_STEPS: Final = f"{SUM_ONLY}, with the noise of each client's steps; no loss, and no number of examples"
GROUPED: Final = "that sum for each group of a cohort"
SUMMED_SCALING: Final = (
    "before round 1: the sum over all clients of counts, sums and sums of squares of every numeric column"
)
SUMMED_BUFFERS: Final = "within the sum: the statistics of activations (the averaged buffers) of all clients of it"
SUMMED_SUMS: Final = "for evaluation: the counts and sums of all clients together"
SUMMED_HISTOGRAMS: Final = "for evaluation: the score histograms of every class of all clients together"
PHASES: Final = "which clients began a sum, which were lost in which of its phases, and their public keys"

_HISTOGRAM_METRICS: Final = frozenset({"auc"})


def is_secure(plan: Mapping[str, Any]) -> bool:
    """Say whether a plan, as a mapping, has secure sums."""
    return isinstance(plan.get("secure_aggregation"), Mapping)


def _updates(plan: Mapping[str, Any], *, secure: bool) -> str:
    """Return what a server sees of the updates."""
    if not isinstance(plan.get("privacy"), Mapping):
        if isinstance(nested(plan, "trainer", "example_privacy"), Mapping):
            return SUM_OF_NOISED_STEPS if secure else NOISED_STEPS
        return SUM if secure else UPDATES
    if not secure:
        return CLIPPED
    return NOISED if nested(plan, "privacy", "noise_by") == "clients" else NOISELESS


def server_sees(plan: Mapping[str, Any], *, metrics: Sequence[str], on_clients: bool) -> tuple[str, ...]:
    """Return what the server of a federation that runs a plan would see, a phrase each.

    ``plan`` is the plan's mapping, ``metrics`` the metrics that are measured, and ``on_clients`` says whether clients
    hold out examples that they evaluate on.
    """
    measured = set(metrics) if on_clients and nested(plan, "evaluation", "federated") is not False else set()
    sums = ", ".join(metric_name(name) for name in metrics if name in measured - _HISTOGRAM_METRICS)
    histograms = ", ".join(metric_name(name) for name in metrics if name in measured & _HISTOGRAM_METRICS)
    secure = is_secure(plan)
    found = {
        _updates(plan, secure=secure): True,
        GROUPED: nested(plan, "secure_aggregation", "group_size") is not None,
        ATTENDANCE: True,
        PHASES: secure,
        SUMMED_SCALING if secure else SCALING: nested(plan, "features", "scaling") == "federated",
        SUMMED_BUFFERS if secure else BUFFERS: nested(plan, "model", "buffers") == "average",
        f"{SUMMED_SUMS if secure else SUMS} ({sums})": bool(sums),
        f"{SUMMED_HISTOGRAMS if secure else HISTOGRAMS} ({histograms})": bool(histograms),
    }
    return tuple(phrase for phrase, holds in found.items() if holds)
