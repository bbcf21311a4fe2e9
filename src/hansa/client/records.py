"""What a client knows of itself and of its assignments, as it keeps it: who it is, what it was asked and reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from hansa.core.errors import RefusedError

_RUN: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")

Kind = Literal["statistics", "training", "evaluation"]
Outcome = Literal["open", "included", "not-included", "late", "refused"]


@dataclass(frozen=True)
class Id:
    """One assignment."""

    run: str
    kind: Kind
    round: int
    attempt: int

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run) or self.kind not in ("statistics", "training", "evaluation"):
            raise RefusedError(
                "HANSA-REQUEST-INVALID",
                rule="An assignment names a run, a kind, a round and an attempt.",
                found="This one does not.",
                action="Tell the operator of the server.",
            )

    def __str__(self) -> str:
        return f"{self.run}/{self.kind}/{self.round}/{self.attempt}"


@dataclass(frozen=True)
class Pending:
    """A report that is on disk and not acknowledged: ``size`` bytes of the file from ``start`` on."""

    id: Id
    sha256: str
    file: Path
    start: int
    size: int


@dataclass(frozen=True)
class Report:
    """A report that the server has, and what became of it."""

    id: Id
    sha256: str
    outcome: Outcome


@dataclass(frozen=True)
class Identity:
    """Who the client is at which server, and the keys by which it knows that server: key id -> public key."""

    server: str
    client: str
    number: int
    name: str
    population: str
    server_keys: Mapping[str, bytes] = field(default_factory=dict)
