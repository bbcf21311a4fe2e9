"""The client of a federation: what a site installs to take part. ``Agent`` is all that an application embeds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hansa.client.agent import Agent
    from hansa.client.policy import Policy, read_policy

__all__ = ["Agent", "Policy", "read_policy"]

_HOMES: Final = {
    "Agent": "hansa.client.agent",
    "Policy": "hansa.client.policy",
    "read_policy": "hansa.client.policy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hansa.client' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
