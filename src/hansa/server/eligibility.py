"""Eligibility: an expression in CEL (Common Expression Language) over what a client declares.

``attributes.region == "eu" && attributes.ram_gb >= 4.0 && version == "1.2.0"``. A client without consent is never
eligible, whatever the expression says; an attribute that a client lacks makes the expression false for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.core.errors import RefusedError


@dataclass(frozen=True)
class Eligibility:
    """A compiled expression; empty: everybody who consents. ``minimum_version`` is the population's."""

    text: str
    minimum_version: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_program", _compiled(self.text))

    def allows(self, profile: Mapping[str, Any]) -> bool:
        """Return True if clients of a profile (attributes, version, consent) may be picked."""
        if not profile["consent"] or older(profile["version"], self.minimum_version):
            return False
        program: Any = self._program  # type: ignore[attr-defined]  # set above
        if program is None:
            return True
        try:
            return program.execute({"attributes": dict(profile["attributes"]), "version": profile["version"]}) is True
        except Exception:  # noqa: BLE001 - an attribute that is missing or of another type: not eligible
            return False


def older(version: str, minimum: str | None) -> bool:
    """Return True if a version such as "1.10.2" lies before a minimum; one that is no version does."""
    return minimum is not None and _numbers(version) < _numbers(minimum)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")
    numbers = []
    for part in parts:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    while numbers and not numbers[-1]:  # 1.10 is 1.10.0
        numbers.pop()
    return tuple(numbers)


def _compiled(text: str) -> Any:
    if not text.strip():
        return None
    import cel  # noqa: PLC0415 - needed where there is an expression

    try:
        return cel.compile(text)
    except Exception as error:  # noqa: BLE001 - the library raises several kinds
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="Eligibility is an expression in CEL over attributes and version.",
            found=f"{text!r} is none: {' '.join(str(error).split())[:200]}.",
            action='Write, for one: attributes.region == "eu" && attributes.ram_gb >= 4.0.',
        ) from None
