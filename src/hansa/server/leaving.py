"""Clients that will not answer leave their open rounds at once, so that nobody waits for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from hansa.server.board import Board
from hansa.server.checking import is_asked
from hansa.store.records import RoundKey
from hansa.store.store import Rows

Leaving = Literal["declined", "lost"]
"""By the site's own will, or because the client may not answer any more."""


async def leave(rows: Rows, key: RoundKey, client: str, fate: Leaving, *, at: float) -> bool:
    """Take a client out of a round, within a transaction. False where it has reported, or nobody waits for it."""
    round_ = await rows.rounds.get(key, for_report=True)
    assigned = await rows.rounds.assignment(key, client, for_change=True)
    if round_ is None or round_.state in ("closed", "abandoned") or assigned is None or not is_asked(round_, assigned):
        return False
    await rows.rounds.set_fates(key, {client: fate})
    tenant = str(round_.notes["tenant"])
    await rows.events.add(f"assignment.{fate}", tenant=tenant, at=at, run=key.run, client=client)
    return True


async def leave_all(rows: Rows, client: str, fate: Leaving, *, at: float) -> list[RoundKey]:
    """Take a client out of all rounds that wait for it, within a transaction; return them, for :func:`tell`."""
    return [key for key in await rows.rounds.open_parts(client) if await leave(rows, key, client, fate, at=at)]


def tell(board: Board, client: str, left: Iterable[RoundKey]) -> None:
    """Let the board know, once that is committed."""
    for key in left:
        board.answered(key, client, reported=False)
        board.changed.set()  # a secure sum may go on without it, whoever else is missing
