"""``hansa authority``: a service of its own that vouches for the keys of the clients of secure sums."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.cli.console import command_line, print_json, screen
from hansa.cli.options import AsJson
from hansa.cli.service_commands import greet, print_key, require_extra
from hansa.core.errors import HansaError, RefusedError

if TYPE_CHECKING:
    from hansa.authority.vouched import Vouched

app = typer.Typer(no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="The authority's folder.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A client's key, as `hansa client key` prints it at the site.")]
_FOLDER = Path("hansa-authority")


@app.command()
def serve(
    *,
    config: Annotated[Path, typer.Option("--config", metavar="authority.toml", help="Whom it answers, and how.")],
) -> None:
    """Serve until told to stop."""
    require_extra("authority")
    from hansa.authority.serve import serve as until_told  # noqa: PLC0415 - help comes at once
    from hansa.authority.settings import AuthoritySettings  # noqa: PLC0415

    settings = AuthoritySettings.read(config)
    asyncio.run(until_told(settings, ready=partial(greet, settings)))


@app.command()
def key(*, folder: Folder = _FOLDER, as_json: AsJson = False) -> None:
    """Print the authority's public key, for plans and for the policies of sites, and its fingerprint to read out."""
    print_key(folder, "authority", as_json=as_json)


@app.command()
def vouch(
    key: Key,
    *,
    comment: Annotated[str, typer.Option("--comment", metavar="TEXT", help="Whose it is, for the list alone.")] = "",
    folder: Folder = _FOLDER,
    as_json: AsJson = False,
) -> None:
    """Add a client's key to the list; a service that runs takes it at its next answer."""
    vouched = _list(folder)
    changed = vouched.add(key, comment)
    _tell("added" if changed else "is there already", vouched, changed=changed, as_json=as_json)


@app.command()
def withdraw(key: Key, *, folder: Folder = _FOLDER, as_json: AsJson = False) -> None:
    """Take a client's key off the list: no roster that holds it is vouched for from the next answer on."""
    vouched = _list(folder)
    if not vouched.remove(key):
        raise RefusedError(
            "HANSA-AUTHORITY-UNLISTED",
            rule="A key that is taken off an authority's list is on it.",
            found=f"The list in {folder} does not hold {key.strip()}.",
            action="Look whether the folder is the authority's, and whether the list holds another key of that site.",
        )
    _tell("taken off", vouched, changed=True, as_json=as_json)


def _list(folder: Path) -> Vouched:
    """Return the list in an authority's folder. Raises HansaError where that is none."""
    from hansa.authority.vouched import Vouched  # noqa: PLC0415 - help comes at once
    from hansa.serving.own_files import KEY, OwnFiles  # noqa: PLC0415

    try:
        found = "is no folder" if not folder.is_dir() else "" if (folder / KEY).exists() else "holds no authority's key"
    except OSError as error:
        found = f"cannot be looked at: {error.strerror or error}"
    if found:
        raise HansaError(
            "HANSA-AUTHORITY-FOLDER",
            rule="An authority's list is changed in its folder, where it has its key.",
            found=f"{folder} {found}.",
            action="Name the folder with --folder; `hansa authority key --folder DIR` makes a new authority's.",
        )
    return Vouched(OwnFiles(folder, "authority"))


def _tell(what: str, vouched: Vouched, *, changed: bool, as_json: bool) -> None:
    keys = len(vouched.keys())
    command_line(screen(), "key", what)
    command_line(screen(), "list", f"{keys} key{'s' if keys != 1 else ''}")
    if as_json:
        print_json({"changed": changed, "keys": keys})
