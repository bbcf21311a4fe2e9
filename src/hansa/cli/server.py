"""``hansa server``: serves federations, and looks after what a server keeps."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli.console import command_line, new_table, print_json, screen, sentence
from hansa.cli.operator_client import whole
from hansa.cli.options import AsJson
from hansa.cli.service_commands import warn_of_certificates
from hansa.core.errors import HansaError

if TYPE_CHECKING:
    from hansa.server.services import Services
    from hansa.server.settings import ServerSettings

app = typer.Typer()

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="hansa.toml", help="The settings. Without: SQLite and blobs in ./hansa-server."),
]


@app.callback(invoke_without_command=True)
def command(context: typer.Context, *, config: Config = None) -> None:
    """Serve until told to stop. Every setting is also a variable HANSA_SERVER_...: see `hansa server settings`."""
    if context.invoked_subcommand is not None:
        if config is not None:
            raise typer.BadParameter("give it after the command: hansa server COMMAND --config ...")
        return
    settings = _settings(config)
    from hansa.server import logs  # noqa: PLC0415 - help comes at once
    from hansa.server.serve import serve  # noqa: PLC0415

    logs.set_up(settings)
    _run(serve(settings, ready=lambda _: _greet(settings)))


@app.command()
def init(*, config: Config = None, as_json: AsJson = False) -> None:
    """Make the server's folder, database, certificates and first owner's token, without serving."""
    settings = _settings(config)

    async def make(services: Services) -> dict[str, Any]:
        from hansa.server.certificates import tls_files  # noqa: PLC0415
        from hansa.server.tokens import first_token  # noqa: PLC0415

        files = tls_files(settings, services.clock)
        token = await first_token(services.store, settings, services.clock.now())
        ca = None if files is None or files.ca is None else str(files.ca)
        return {"folder": str(settings.place), "url": settings.url, "ca": ca, "token": token and str(token)}

    made = _with_services(settings, make)
    _greet(settings)
    if as_json:
        print_json(made)


@app.command()
def settings(*, config: Config = None, as_json: AsJson = False) -> None:
    """List every setting with its value, its variable and what it does; check them all."""
    from hansa.core import schema  # noqa: PLC0415
    from hansa.server.settings import ServerSettings, variable  # noqa: PLC0415

    read = _settings(config)
    fields = schema.fields_of(ServerSettings)
    secret = {"database", "metrics_token"}
    values = {name: "(set)" if name in secret and getattr(read, name) else getattr(read, name) for name in fields}
    table = whole(new_table(("setting", "value", "variable", "what it does"), texts=4), 0, 2)
    for name, field in fields.items():
        value = values[name]
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        table.add_row(name, text, variable(name), field.help)
    screen().print(table)
    if as_json:
        print_json({"settings": values})


@app.command()
def tenant(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The organisation.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where its owner's token is written to.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Add a tenant: an organisation that no other on this server sees."""

    async def make(services: Services) -> None:
        from hansa.server.tokens import owner_token  # noqa: PLC0415

        async with services.store.transaction() as rows:
            await rows.tenants.add(name)
        await owner_token(services.store, name, out, services.clock.now())

    _require_new(out)
    _with_services(_settings(config), make)
    _tell_token(name, out, as_json=as_json)


@app.command(name="owner-token")
def owner_token_(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="The organisation.")] = "default",
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the token is written to.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make another token of a tenant's owner, where all are lost."""

    async def make(services: Services) -> None:
        from hansa.server.tokens import owner_token  # noqa: PLC0415

        await owner_token(services.store, name, out, services.clock.now())

    _require_new(out)
    _with_services(_settings(config), make)
    _tell_token(name, out, as_json=as_json)


@app.command()
def upgrade(*, config: Config = None, as_json: AsJson = False) -> None:
    """Bring the database to this version's schema."""
    from hansa.store import schema  # noqa: PLC0415

    read = _settings(config)
    read.make_folder()
    _tell_schema(schema.upgrade(schema.parse_url(read.database_url)), as_json=as_json)


@app.command()
def downgrade(
    number: Annotated[int, typer.Argument(metavar="SCHEMA", help="The schema of the older version.", min=0)],
    *,
    forget_ledger: Annotated[
        bool, typer.Option("--forget-ledger", help="Also where what privacy was spent is forgotten: export it first.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Take the database back to an older version's schema. What was added since is lost: back up first."""
    from hansa.store import schema  # noqa: PLC0415

    read = _settings(config)
    url = schema.parse_url(read.database_url)
    _tell_schema(schema.downgrade(url, number, forget_ledger=forget_ledger), as_json=as_json)


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")],
    *,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Copy database and blobs while the server goes on. Keys are left out: back them up apart."""
    from hansa.store.backup import back_up  # noqa: PLC0415 - help comes at once

    read = _settings(config)
    size = back_up(read.database_url, _blob_folder(read), out, now=time.time())
    command_line(screen(), "backup", str(out))
    sentence(screen(), f"Not in it, on purpose: the keys in {read.keys_url}. Keep a copy of them elsewhere.")
    if as_json:
        print_json({"folder": str(out), "bytes": size})


@app.command()
def restore(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="What `hansa server backup` wrote. Without: the database was put back by pg_restore."
        ),
    ] = None,
    *,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup in place. The server must not run; nothing is overwritten; the keys are put back by you."""
    from hansa.store.backup import restore as put_back  # noqa: PLC0415 - help comes at once

    read, now = _settings(config), time.time()
    read.make_folder()
    if source is None:
        abandoned = _run(_put_back(read, now))
    else:
        abandoned = _run(put_back(source, read.database_url, _blob_folder(read), now=now))
    rounds = f"{abandoned} open round{' was' if abandoned == 1 else 's were'}"
    sentence(screen(), f"Restored; {rounds} given up, and will be tried again.")
    own = f", and {read.place / 'tls'} (or clients trust the server no more)" if read.tls == "development" else ""
    sentence(screen(), f"Put the keys back into {read.keys_url}{own}; then start the server.")
    if as_json:
        print_json({"folder": str(read.place), "abandoned": abandoned})


async def _put_back(settings: ServerSettings, now: float) -> int:
    """Do what is to be done after a database was put back by other means; return how many rounds were given up."""
    from hansa.store.backup import after_restore  # noqa: PLC0415 - help comes at once
    from hansa.store.store import Store  # noqa: PLC0415

    store = await Store.open(settings.database_url)
    try:
        return await after_restore(store, now=now)
    finally:
        await store.close()


@app.command()
def key(*, config: Config = None, as_json: AsJson = False) -> None:
    """Print the public key that signs for the server now, as decryptors name it among their server_keys."""

    async def current(services: Services) -> str:
        return base64.b64encode(services.signer.published()[-1].public_key).decode()

    found = _with_services(_settings(config), current)
    if as_json:
        print_json({"public_key": found})
    else:
        sys.stdout.write(f"{found}\n")


@app.command(name="rotate-key")
def rotate_key(*, config: Config = None, as_json: AsJson = False) -> None:
    """Make another key that signs assignments. The last one vouches for it, and clients follow by themselves."""

    async def make(services: Services) -> str:
        return await services.signer.rotate()

    made = _with_services(_settings(config), make)
    command_line(screen(), "key", made)
    if as_json:
        print_json({"key": made})


@app.command(name="rotate-ca")
def rotate_ca(*, config: Config = None, as_json: AsJson = False) -> None:
    """Make another development authority, which the last vouches for. Then restart the server; hand out ca.pem."""
    from hansa.core.clock import SystemClock  # noqa: PLC0415
    from hansa.server.certificates import FOLDER, DevelopmentAuthority  # noqa: PLC0415

    authority = DevelopmentAuthority(_settings(config).make_folder() / FOLDER, SystemClock())
    authority.rotate()
    command_line(screen(), "ca", str(authority.bundle))
    if as_json:
        print_json({"ca": str(authority.bundle)})


def _blob_folder(settings: ServerSettings) -> Path | None:
    """Return the folder of the blobs, or None where they are in an object store, which has its own versions."""
    return None if "://" in settings.blobs_url else Path(settings.blobs_url)


def _settings(config: Path | None) -> ServerSettings:
    _require_extra()
    from hansa.server.settings import read_settings  # noqa: PLC0415 - help comes at once

    return read_settings(config)


def _with_services(settings: ServerSettings, use: Callable[[Services], Any]) -> Any:
    """Return what comes of using the server's stores, opened for this and closed after."""
    from hansa.server.serve import open_services  # noqa: PLC0415

    async def work() -> Any:
        async with open_services(settings) as services:
            return await use(services)

    return _run(work())


def _run(work: Any) -> Any:
    return asyncio.run(work)


def _require_extra() -> None:
    """Raise HansaError where the server's libraries are not installed."""
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [
        name for name in ("sqlalchemy", "fastapi", "granian", "cryptography", "structlog") if not find_spec(name)
    ]
    if missing:
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule="A server needs its extra.",
            found=f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            action="pip install 'hansa[server]'",
        )


def _require_new(path: Path) -> None:
    if path.exists():
        raise typer.BadParameter(f"{path} exists; name a new file.", param_hint="--out")


def _greet(settings: ServerSettings) -> None:
    """Say where the server is, whom to trust, and with which token to begin."""
    from hansa.server.certificates import FOLDER  # noqa: PLC0415
    from hansa.server.tokens import OWNER_TOKEN  # noqa: PLC0415

    console = screen()
    command_line(console, "server", settings.url)
    ca, token = settings.place / FOLDER / "ca.pem", settings.place / OWNER_TOKEN
    if settings.tls == "development" and ca.exists():
        command_line(console, "ca", str(ca))
    if settings.client_certificates != "none":
        command_line(console, "clients", f"certificate {settings.client_certificates}, of {settings.client_ca}")
    if token.exists():
        command_line(console, "token", str(token))
    named = ("tls_certificate", "client_ca", "enrolment_ca", "decryptor_ca", "authority_ca")
    warn_of_certificates(*((name, getattr(settings, name)) for name in named))


def _tell_token(tenant: str, path: Path, *, as_json: bool) -> None:
    command_line(screen(), "token", str(path))
    if as_json:
        print_json({"tenant": tenant, "token_file": str(path)})


def _tell_schema(found: Any, *, as_json: bool) -> None:
    command_line(screen(), "schema", f"{found.number}, served by versions for {found.oldest} or newer")
    if as_json:
        print_json({"schema": found.number, "oldest": found.oldest})
