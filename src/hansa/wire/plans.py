"""Plans as TOML files: read with overrides, and written as resolved."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import tomli_w

from hansa.algorithms.plan import Plan, expand_recipe, plan_from_mapping
from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.schema import to_mapping

_DEEPEST: Final = 64
"""The most levels of arrays and tables in a plan."""
_SHOWN: Final = 100
"""The most characters of an override in a message."""


def read_plan(path: Path | str, overrides: Iterable[str] = ()) -> Plan:
    """Return the plan in a file, with overrides such as "rounds=10" applied before it is checked.

    Overrides reach what a recipe gives as well; those of the recipe itself come first.

    Raises HansaError for a file that is no TOML, and PlanError with every problem of the plan.
    """
    overrides = tuple(overrides)
    of_recipe = tuple(each for each in overrides if re.match(r"\s*recipe\s*[.=]", each))
    tables = with_overrides(read_tables(Path(path)), of_recipe)
    expanded, problems = expand_recipe(tables)
    if problems:
        return plan_from_mapping(tables)
    recipe = {"recipe": tables["recipe"]} if "recipe" in tables else {}
    overridden = with_overrides(expanded, (each for each in overrides if each not in of_recipe))
    return plan_from_mapping({**overridden, **recipe})


def read_tables(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file."""
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror or error}."
    except UnicodeDecodeError as error:
        found = f"{path} is not UTF-8: {error.reason} at byte {error.start}."
    except ValueError as error:
        found = f"{path}: {str(error).rstrip('.')}."
    raise HansaError(
        "HANSA-PLAN-FILE",
        rule="A plan is a TOML file.",
        found=found,
        action="Correct the path or the line; `hansa init` writes a plan to start from.",
    ) from None


def _parsed(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text. Raises ValueError, also for numbers too long and levels too deep to read."""
    too_deep = f"arrays or tables are nested more than {_DEEPEST} levels deep"
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level: list[Any] = [tables]
    for _ in range(_DEEPEST):
        level = [item for value in level for item in _items(value)]
    if level:
        raise ValueError(too_deep)
    return tables


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def with_overrides(tables: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return tables with "a.b=value" applied in order; a number in the path counts along an array.

    The value is read as TOML, and as a string where it is none. Raises PlanError for a path that leads nowhere.
    """
    result: Any = _copy(tables)
    problems: list[Problem] = []
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not separator or not all(keys):
            problems.append(Problem(_begin(override), "is not of the form key.path=value."))
            continue
        try:
            value = _value(text.strip())
            if len(keys) > _DEEPEST:
                raise ValueError(f"has more than {_DEEPEST} keys")  # noqa: TRY301 - one list of problems
        except ValueError as error:
            problems.append(Problem(_begin(path), f"cannot be read: {str(error).rstrip('.')}."))
            continue
        try:
            _put(result, keys, value)
        except (KeyError, IndexError, TypeError, ValueError):
            problems.append(Problem(path, "leads to nothing that can be set: a number counts along an array only."))
    if problems:
        raise PlanError(problems)
    return dict(result)


def _begin(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def write_plan(plan: Plan) -> str:
    """Return a plan as TOML, resolved: every default is written out."""
    return tomli_w.dumps(to_mapping(plan))


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _put(tables: Any, keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        place = _place(tables, key)
        below = tables.setdefault(place, {}) if isinstance(tables, dict) else tables[place]
        if isinstance(below, str):
            below = tables[place] = {"kind": below}
        tables = below
    tables[_place(tables, keys[-1])] = value


def _place(tables: Any, key: str) -> Any:
    """Return the key of a table, or the number of an element that an array has."""
    if isinstance(tables, dict):
        return key
    if not isinstance(tables, list):
        raise TypeError("neither a table nor an array")
    if not key.isdecimal():
        raise KeyError(key)
    return range(len(tables))[int(key)]


def _value(text: str) -> Any:
    try:
        read = _parsed(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text
