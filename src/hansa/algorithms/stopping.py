"""When a run ends before its last round."""

from __future__ import annotations

from collections.abc import Sequence

from hansa.core.sections import Stopping


def stopping_reason(stopping: Stopping, values: Sequence[float | None], *, higher_is_better: bool) -> str | None:
    """Return why a run stops after these values of the watched metric, or None."""
    sign = 1.0 if higher_is_better else -1.0
    known = [sign * value for value in values if value is not None]
    if not known:
        return None
    if stopping.target is not None and known[-1] >= sign * stopping.target:
        return f"{stopping.metric} reached {stopping.target:g}"
    if stopping.patience is not None and len(known) - 1 - known.index(max(known)) >= stopping.patience:
        return f"{stopping.metric} did not improve in {stopping.patience} evaluations"
    return None
