"""An authority's answers: for which rosters of which tasks it vouches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.authority.settings import AuthoritySettings
from hansa.authority.vouched import Vouched
from hansa.core.clock import Clock
from hansa.core.errors import RefusedError
from hansa.secagg.convention import vouch
from hansa.secagg.encoding import Reader
from hansa.secagg.keys import KEY_BYTES
from hansa.secagg.refusals import malformed, untrusted
from hansa.secagg.roster import Roster
from hansa.secagg.task import Task, read_task

_RULE: Final = "An authority vouches for rosters of keys that are on its list, of as many clients as its operator set."


@dataclass
class AuthorityService:
    """One authority. It keeps nothing of a call: the same question gets the same bytes while the list is the same."""

    settings: AuthoritySettings
    key: Ed25519PrivateKey
    vouched: Vouched
    clock: Clock

    @property
    def identity(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    def answer(self, body: bytes) -> bytes:
        """Return the signature over the roster of a task, 64 bytes. Raises HansaError where it is not vouched for.

        ``body``: the task's canonical bytes and the keys of its clients in their order, each behind its length.
        """
        reader = Reader(body)
        content, joined = reader.blob(), reader.blob()
        reader.end()
        if len(joined) % KEY_BYTES:
            raise malformed("The keys of a roster are 32 bytes each.")
        identities = tuple(joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES))
        task = read_task(content)
        self._check(task, identities)
        return vouch(self.key, task)

    def _check(self, task: Task, identities: tuple[bytes, ...]) -> None:
        """Raise HansaError unless a task's roster is of these keys, all of which are on the list, and of enough."""
        fewest = self.settings.minimum_cohort
        if len(identities) < fewest:
            raise RefusedError(
                "HANSA-AUTHORITY-FEW",
                rule=_RULE,
                found=f"It is asked for {len(identities)} clients, and vouches for no fewer than {fewest}.",
                action="Use larger cohorts or groups, or ask its operator for another minimum_cohort.",
            )
        if task.registrar != "authority" or self.identity in self.settings.known_servers:
            raise untrusted(f"The registrar is {task.registrar!r}, or the authority's key is the server's.")
        roster = Roster(identities)
        if (roster.root, len(identities)) != (task.roster_root, task.roster_size):
            raise untrusted("The keys are not those of the task's roster.")
        if not set(identities) <= self.vouched.keys():
            raise RefusedError(
                "HANSA-AUTHORITY-STRANGER",
                rule=_RULE,
                found="A key of the roster is not on the list.",
                action="Let the authority's operator add it (hansa authority vouch), or suspend that client.",
            )
