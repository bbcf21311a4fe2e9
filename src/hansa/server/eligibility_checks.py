"""What an eligibility expression must be before a job is taken: a condition over what the population declares.

Comprehensions (``all``, ``map``, ...) are refused: attributes are single values, and nested ones could keep a server
busy for hours. So are regular expressions: each is compiled anew for every profile, and a short one can take seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import cel

from hansa.core.errors import RefusedError
from hansa.core.registry import nearest

LONGEST: Final = 2000
"""The most characters of an expression."""

_TEXT: Final = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])*'")
_GAP: Final = r"(?:\s|//[^\n]*\n)*"
_COMPREHENSION: Final = re.compile(rf"\.{_GAP}(all|exists\w*|map|filter|transform\w*){_GAP}\(")
_PATTERN: Final = re.compile(rf"\bmatches{_GAP}\(")
"""Also with a comment in between; and within texts, for where a text ends is not as simple as ``_TEXT`` has it."""
_ATTRIBUTE: Final = re.compile(r"\battributes\s*\.\s*([A-Za-z_]\w*)")
_VARIABLES: Final = frozenset(("attributes", "version"))
_EXAMPLES: Final[Mapping[str, tuple[Any, Any]]] = {
    "string": ("", "a"),
    "number": (0.0, 1.0),
    "boolean": (False, True),
}
_FAILURES: Final = (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError, LookupError)
"""What the library raises."""


def check_eligibility(expression: str, schema: Mapping[str, str]) -> None:
    """Raise RefusedError for an expression that is malformed, names what is not declared, or is no condition.

    The empty one admits every client that consents.
    """
    if not expression.strip():
        return
    if len(expression) > LONGEST:
        raise unfit(f"This one has {len(expression)} characters; at most {LONGEST} are read.")
    if _COMPREHENSION.search(expression):
        raise unfit("This one has a comprehension (all, exists, exists_one, map or filter).")
    if _PATTERN.search(expression):
        raise unfit("This one has a regular expression (matches); write ==, startsWith, endsWith or contains.")
    for name in _ATTRIBUTE.findall(_TEXT.sub('""', expression)):
        if name not in schema:
            raise unfit(f"The population declares no attribute {name!r}; {nearest(name, schema)}")
    try:
        program = cel.compile(expression)
    except _FAILURES as error:
        raise unfit(f"This one cannot be read: {_reason(error)}") from None
    unknown = sorted(set(program.variables()) - _VARIABLES)
    if unknown:
        known = f"write attributes.{unknown[0]}." if unknown[0] in schema else nearest(unknown[0], _VARIABLES)
        raise unfit(f"This one names {unknown[0]!r}; {known}")
    for example in (0, 1):
        attributes = {name: _EXAMPLES[kind][example] for name, kind in schema.items()}
        _try(program, {"attributes": attributes, "version": "1.0.0"})


def _try(program: Any, client: Mapping[str, Any]) -> None:
    """Raise RefusedError where an expression fails for attributes of the declared types, or is no condition."""
    try:
        result = program.execute(dict(client))
    except _FAILURES as error:
        raise unfit(f"This one fails for attributes of the declared types: {_reason(error)}") from None
    if not isinstance(result, bool):
        raise unfit("This one is neither true nor false.")


def _reason(error: Exception) -> str:
    """Return the beginning of what the library says, on one line, without the expression that it repeats."""
    text = " ".join(str(error).rsplit("ERROR:", 1)[-1].split())
    return f"{text[:200].rstrip('. ')}."


def unfit(found: str) -> RefusedError:
    """Return what to say of an expression that cannot be used."""
    return RefusedError(
        "HANSA-REQUEST-INVALID",
        rule="Eligibility is a condition in CEL over attributes, as the population declares them, and version.",
        found=found,
        action='Write, for one: attributes.region == "eu" && attributes.ram_gb >= 4.',
    )
