"""JSON from outside: UTF-8, no key twice, no NaN or Infinity, and whole numbers that are whole numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

LARGEST: Final = 2**53 - 1
"""The largest whole number that every reader of JSON holds exactly."""
MOST_AXES: Final = 32
"""The most axes of an array: numpy holds no more than twice as many."""


def read_json(content: bytes) -> Any:
    """Return the value that some bytes hold. Raises ValueError for anything else."""
    text = content.decode()
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
        if "\\ud" in text.lower():  # half of a pair of surrogates is no text, and fails where it is written
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def whole_number(value: Any) -> int:
    """Return a value that is a whole number from 0 to 2^53 - 1. Raises ValueError for any other."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError("not a whole number from 0 to 2^53 - 1")
    return value


def shape_of(value: Any) -> tuple[int, ...]:
    """Return a list of lengths as a shape. Raises ValueError for anything else, and for too large an array."""
    if not isinstance(value, list) or len(value) > MOST_AXES:
        raise ValueError("not a list of at most 32 lengths")
    shape = tuple(whole_number(length) for length in value)
    size = 1
    for length in shape:
        size *= max(1, length)
        if size > LARGEST:
            raise ValueError("too large")
    return shape


def require_keys(table: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Return an object that has exactly some keys. Raises ValueError for any other value."""
    if not isinstance(table, dict) or table.keys() != set(keys):
        raise ValueError("not an object of the expected keys")
    return table


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key comes twice")
    return table


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _number(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number
