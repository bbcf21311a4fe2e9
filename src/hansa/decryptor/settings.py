"""Settings of a decryptor: one TOML file, in which its operator says whom it serves and from how many clients on."""

from __future__ import annotations

import base64
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from annotated_types import Ge, Gt, Le, MinLen

from hansa.core import schema
from hansa.core.certificate_files import unusable_pair
from hansa.core.errors import Problem, SettingsError
from hansa.core.schema import Doc

FOLDER: Final = "hansa-decryptor"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KEY_BYTES: Final = 32
_MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class DecryptorSettings:
    """Everything that can be set about a decryptor. Raises SettingsError for values that do not fit each other."""

    operator: Annotated[str, MinLen(1), Doc("the organisation that runs it, as plans name it")]
    server_keys: Annotated[
        tuple[str, ...], MinLen(1), Doc("keys of the servers that it answers, as `hansa server key` prints them")
    ]
    registrar: Annotated[
        Literal["pinned", "server"],
        Doc("who vouches for the clients' keys: this list of peers, or the server, who could invent clients"),
    ] = "pinned"
    peers: Annotated[
        tuple[str, ...],
        Doc(
            "keys of all clients that may take part, as `hansa client key` prints them; reports of others are left out"
        ),
    ] = ()
    minimum_survivors: Annotated[
        int, Ge(3), Doc("fewest clients whose sum of masks it gives, whatever a plan says")
    ] = 3
    plans: Annotated[
        tuple[str, ...], Doc("SHA-256 of the plans that it serves (`hansa check` prints it); empty: all")
    ] = ()
    folder: Annotated[
        str, MinLen(1), Doc("where it keeps its key and what it has answered; made with mode 0700, for one process")
    ] = FOLDER
    host: Annotated[str, MinLen(1), Doc("address to listen on; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, Ge(1), Le(65535), Doc("port to listen on")] = 8444
    tls: Annotated[
        Literal["own", "files", "off"],
        Doc("a certificate of its own, made at first start; certificate files; or none, behind a proxy that has it"),
    ] = "own"
    tls_certificate: Annotated[str, Doc('tls = "files": the certificate and its chain, PEM')] = ""
    tls_key: Annotated[str, Doc('tls = "files": the private key, PEM')] = ""
    host_names: Annotated[
        tuple[str, ...], Doc("names and addresses beside localhost that its own certificate is for")
    ] = ()
    keep_days: Annotated[
        float, Gt(0), Doc("days that the keys of a round are kept while nobody asks, and an answer for who repeats")
    ] = 7.0
    largest_request_bytes: Annotated[int, Ge(4096), Doc("the largest body of a call")] = 64 * _MIB
    threads: Annotated[int, Ge(1), Doc("threads that add masks")] = 1

    def __post_init__(self) -> None:
        if problems := [*self._problems()]:
            raise unfit(problems)

    @property
    def place(self) -> Path:
        """Return the folder."""
        return Path(self.folder)

    @property
    def known_servers(self) -> tuple[bytes, ...]:
        """Return the servers' keys, 32 bytes each."""
        return tuple(map(_key, self.server_keys))

    @property
    def known_peers(self) -> frozenset[bytes]:
        """Return the clients' keys, 32 bytes each."""
        return frozenset(map(_key, self.peers))

    def _problems(self) -> Iterator[Problem]:
        for name in ("server_keys", "peers"):
            for position, text in enumerate(getattr(self, name)):
                if len(_key(text)) != _KEY_BYTES:
                    yield Problem(f"{name}.{position}", "is no key: 32 bytes in base64, as the commands print them.")
        for position, text in enumerate(self.plans):
            if not _DIGEST.fullmatch(text):
                yield Problem(f"plans.{position}", "is no SHA-256 of a plan: 64 digits of 0-9 and a-f.")
        if self.registrar == "pinned" and len(self.peers) < self.minimum_survivors:
            yield Problem("peers", f"are {len(self.peers)}, fewer than minimum_survivors: list them, or set registrar.")
        yield from self._tls_problems()

    def _tls_problems(self) -> Iterator[Problem]:
        for name in ("tls_certificate", "tls_key"):
            value = getattr(self, name)
            if bool(value) != (self.tls == "files"):
                yield Problem(name, 'goes with tls = "files", and with nothing else.')
            elif value and not Path(value).is_file():
                yield Problem(name, f"there is no file {value}.")
        if found := unusable_pair(self.tls_certificate, self.tls_key):
            yield Problem("tls_key", found)


def read_settings(path: Path) -> DecryptorSettings:
    """Return the settings of a file. Raises SettingsError with every problem and its key path."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unfit([Problem(str(path), f"cannot be read: {error.strerror or error}.")]) from None
    except (ValueError, RecursionError) as error:
        raise unfit([Problem(str(path), f"is no TOML: {str(error).rstrip('.')}.")]) from None
    values, problems = schema.from_mapping(DecryptorSettings, tables)
    if problems:
        raise unfit(problems)
    return DecryptorSettings(**values)


def unfit(problems: list[Problem]) -> SettingsError:
    """Return what to say of settings with problems."""
    return SettingsError(problems, code="HANSA-DECRYPTOR-SETTINGS", subject="the decryptor's configuration")


def _key(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
