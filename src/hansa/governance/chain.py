"""Rows of the ledger as canonical JSON, each with the hash of the row before.

A chain is evidence against whoever changes rows afterwards, for everybody who knows its head or a later one: from an
export, or from a report. Whoever can write to the database can write a whole other chain, with another head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import metadata
from typing import Any, Final

from hansa.core.ledger import SpendKey
from hansa.privacy.running import ACCOUNTANT, Running
from hansa.store.records import LedgerKind, LedgerRow, LedgerScope

FORMAT: Final = 1
START: Final = "0" * 64
"""What stands for the hash of the row before the first."""


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON (RFC 8785) of a row."""
    return hashlib.sha256(_canonical(content)).hexdigest()


def content_of(row: LedgerRow) -> dict[str, Any]:
    """Return what a row says."""
    content: dict[str, Any] = json.loads(row.content)
    return content


def columns_agree(row: LedgerRow) -> bool:
    """Return whether the columns by which a row is found are what it says."""
    said = content_of(row)
    return row == _row(row.scope, said, row.content.encode())


def _row(scope: str, content: Mapping[str, Any], text: bytes) -> LedgerRow:
    key = key_from_mapping(content["key"]) if "key" in content else None
    return LedgerRow(
        scope=scope,
        number=content["number"],
        kind=content["kind"],
        key=None if key is None else str(key),
        run=None if key is None else key.run,
        noise_row=content.get("noise_row"),
        event=_canonical(content["release"]["event"]).decode() if "release" in content else None,
        content=text.decode(),
        hash=hashlib.sha256(text).hexdigest(),
    )


def extended(  # noqa: PLR0913 - what a row is made of
    scope: LedgerScope,
    kind: LedgerKind,
    *,
    spent: Running,
    at: float,
    actor: str,
    key: SpendKey | None = None,
    parts: Mapping[str, Any],
) -> tuple[LedgerScope, LedgerRow]:
    """Return a scope with one more row in its chain, and the row; ``spent`` is its account with it.

    ``parts`` are what rows of this kind have beside what all have.
    """
    charged = spent.epsilon(scope.delta)
    content = {
        "format": FORMAT,
        "tenant": scope.tenant,
        "scope": scope.id,
        "scope_name": scope.name,
        "unit": scope.unit,
        "adjacency": scope.adjacency,
        "delta": scope.delta,
        "number": scope.rows + 1,
        "previous": scope.head,
        "kind": kind,
        "at": at,
        "actor": actor,
        "accountant": {"name": ACCOUNTANT, "version": _version()},
        "epsilon_charged": charged,
        "epsilon_limit": scope.epsilon_limit,
        "remaining": max(0.0, scope.epsilon_limit - charged),
        **({} if key is None else {"key": key_to_mapping(key)}),
        **parts,
    }
    text = _canonical(content)
    row = _row(scope.id, content, text)
    after = replace(scope, rows=row.number, head=row.hash, accountant=ACCOUNTANT, spent=spent.text)
    return after, row


def key_to_mapping(key: SpendKey) -> dict[str, Any]:
    """Return a key as rows hold it."""
    return {"run": key.run, "kind": key.kind, "round": key.round, "attempt": key.attempt}


def key_from_mapping(told: Mapping[str, Any]) -> SpendKey:
    """Return the key of a row."""
    return SpendKey(told["run"], told["round"], told["attempt"], told["kind"])


def _canonical(content: Mapping[str, Any]) -> bytes:
    import rfc8785  # noqa: PLC0415 - needed where rows are written or verified

    return rfc8785.dumps(dict(content))


@cache
def _version() -> str:
    return metadata.version("hansa")
