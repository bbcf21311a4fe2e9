"""What a server holds a secure sum with, and what it says of those who break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hansa.secagg import keys
from hansa.secagg.refusals import unsound
from hansa.secagg.roster import Roster, registration
from hansa.secagg.task import Task


class Blame(NamedTuple):
    """A client that did something that no honest one does, and what. For operators, never for logs or other clients."""

    client: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What a server needs to hold a secure sum: the task, who may come, its key, and whoever vouches for the roster."""

    task: Task
    roster: Roster
    signer: keys.Signer
    registration: bytes
    """The registrar's signature over :attr:`hansa.secagg.task.Task.registered`, under the purpose ``roster``."""
    decryptors: tuple[bytes, ...] = ()
    """The signature of each decryptor of the task over its hash."""
    authority: bytes = b""
    """The key of the authority that draws the task's beacon, 32 bytes; none where there is no beacon."""

    def __post_init__(self) -> None:
        self.task.check()
        if (self.roster.root, len(self.roster.identities)) != (self.task.roster_root, self.task.roster_size):
            raise unsound("The roster is not the task's.")


def register(signer: keys.Signer, roster: Roster) -> bytes:
    """Return the server's signature over a roster, with the registrars ``server`` and ``pinned``."""
    return keys.sign(signer, "roster", registration(roster.root, len(roster.identities)))


def vouch(signer: keys.Signer, task: Task) -> bytes:
    """Return an authority's signature over the roster of a task. Raises RefusedError for another registrar's."""
    if task.registrar != "authority":
        raise unsound(f"The roster's registrar is {task.registrar!r}, and no authority vouches for it.")
    return keys.sign(signer, "roster", *task.registered)
