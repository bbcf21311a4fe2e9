"""When training diverged, and what a person can do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from hansa.algorithms.plan import Plan
from hansa.core.errors import DivergenceError
from hansa.core.nouns import RoundReport
from hansa.core.registry import kind_of

_EARLY: Final = 3


def check(plan: Plan, report: RoundReport, early_norms: Sequence[float]) -> list[float]:
    """Return the early norms to remember after this round. Raises DivergenceError with a diagnosis.

    A round diverged when an update or the model is not finite, or when the combined update is larger than
    ``stopping.explosion_factor`` times the largest of the first three that were not zero.
    """
    if report.non_finite:
        share = f"{report.non_finite} of {report.count} clients ({report.non_finite / report.count:.0%})"
        raise _error(plan, report, f"{share} returned an update that is not finite")
    if not (math.isfinite(report.model_norm) and math.isfinite(report.update_norm)):
        raise _error(plan, report, "the combined model is not finite, though every client's update was")
    if len(early_norms) < _EARLY:
        return [*early_norms, report.update_norm] if report.update_norm > 0 else list(early_norms)
    times = report.update_norm / max(early_norms)
    if times > plan.stopping.explosion_factor:
        raise _error(
            plan,
            report,
            f"the combined update of {report.count} clients is {times:.3g} times the largest of the first {_EARLY}",
        )
    return list(early_norms)


def _error(plan: Plan, report: RoundReport, what: str) -> DivergenceError:
    return DivergenceError(
        "HANSA-RUN-DIVERGED",
        rule="Training goes on while updates and the model are finite and do not explode.",
        found=f"In round {report.round}, {what}. The model of round {report.round - 1} is kept in the checkpoint.",
        action="Likely causes, in this order: " + "; ".join(_causes(plan, report)) + ".",
    )


def _causes(plan: Plan, report: RoundReport) -> list[str]:
    causes = []
    if 0 < report.non_finite < report.count / 2:
        causes.append("extreme values in the data of the few clients concerned: scale features, declare low and high")
    local = plan.trainer.optimizer
    if local is not None:
        causes.append(
            f"a step size that is too large (trainer.optimizer.learning_rate = {local.learning_rate:g}; try a tenth)"
        )
    rate = getattr(plan.server_optimizer, "learning_rate", None)
    if (isinstance(rate, float) and rate > 1) or kind_of("server_optimizer", plan.server_optimizer) != "sgd":
        causes.append(f"the server optimizer (server_optimizer.learning_rate = {rate}; try a tenth)")
    causes.append("clients that differ much (skew): fewer local epochs or steps, or a prox hook")
    if not any(kind_of("transform", transform) == "clip" for transform in plan.transforms):
        causes.append('no limit on updates: add { kind = "clip", clip_norm = ... } to transforms')
    return causes
