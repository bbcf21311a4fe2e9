"""Events as mappings and canonical JSON, so that anybody can compute again what was charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from hansa.core.errors import HansaError
from hansa.privacy.event import (
    DistributedGaussian,
    Event,
    FixedSizeGaussian,
    Gaussian,
    MatrixGaussian,
    PoissonGaussian,
)

KINDS: Final[Mapping[str, type[Event]]] = {
    "gaussian": Gaussian,
    "poisson-gaussian": PoissonGaussian,
    "fixed-size-gaussian": FixedSizeGaussian,
    "matrix-gaussian": MatrixGaussian,
    "distributed-gaussian": DistributedGaussian,
}
"""The ``kind`` of a mapping -> the event that it is."""

_NAMES: Final = {event: kind for kind, event in KINDS.items()}
_WHOLE: Final = frozenset({"participations", "parties", "dimension"})
"""Fields that are integers; all others are floats, which canonical JSON writes as integers where they are whole."""


def event_to_mapping(event: Event) -> dict[str, Any]:
    """Return an event as a mapping: its ``kind`` and its fields."""
    return {"kind": _NAMES[type(event)], **asdict(event)}


def event_from_mapping(told: Mapping[str, Any]) -> Event:
    """Return the event of a mapping. Raises HansaError for what is none."""
    kind = KINDS.get(str(told.get("kind")))
    if kind is None:
        raise _unreadable(f"Its kind is {str(told.get('kind'))[:40]!r}.")
    values = {name: value for name, value in told.items() if name != "kind"}
    if values.keys() != {field.name for field in fields(kind)}:
        raise _unreadable(f"It has the fields {', '.join(sorted(values))[:200]}.")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int if name in _WHOLE else (int, float)):
            raise _unreadable(f"{name} is no number of the right kind.")
    numbers: dict[str, Any] = {name: value if name in _WHOLE else float(value) for name, value in values.items()}
    return kind(**numbers)


def event_to_json(event: Event) -> str:
    """Return an event as canonical JSON (RFC 8785): the same text for equal events."""
    import rfc8785  # noqa: PLC0415 - needed where events are kept, not where they are priced

    return rfc8785.dumps(event_to_mapping(event)).decode()


def _unreadable(found: str) -> HansaError:
    kinds = ", ".join(KINDS)
    return HansaError(
        "HANSA-PRIVACY-INVALID",
        rule=f"An event is one of {kinds}, with all of its fields.",
        found=found,
        action="Was it written by a newer version?",
    )
