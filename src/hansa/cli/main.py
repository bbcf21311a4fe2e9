"""The command ``hansa``: one module per verb, and one place where failures become sentences."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from hansa.cli import check, compare, data, doctor, explain, init, replay, run
from hansa.cli.console import screen
from hansa.cli.failures import UnexpectedError, tell, tell_unexpected
from hansa.core.errors import HansaError
from hansa.core.settings import SETTINGS

_SETTINGS = "\n\n".join(f"{setting.name}: {setting.help} (default: {setting.default})." for setting in SETTINGS)

app = typer.Typer(
    name="hansa",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Environment: {_SETTINGS}",
)
for verb in (run, check, replay, compare, data, init, doctor, explain):
    app.command(name=verb.NAME)(verb.command)


def _version(wanted: bool) -> None:  # noqa: FBT001 - an option's callback
    if wanted:
        sys.stdout.write(f"hansa {metadata.version('hansa')}\n")
        raise typer.Exit


@app.callback()
def hansa(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Federated learning from one plan: train one model across owners of data that keep their data."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        app(words, prog_name="hansa")
    except HansaError as error:
        sys.exit(tell(screen(), error, as_json=as_json))
    except UnexpectedError as error:
        sys.exit(tell_unexpected(screen(), error.__cause__ or error, error.folder, as_json=as_json))
    except Exception as error:  # noqa: BLE001 - a user sees a sentence, whatever happens
        sys.exit(tell_unexpected(screen(), error, None, as_json=as_json))
