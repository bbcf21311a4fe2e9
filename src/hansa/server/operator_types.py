"""Types of what the operator API takes: bounds that hold before anything is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import MaxLen
from pydantic import AfterValidator, Field, StringConstraints

_V = TypeVar("_V")


def plain(value: _V) -> _V:
    """Return a value that every database and JSON reader can hold. Raises ValueError for others."""
    level: list[Any] = [value]
    for _ in range(64):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if "\x00" in item or any("\ud800" <= letter <= "\udfff" for letter in item):
                    raise ValueError("holds a character that cannot be stored")
            elif isinstance(item, Mapping):
                deeper += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                deeper += item
        level = deeper
        if not level:
            return value
    raise ValueError("is nested more than 64 levels deep")


Name = Annotated[
    str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$"), AfterValidator(plain)
]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(plain)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(max_length=40, pattern=r"^[0-9]{1,9}(\.[0-9]{1,9}){0,3}$")]
Attribute = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Attributes = Annotated[
    dict[Attribute, Literal["string", "number", "boolean"]],
    MaxLen(64),
    Field(json_schema_extra={"additionalProperties": False}),
]
Tables = Annotated[dict[str, Any], AfterValidator(plain)]
Days = Annotated[float, Field(gt=0, le=36500, allow_inf_nan=False)]
Number = Annotated[int, Field(ge=0, le=2**53 - 1)]
