"""Settings that every service apart from the server has: one TOML file, in which its operator says whom it answers."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from annotated_types import Ge, Le, MinLen

from hansa.core import schema
from hansa.core.certificate_files import unusable_pair
from hansa.core.errors import Problem, SettingsError
from hansa.core.schema import Doc
from hansa.serving.own_files import OwnFiles

KEY_BYTES: Final = 32
_SHOWN: Final = 48
"""Characters of what should be a key, and is none, that are shown."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What can be set about any service. Raises SettingsError for values that do not fit each other."""

    noun: ClassVar[str]
    """What the service is, in sentences, in its log, and in the codes of its errors."""

    operator: Annotated[str, MinLen(1), Doc("the organisation that runs it, as plans name it")]
    server_keys: Annotated[
        tuple[str, ...], MinLen(1), Doc("keys of the servers that it answers, as `hansa server key` prints them")
    ]
    folder: Annotated[
        str, MinLen(1), Doc("where it keeps its key and what it must not forget; made with mode 0700, for one process")
    ]
    host: Annotated[str, MinLen(1), Doc("address to listen on; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, Ge(1), Le(65535), Doc("port to listen on")]
    tls: Annotated[
        Literal["own", "files", "off"],
        Doc("a certificate of its own, made at first start; certificate files; or none, behind a proxy that has it"),
    ] = "own"
    tls_certificate: Annotated[str, Doc('tls = "files": the certificate and its chain, PEM')] = ""
    tls_key: Annotated[str, Doc('tls = "files": the private key, PEM')] = ""
    host_names: Annotated[
        tuple[str, ...], Doc("names and addresses beside localhost that its own certificate is for")
    ] = ()

    def __post_init__(self) -> None:
        if problems := [*self._problems()]:
            raise self.unfit(problems)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the settings of a file. Raises SettingsError with every problem and its key path."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise cls.unfit([Problem(str(path), f"cannot be read: {error.strerror or error}.")]) from None
        except (ValueError, RecursionError) as error:
            raise cls.unfit([Problem(str(path), f"is no TOML: {str(error).rstrip('.')}.")]) from None
        values, problems = schema.from_mapping(cls, tables)
        if problems:
            raise cls.unfit(problems)
        return cls(**values)

    @classmethod
    def unfit(cls, problems: list[Problem]) -> SettingsError:
        """Return what to say of settings with problems."""
        code, subject = f"HANSA-{cls.noun.upper()}-SETTINGS", f"the {cls.noun}'s configuration"
        return SettingsError(problems, code=code, subject=subject)

    @property
    def own(self) -> OwnFiles:
        """Return the folder and what is in it."""
        return OwnFiles(Path(self.folder), self.noun)

    @property
    def known_servers(self) -> tuple[bytes, ...]:
        """Return the servers' keys, 32 bytes each."""
        return tuple(map(key_of, self.server_keys))

    def _problems(self) -> Iterator[Problem]:
        yield from self._unfit_keys("server_keys")
        for name in ("tls_certificate", "tls_key"):
            value = getattr(self, name)
            if bool(value) != (self.tls == "files"):
                yield Problem(name, 'goes with tls = "files", and with nothing else.')
            elif value and not Path(value).is_file():
                yield Problem(name, f"there is no file {value}.")
        if found := unusable_pair(self.tls_certificate, self.tls_key):
            yield Problem(f"tls_{found.of}", found.why)

    def _unfit_keys(self, name: str) -> Iterator[Problem]:
        for position, text in enumerate(getattr(self, name)):
            if len(key_of(text)) != KEY_BYTES:
                yield Problem(f"{name}.{position}", no_key(text, "the commands print them"))


def no_key(text: str, printed: str) -> str:
    """Return what is wrong with a public key that is none; ``printed``: what prints them."""
    return f"is {text[:_SHOWN]!r}, which is no key: 32 bytes in base64, as {printed}."


def key_of(text: str) -> bytes:
    """Return the bytes of a key as the commands print it; none where it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
