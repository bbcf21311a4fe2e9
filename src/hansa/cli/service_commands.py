"""What the commands of services apart from the server share: ``hansa decryptor``, ``hansa authority``."""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.text import Text

from hansa.cli.console import command_line, print_json, screen
from hansa.core.errors import HansaError

if TYPE_CHECKING:
    from hansa.serving.settings import ServiceSettings

_LABEL: Final = len("certificate")


def print_key(folder: Path, noun: str, *, as_json: bool) -> None:
    """Print the public key in a service's folder, and its fingerprint to read out."""
    from hansa.serving.own_files import OwnFiles, fingerprint  # noqa: PLC0415 - help comes at once

    public = OwnFiles(folder, noun).identity().public_key().public_bytes_raw()
    text = base64.b64encode(public).decode()
    command_line(screen(), "fingerprint", fingerprint(public))
    if as_json:
        print_json({"public_key": text, "fingerprint": fingerprint(public)})
    else:
        sys.stdout.write(f"{text}\n")


def greet(settings: ServiceSettings, public: bytes) -> None:
    """Say where a service is, which key it has, and which certificate its servers trust."""
    from hansa.serving.own_files import CERTIFICATE  # noqa: PLC0415

    scheme = "http" if settings.tls == "off" else "https"
    command_line(screen(), settings.noun, f"{scheme}://{settings.host}:{settings.port}", width=_LABEL)
    command_line(screen(), "key", base64.b64encode(public).decode(), width=_LABEL)
    warn_of_certificates(("tls_certificate", settings.tls_certificate))
    if settings.tls == "own":
        command_line(screen(), "certificate", str(settings.own.place / CERTIFICATE), width=_LABEL)


def warn_of_certificates(*files: tuple[str, str]) -> None:
    """Warn of files of certificates, each with its setting, that hold one which is not valid now."""
    from hansa.core.certificate_files import invalid_now  # noqa: PLC0415 - help comes at once

    for setting, path in files:
        if path and (found := invalid_now(path, time.time())):
            told = Text("warning: ", style="yellow").append(f"{setting}: {found}", style="none")
            screen().print(told, soft_wrap=True)


def require_extra(noun: str) -> None:
    """Raise HansaError where a service's libraries are not installed."""
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [name for name in ("granian", "starlette", "structlog") if not find_spec(name)]
    if missing:
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule=f"The {noun} needs its extra.",
            found=f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            action=f"pip install 'hansa[{noun}]'",
        )
