"""Sources of examples: a reader with a declared record, so that they can be listed and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.pieces import Partition
from hansa.core.registry import PIECES, nearest, resolve
from hansa.core.sections import Data, Features
from hansa.data.pool import Pool, Population

Setting = Literal["path", "central_path", "client", "memory_map", "arguments", "features"]
Reader = Callable[[Data, Features | None], Pool | Population]

_UNSET: Final[dict[str, Any]] = {
    "path": None,
    "central_path": None,
    "client": None,
    "memory_map": "auto",
    "arguments": {},
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A reader of examples and what a user should know of it.

    ``clients`` says who its own clients are ("" where it has none), ``takes`` which settings mean something
    to it, ``partition`` how examples are dealt where the plan does not say and there are no own clients.
    ``arguments`` is the section that describes data.arguments, None where it takes none.
    """

    name: str
    summary: str
    clients: str
    licence: str
    origin: str
    takes: frozenset[Setting]
    needs: frozenset[Setting]
    partition: Partition | None
    arguments: type | None
    read: Reader

    def __call__(self, data: Data, features: Features | None) -> Pool | Population:
        """Read the examples. Raises PlanError for settings that the source cannot honour, DataError for bad data."""
        problems = self.problems(data, features)
        if problems:
            raise PlanError(problems)
        return self.read(data, features)

    def problems(self, data: Data, features: Features | None) -> list[Problem]:
        """Return what is wrong with the settings, before anything is read."""
        given = {name for name, unset in _UNSET.items() if getattr(data, name) != unset}
        given |= {"features"} if features is not None else set()
        allowed = ", ".join(sorted(self.takes)) or "none of path, client and the like"
        unwanted = [
            Problem(_key(name), f"source {self.name!r} does not take it (it takes {allowed}); remove it.")
            for name in sorted(given - self.takes)
        ]
        needed = [Problem(*_NEEDED[name](self.name)) for name in sorted(self.needs - given)]
        return unwanted + needed


_NEEDED: Final[dict[str, Callable[[str], tuple[str, str]]]] = {
    "path": lambda name: ("data.path", f"is required by source {name!r}: name the file or folder."),
    "features": lambda name: (
        "features.label",
        f"is required by source {name!r}: name the column that is predicted (hansa init writes a whole plan).",
    ),
}


def source(  # noqa: PLR0913 - the fields of a record
    name: str,
    summary: str,
    *,
    clients: str = "",
    licence: str = "yours",
    origin: str = "yours",
    takes: tuple[Setting, ...] = (),
    needs: tuple[Setting, ...] = (),
    partition: Partition | None = None,
    arguments: type | None = None,
) -> Callable[[Reader], Source]:
    """Return a decorator that declares a reader as a source. What it needs it also takes."""

    def declare(read: Reader) -> Source:
        return Source(
            name=name,
            summary=summary,
            clients=clients,
            licence=licence,
            origin=origin,
            takes=frozenset(takes) | frozenset(needs) | (frozenset({"arguments"}) if arguments else frozenset()),
            needs=frozenset(needs),
            partition=partition,
            arguments=arguments,
            read=read,
        )

    return declare


def listing() -> tuple[Source, ...]:
    """Return every registered source, shipped ones first, for `hansa data`."""
    found = [resolve("source", name) for name in PIECES["source"]]
    return tuple(sorted(found, key=lambda each: "path" in each.needs))


def find(name: str) -> Reader:
    """Return the source that a plan names: registered, or the user's own function ``"package.module:function"``.

    Raises PlanError for an unknown name or one that cannot be imported.
    """
    try:
        found = resolve("source", name)
    except LookupError:
        hint = nearest(name, PIECES["source"])
        raise PlanError([Problem("data.source", f"unknown source {name!r}; {hint}")]) from None
    except HansaError as error:
        raise PlanError([Problem("data.source", f"{error} [{error.code}]")]) from error
    if not callable(found):
        raise PlanError([Problem("data.source", f"{name!r} is not a function of (data, features).")])
    reader: Reader = found
    return reader


def _key(setting: str) -> str:
    return setting if setting == "features" else f"data.{setting}"
