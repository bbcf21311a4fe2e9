"""Where the plans of several runs differ, and whether their figures compare at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hansa.reporting.figures import Figures, nested

ABSENT: Final = "absent"
_NOTHING: Final = frozenset({ABSENT, "[]", "{}"})
_OUTSIDE_THE_PLAN: Final = frozenset({"name"})
_PIECES: Final = ("trainer.hooks", "transforms", "aggregator", "server_optimizer")
_KIND: Final = re.compile(rf"({'|'.join(map(re.escape, _PIECES))})(\[\d+\])?\.kind")
_TESTED_ON: Final = {
    "data": ("data.source", "data.path", "data.central_path", "data.client", "features.task", "features.classes"),
    "label": ("features.label",),
    "seed": ("seed",),
    "test_fraction": ("data.test_fraction",),
    "partition": ("data.partition",),
    "held_out_clients": ("data.held_out_clients",),
}
"""What decides which examples a run is tested on -> the keys of the plan that say it."""
_HARMLESS: Final = ("data.validation_fraction",)
"""Keys that change the digest of the data but not which examples are tested on."""

Differences = list[tuple[str, list[tuple[str, list[str]]]]]


def plan_rows(figures: Sequence[Figures]) -> list[list[str]]:
    """Return the keys at which the plans differ, with each plan's value. Columns of different data are left out."""
    plans = [dict(_flat(run.plan)) for run in figures]
    keys = dict.fromkeys(key for plan in plans for key in plan if key not in _OUTSIDE_THE_PLAN)
    parents = {key[:end] for key in keys for end, sign in enumerate(key) if sign in ".["}
    shown = [key for key in keys if key not in parents]
    if not _same_data(figures):
        shown = [key for key in shown if not key.startswith("features.columns")]
    rows = [[key, *(plan.get(key, ABSENT) for plan in plans)] for key in shown]
    return [row for row in rows if len(set(row[1:])) > 1 and not set(row[1:]) <= _NOTHING]


def grouped(figures: Sequence[Figures], labels: Sequence[str]) -> Differences:
    """Return (key, [(value, the runs that have it), ...]) of every key at which the plans differ.

    Where several kinds of pieces differ, they stand together as the first entry, "method".
    """
    rows = plan_rows(figures)
    kinds = [row[0] for row in rows if _KIND.fullmatch(row[0])]
    if len(kinds) > 1:
        method = ["method", *(_method(run, kinds) for run in figures)]
        rows = [method, *(row for row in rows if row[0] not in kinds)]
    found = []
    for key, *values in rows:
        having = {value: [label for label, own in zip(labels, values, strict=True) if own == value] for value in values}
        found.append((key, list(having.items())))
    return found


def _method(run: Figures, kinds: Sequence[str]) -> str:
    """Return the kinds of those pieces that differ somewhere, in words: "hooks prox, server optimizer adam"."""
    parts = []
    for name in _PIECES:
        piece: Any = nested(run.plan, *name.split("."))
        pieces = piece if isinstance(piece, list) else [piece] if piece else []
        named = " > ".join(str(nested(each, "kind")) for each in pieces)
        if any(kind.startswith(name) for kind in kinds):
            parts.append(f"{name.removeprefix('trainer.').replace('_', ' ')} {named or 'none'}")
    return ", ".join(parts)


def unlike(figures: Sequence[Figures]) -> str:
    """Return a sentence that names why figures do not compare, or "" where runs were tested on the same examples."""
    if _same_data(figures):
        return ""
    plans = [dict(_flat(run.plan)) for run in figures]

    def differ(keys: Sequence[str]) -> bool:
        every = {key for plan in plans for key in plan if key.startswith(tuple(keys))}
        return any(len({plan.get(key) for plan in plans}) > 1 for key in every)

    names = [name for name, keys in _TESTED_ON.items() if differ(keys)]
    if not names and differ(_HARMLESS):
        return ""
    names = names or ["data"]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    verb = "differ" if names[1:] or names == ["data"] else "differs"
    return f"The runs were tested on different examples ({listed} {verb}): their figures do not compare."


def _same_data(figures: Sequence[Figures]) -> bool:
    return len({run.summary.get("data_sha256") for run in figures}) < 2


def _flat(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key path, value as text) of a plan."""
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for position, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{position}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False, default=str)
