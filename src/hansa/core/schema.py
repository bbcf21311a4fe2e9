"""One declaration for plan files, Python and the reference: frozen dataclasses.

A section of a plan is a frozen dataclass whose fields carry types, bounds (``annotated_types``) and
a help text (``Doc``). This module turns mappings into them and back, and finds every problem at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from hansa.core.errors import HansaError, ModelError, PlanError, Problem
from hansa.core.pieces import lacking
from hansa.core.registry import kind_of, nearest, resolve

_SHOWN: Final = 200
"""The most characters of a value in a message."""
_DEEPEST: Final = 64
"""The most levels of arrays and tables within one value."""


@dataclass(frozen=True)
class Family:
    """Marks a field that holds a piece (or a tuple or mapping of pieces) of a registered family."""

    name: str


@dataclass(frozen=True)
class Doc:
    """The help text of a field, for the reference and the command line."""

    text: str


@dataclass(frozen=True)
class Field:
    """A declared field: its name, its type with bounds, its family of pieces, its help and default."""

    name: str
    annotation: Any
    inner: Any
    family: str | None
    help: str
    default: Any
    required: bool


class Unsound(ValueError):  # noqa: N818 - it names what the section is
    """Raised by a section's own check of its fields; becomes a problem with the section's key path."""


@cache
def fields_of(cls: type) -> dict[str, Field]:
    """Return the declared fields of a section, by name. Raises ModelError where its annotations cannot be read."""
    hints = _hints(cls)
    declared = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = hints[field.name]
        inner, extras = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        declared[field.name] = Field(
            name=field.name,
            annotation=hint,
            inner=inner,
            family=next((extra.name for extra in extras if isinstance(extra, Family)), None),
            help=next((extra.text for extra in extras if isinstance(extra, Doc)), ""),
            default=default,
            required=missing,
        )
    return declared


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise ModelError(
            "HANSA-CODE-IMPORT",
            rule="The types of a piece's fields can be read when the plan is.",
            found=f"Those of {cls.__module__}:{cls.__qualname__} cannot: {type(error).__name__}: {error}.",
            action="Import what the annotations name at the top of the module, not under TYPE_CHECKING.",
        ) from error


def from_mapping(cls: type, mapping: Any, path: str = "") -> tuple[dict[str, Any], list[Problem]]:
    """Return the values of the fields of ``cls`` that could be built, and every problem met."""
    if not isinstance(mapping, Mapping):
        return {}, [Problem(path or "plan", f"must be a table, but {_shown(mapping)} was given.")]
    declared = fields_of(cls)
    problems = [
        Problem(_join(path, str(key)), f"unknown key; {nearest(str(key), declared)}")
        for key in mapping
        if key not in declared
    ]
    values: dict[str, Any] = {}
    for name, field in declared.items():
        where = _join(path, name)
        if name in mapping:
            given, meant = _with_kind(field, mapping[name])
            value, found = _build(field, given, where)
            problems += [_told_kind(problem, where, meant) for problem in found]
            if not found:
                values[name] = value
        elif field.required:
            problems.append(Problem(where, f"is required: {field.help}"))
    return values, problems


def build(cls: type, mapping: Any, path: str = "") -> tuple[Any, list[Problem]]:
    """Return the section that ``mapping`` describes, or None, and every problem met."""
    try:
        values, problems = from_mapping(cls, mapping, path)
        return (None, problems) if problems else (cls(**values), [])
    except PlanError as error:
        return None, list(error.problems)
    except HansaError as error:
        return None, [Problem(path or "plan", f"{error} [{error.code}]")]
    except ValueError as error:
        return None, [Problem(path or "plan", str(error) or f"{cls.__name__} refuses its values.")]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a piece of the user's own may raise anything
        return None, [Problem(path or "plan", f"{cls.__name__} raised {type(error).__name__}: {error}.")]


def build_piece(family: str, mapping: Any, path: str) -> tuple[Any, list[Problem]]:
    """Return the piece that ``{kind = ..., ...}`` (or just the kind) describes, and every problem met."""
    if isinstance(mapping, str):
        mapping = {"kind": mapping}
    if not isinstance(mapping, Mapping) or not isinstance(mapping.get("kind"), str):
        return None, [Problem(path, "must be a table with a key 'kind' that names the piece.")]
    try:
        cls = resolve(family, mapping["kind"])
    except LookupError as error:
        return None, [Problem(_join(path, "kind"), str(error.args[0]))]
    except HansaError as error:
        return None, [Problem(_join(path, "kind"), f"{error} [{error.code}]")]
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return None, [
            Problem(_join(path, "kind"), f"{mapping['kind']!r} is not a piece: a frozen dataclass is needed.")
        ]
    piece, problems = build(cls, {key: value for key, value in mapping.items() if key != "kind"}, path)
    lacks = () if problems else lacking(family, piece)
    if lacks:
        return None, [Problem(_join(path, "kind"), f"{mapping['kind']!r} is no {family}: it lacks {', '.join(lacks)}.")]
    return piece, problems


def to_mapping(section: Any) -> dict[str, Any]:
    """Return a section as plain tables: defaults filled in, absent values left out."""
    return {
        name: to_plain(getattr(section, name), field.family)
        for name, field in fields_of(section.__class__).items()
        if getattr(section, name) is not None
    }


def given_only(value: Any, family: str | None = None) -> Any:
    """Return a section or piece as plain tables without what is as its default, to lie over other tables."""
    if isinstance(value, tuple | list):
        return [given_only(item, family) for item in value]
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return to_plain(value, family)
    kind = {"kind": kind_of(family, value)} if family else {}
    return kind | {
        name: given_only(getattr(value, name), field.family)
        for name, field in fields_of(value.__class__).items()
        if getattr(value, name) is not None and (field.required or getattr(value, name) != field.default)
    }


def to_plain(value: Any, family: str | None = None) -> Any:
    """Return a section, a piece of ``family``, or a plain value as plain tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": kind_of(family, value)} if family else {}
        return {**kind, **to_mapping(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, family) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item, family) for item in value]
    return value


def _build(field: Field, value: Any, path: str) -> tuple[Any, list[Problem]]:
    """Build one field: a piece, a section, a tuple or mapping of them, or a plain value."""
    inner = _without_none(field.inner)
    origin = get_origin(inner)
    element = _element(inner)
    if origin is tuple and (field.family or dataclasses.is_dataclass(element)):
        if not isinstance(value, list | tuple):
            return None, [Problem(path, "must be an array of tables.")]
        built = [_one(field.family, element, item, f"{path}.{i}") for i, item in enumerate(value)]
        return tuple(item for item, _ in built), [problem for _, found in built for problem in found]
    if field.family and origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            return None, [Problem(path, "must be a table of tables.")]
        made = {key: _one(field.family, element, item, _join(path, key)) for key, item in value.items()}
        return {key: item for key, (item, _) in made.items()}, [p for _, found in made.values() for p in found]
    if field.family or dataclasses.is_dataclass(inner):
        return _one(field.family, inner, value, path)
    return _value(field.annotation, value, path)


def _with_kind(field: Field, value: Any) -> tuple[Any, str | None]:
    """Return a table without a kind as one of the default's kind, and that kind where it was filled in."""
    piece = dataclasses.is_dataclass(field.default) and field.family is not None
    if not piece or not isinstance(value, Mapping) or "kind" in value:
        return value, None
    kind = kind_of(str(field.family), field.default)
    return {"kind": kind, **value}, kind


def _told_kind(problem: Problem, path: str, kind: str | None) -> Problem:
    """Return the problem of a piece whose kind was filled in; an unknown key may belong to another kind."""
    own = problem.path.count(".") == path.count(".") + 1
    if kind is None or not own or not problem.message.startswith("unknown key"):
        return problem
    more = f"this is {kind!r}, the default, as there is no key 'kind'; name the kind that you mean."
    return Problem(problem.path, f"{problem.message.rstrip('.')}; {more}")


def _one(family: str | None, cls: Any, value: Any, path: str) -> tuple[Any, list[Problem]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_plain(value, family)
    return build_piece(family, value, path) if family else build(cls, value, path)


def _value(annotation: Any, value: Any, path: str) -> tuple[Any, list[Problem]]:
    """Check a plain value against its type and bounds; strings are never taken for numbers."""
    import pydantic  # noqa: PLC0415 - imported when a plan is built, not when a device imports core

    unfit = _unfit(value)
    if unfit is not None:
        return None, [Problem(path, unfit)]
    try:
        text = json.dumps(value)
    except TypeError:
        return None, [Problem(path, f"cannot be written in a plan: {type(value).__name__}.")]
    try:
        return _adapter(annotation).validate_json(text, strict=True), []
    except pydantic.PydanticUserError as error:
        return None, [Problem(path, f"has a type that no plan can hold: {error.message.splitlines()[0]}")]
    except pydantic.ValidationError as error:
        return None, [
            Problem(_join(path, *(str(part) for part in found["loc"] if isinstance(part, int))), _sentence(found))
            for found in error.errors(include_url=False)
        ]


@cache
def _adapter(annotation: Any) -> Any:
    import pydantic  # noqa: PLC0415 - see _value

    return pydantic.TypeAdapter(annotation)


def _sentence(found: Mapping[str, Any]) -> str:
    message = str(found["msg"]).replace("Input should be", "must be")
    return f"{message[0].lower()}{message[1:]}, but {_shown(found['input'])} was given."


def _shown(value: Any) -> str:
    """Return a value as Python writes it, its beginning where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _unfit(value: Any, depth: int = 0) -> str | None:
    """Return why a value, or one inside it, has no place in a plan file and its hash."""
    if depth > _DEEPEST:
        return f"is nested more than {_DEEPEST} levels deep."
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite."
    if isinstance(value, int) and abs(value) >= 2**53:
        return "must be smaller than 2^53, beyond which JSON readers round; write it as a string."
    if not isinstance(value, Mapping | list | tuple):
        return None
    items = value.values() if isinstance(value, Mapping) else value
    if any(item is None for item in items):
        return "holds None, which a plan file cannot say; leave it out."
    return next((unfit for unfit in (_unfit(item, depth + 1) for item in items) if unfit is not None), None)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        rest = [argument for argument in get_args(hint) if argument is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def _element(hint: Any) -> Any:
    arguments = [argument for argument in get_args(hint) if argument is not Ellipsis]
    return arguments[-1] if arguments else None


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
