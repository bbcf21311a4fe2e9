"""``hansa decryptor``: a service of its own that helps to remove the masks of ``oneshot-seeds``."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hansa.cli.options import AsJson
from hansa.cli.service_commands import greet, print_key, require_extra

app = typer.Typer(no_args_is_help=True)


@app.command()
def serve(
    *,
    config: Annotated[Path, typer.Option("--config", metavar="decryptor.toml", help="Whom it serves, and how.")],
) -> None:
    """Serve until told to stop."""
    require_extra("decryptor")
    from hansa.decryptor.serve import serve as until_told  # noqa: PLC0415 - help comes at once
    from hansa.decryptor.settings import DecryptorSettings  # noqa: PLC0415

    settings = DecryptorSettings.read(config)
    asyncio.run(until_told(settings, ready=partial(greet, settings)))


@app.command()
def key(
    *,
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="The decryptor's folder.")] = Path(
        "hansa-decryptor"
    ),
    as_json: AsJson = False,
) -> None:
    """Print the decryptor's public key, for plans and for the policies of sites, and its fingerprint to read out."""
    print_key(folder, "decryptor", as_json=as_json)
