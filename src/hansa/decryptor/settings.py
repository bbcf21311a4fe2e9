"""Settings of a decryptor: in which its operator says whom it serves and from how many clients on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from annotated_types import Ge, Gt, Le, MinLen

from hansa.core.errors import Problem
from hansa.core.schema import Doc
from hansa.serving.settings import KEY_BYTES, ServiceSettings, key_of, no_key

FOLDER: Final = "hansa-decryptor"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class DecryptorSettings(ServiceSettings):
    """Everything that can be set about a decryptor. Raises SettingsError for values that do not fit each other."""

    noun: ClassVar[str] = "decryptor"

    registrar: Annotated[
        Literal["pinned", "authority", "server"],
        Doc(
            "who vouches for the clients' keys: this list of peers, an authority apart from the server, or the server, "
            "who could invent clients"
        ),
    ] = "pinned"
    peers: Annotated[
        tuple[str, ...],
        Doc(
            "keys of all clients that may take part, as `hansa client key` prints them; reports of others are left out"
        ),
    ] = ()
    authority_key: Annotated[
        str, Doc('registrar = "authority": its key, as `hansa authority key` prints it: had from its operator')
    ] = ""
    minimum_survivors: Annotated[
        int, Ge(3), Doc("fewest clients whose sum of masks it gives, whatever a plan says")
    ] = 3
    plans: Annotated[
        tuple[str, ...], Doc("SHA-256 of the plans that it serves (`hansa check` prints it); empty: all")
    ] = ()
    folder: Annotated[
        str, MinLen(1), Doc("where it keeps its key and what it has answered; made with mode 0700, for one process")
    ] = FOLDER
    port: Annotated[int, Ge(1), Le(65535), Doc("port to listen on")] = 8444
    keep_days: Annotated[
        float, Gt(0), Doc("days that the keys of a round are kept while nobody asks, and an answer for who repeats")
    ] = 7.0
    largest_request_bytes: Annotated[int, Ge(4096), Doc("the largest body of a call")] = 64 * _MIB
    largest_vector_bytes: Annotated[
        int,
        Ge(1),
        Doc("the largest vector of a sum, packed; answering takes a few times as much memory"),
    ] = 1024 * _MIB
    threads: Annotated[int, Ge(1), Doc("threads that add masks")] = 1

    @property
    def known_peers(self) -> frozenset[bytes]:
        """Return the clients' keys, 32 bytes each."""
        return frozenset(map(key_of, self.peers))

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        yield from self._unfit_keys("peers")
        for position, text in enumerate(self.plans):
            if not _DIGEST.fullmatch(text):
                yield Problem(f"plans.{position}", "is no SHA-256 of a plan: 64 digits of 0-9 and a-f.")
        if self.registrar == "pinned" and len(self.peers) < self.minimum_survivors:
            yield Problem("peers", f"are {len(self.peers)}, fewer than minimum_survivors: list them, or set registrar.")
        if self.registrar == "authority" and not self.authority_key:
            yield Problem("authority_key", 'is needed with registrar = "authority": what `hansa authority key` prints.')
        elif self.registrar == "authority" and len(key_of(self.authority_key)) != KEY_BYTES:
            yield Problem("authority_key", no_key(self.authority_key, "`hansa authority key` prints it"))
        if self.registrar == "authority" and key_of(self.authority_key) in self.known_servers:
            yield Problem("authority_key", "is a server's key: an authority is another than the server.")
        if self.registrar != "authority" and self.authority_key:
            yield Problem("authority_key", 'goes with registrar = "authority", and with nothing else.')
