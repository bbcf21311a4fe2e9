"""Settings from the environment: one table that feeds the code, the command line's help and the reference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Setting:
    """One environment variable: its name, what holds without it (in words), and what it does."""

    name: str
    default: str
    help: str
    secret: bool = False
    """Never shown."""


TRACEBACK: Final = Setting("HANSA_TRACEBACK", "0", "1 prints the full traceback of an unexpected error")
CACHE: Final = Setting(
    "HANSA_CACHE",
    "the user's cache folder",
    "the folder for unpacked copies of large compressed arrays, and for what --executor auto chose",
)

KILL_AT: Final = Setting("HANSA_KILL_AT", "never", "for tests of recovery: the kill point at which the process dies")

SERVER: Final = Setting("HANSA_SERVER", "none", "the URL of the server that clients and operator commands call")
CA: Final = Setting("HANSA_CA", "those of the system", "the file of the authority by which that server is trusted, PEM")
CERTIFICATE: Final = Setting(
    "HANSA_CERTIFICATE", "none", "the file of the certificate, with its chain, that is shown to that server, PEM"
)
CERTIFICATE_KEY: Final = Setting("HANSA_CERTIFICATE_KEY", "none", "the file of that certificate's private key, PEM")
TOKEN: Final = Setting(
    "HANSA_TOKEN",
    "none",
    "the token of operator commands, or the one-time token with which `hansa client` enrols",
    secret=True,
)

UPLOAD_PART: Final = Setting(
    "HANSA_UPLOAD_PART", "8388608", "bytes of one part of an upload of `hansa client`, at most 8 MiB"
)

SETTINGS: Final = (CACHE, TRACEBACK, SERVER, CA, CERTIFICATE, CERTIFICATE_KEY, TOKEN, UPLOAD_PART, KILL_AT)
"""Every setting, by name."""

_OFF: Final = frozenset({"", "0", "false", "no", "off"})


def value_of(setting: Setting) -> str | None:
    """Return what the environment says of a setting, or None where it is not set or empty."""
    return os.environ.get(setting.name) or None


def path_of(setting: Setting) -> Path | None:
    """Return the file that the environment names, or None where it names none."""
    return Path(named) if (named := value_of(setting)) else None


def cache_folder() -> Path:
    """Return the user's cache folder: HANSA_CACHE, or where the system keeps caches. It may not exist yet."""
    if named := value_of(CACHE):
        return Path(named)
    import platformdirs  # noqa: PLC0415 - needed where something is cached

    return Path(platformdirs.user_cache_dir("hansa"))


def is_on(setting: Setting) -> bool:
    """Return True for a switch that the environment turns on."""
    return os.environ.get(setting.name, setting.default).strip().lower() not in _OFF
