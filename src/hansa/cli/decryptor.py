"""``hansa decryptor``: a service of its own that helps to remove the masks of ``oneshot-seeds``."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.cli.console import command_line, print_json, screen
from hansa.cli.options import AsJson
from hansa.core.errors import HansaError

if TYPE_CHECKING:
    from hansa.decryptor.settings import DecryptorSettings

app = typer.Typer(no_args_is_help=True)


@app.command()
def serve(
    *,
    config: Annotated[Path, typer.Option("--config", metavar="decryptor.toml", help="Whom it serves, and how.")],
) -> None:
    """Serve until told to stop."""
    _require_extra()
    from hansa.decryptor.serve import serve as until_told  # noqa: PLC0415 - help comes at once
    from hansa.decryptor.settings import read_settings  # noqa: PLC0415

    settings = read_settings(config)
    asyncio.run(until_told(settings, ready=lambda service: _greet(settings, service.identity)))


@app.command()
def key(
    *,
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="The decryptor's folder.")] = Path(
        "hansa-decryptor"
    ),
    as_json: AsJson = False,
) -> None:
    """Print the decryptor's public key, for plans and for the policies of sites, and its fingerprint to read out."""
    from hansa.decryptor.own_files import fingerprint, identity  # noqa: PLC0415 - help comes at once

    public = identity(folder).public_key().public_bytes_raw()
    text = base64.b64encode(public).decode()
    command_line(screen(), "fingerprint", fingerprint(public))
    if as_json:
        print_json({"public_key": text, "fingerprint": fingerprint(public)})
    else:
        sys.stdout.write(f"{text}\n")


def _greet(settings: DecryptorSettings, public: bytes) -> None:
    """Say where the decryptor is, which key it has, and which certificate its servers trust."""
    from hansa.decryptor.own_files import CERTIFICATE  # noqa: PLC0415

    scheme = "http" if settings.tls == "off" else "https"
    command_line(screen(), "decryptor", f"{scheme}://{settings.host}:{settings.port}")
    command_line(screen(), "key", base64.b64encode(public).decode())
    if settings.tls == "own":
        command_line(screen(), "certificate", str(settings.place / CERTIFICATE))


def _require_extra() -> None:
    """Raise HansaError where the decryptor's libraries are not installed."""
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [name for name in ("granian", "starlette", "structlog") if not find_spec(name)]
    if missing:
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule="A decryptor needs its extra.",
            found=f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            action="pip install 'hansa[decryptor]'",
        )
