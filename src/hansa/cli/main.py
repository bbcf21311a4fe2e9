"""The command ``hansa``: one module per verb, and one place where failures become sentences.

Only the verb that is asked for is imported, so that help comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated, Any, Final

import typer

from hansa.cli.console import screen
from hansa.cli.failures import (
    UnexpectedError,
    guarded,
    is_usage,
    out_of_memory,
    tell,
    tell_unexpected,
    tell_usage,
)
from hansa.core.errors import HansaError
from hansa.core.settings import SETTINGS

_SETTINGS = "\n\n".join(f"{setting.name}: {setting.help} (default: {setting.default})." for setting in SETTINGS)

VERBS: Final = {
    "demo": "Train across four hospitals: a server and four agents as processes on this machine, over TLS.",
    "up": "Keep a server and four hospital agents running on this machine, until Ctrl-C.",
    "run": "Run a plan in simulation: train, compare, and write a run folder with a report.",
    "check": "Say what a plan promises and what it costs, or list every problem with its key path.",
    "replay": "Run a finished run again and compare it, bit for bit.",
    "compare": "Show finished runs side by side: results, rounds to a target, costs, and where their plans differ.",
    "data": "List the sources of examples; or show the clients, sizes and label skew of one source or plan.",
    "init": "Write a commented plan for your own table, ready to run.",
    "server": "Serve federations: the client protocol, the operator API and its pages. Also: init, backup, upgrade.",
    "decryptor": "Run a decryptor of one-shot secure sums, apart from the server: serve, key.",
    "authority": "Run an authority that vouches for clients' keys, apart from the server: serve, key, vouch, withdraw.",
    "client": "Take part in a federation with a site's own data, which stay where they are.",
    "submit": "Submit a plan to a server; the initial model is built here, from the code that the plan names.",
    "runs": "List the runs of a server, or pause, resume, cancel, prioritise one.",
    "rounds": "List the rounds of a run, with who took part and what was measured.",
    "populations": "List populations of a server; create or change one.",
    "clients": "List and count the clients of a population; invite, suspend, resume, retire one.",
    "models": "List the models that runs gave; download one, or take it to another stage.",
    "ledger": "Show privacy budgets and what was spent, export and verify the ledger; set a budget.",
    "events": "List what happened on a server, in its order: the newest events, or those after a number.",
    "tokens": "List operator tokens; create or revoke one.",
    "bench": "Measure what parts of Hansa cost on this machine.",
    "dp": "Say what differential privacy costs, or which noise, rounds or cohort a budget pays for.",
    "doctor": "Say what is installed, what is missing for what, and what this machine has.",
    "explain": "Say what an error code means and with which exit status a command ends; without one, list all.",
}
"""Every verb with the first line of its help; a module of that name holds its command."""


def build(words: Sequence[str]) -> typer.Typer:
    """Return the command line with the one verb that ``words`` ask for, and the names of the others."""
    app = typer.Typer(
        name="hansa",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=f"Environment: {_SETTINGS}",
        callback=hansa,
    )
    wanted = next((word for word in words if not word.startswith("-")), None)
    for verb, text in VERBS.items():
        if verb == wanted:
            _add(app, verb, import_module(f"hansa.cli.{verb}"))
        else:
            app.command(name=verb, help=text)(lambda: None)
    return app


def _add(app: typer.Typer, verb: str, module: Any) -> None:
    """Add a verb: the ``command`` of its module, or the commands of the ``app`` that the module has instead."""
    below: typer.Typer | None = getattr(module, "app", None)
    if below is None:
        app.command(name=verb)(guarded(module.command))
        return
    below.info.help = VERBS[verb]
    for each in (*below.registered_commands, below.registered_callback):
        if each is not None and each.callback is not None:
            each.callback = guarded(each.callback)
    app.add_typer(below, name=verb)


def _version(wanted: bool) -> None:  # noqa: FBT001 - an option's callback
    if wanted:
        sys.stdout.write(f"hansa {metadata.version('hansa')}\n")
        raise typer.Exit


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
        status = build(words)(words, prog_name="hansa", standalone_mode=False)
        sys.exit(status or 0)
    except HansaError as error:
        sys.exit(tell(screen(), error, as_json=as_json))
    except UnexpectedError as error:
        sys.exit(tell_unexpected(screen(), error.__cause__ or error, error.folder, as_json=as_json))
    except MemoryError as error:
        sys.exit(tell(screen(), out_of_memory(error), as_json=as_json))
    except Exception as error:  # noqa: BLE001 - a user sees a sentence, whatever happens
        if is_usage(error):
            sys.exit(tell_usage(screen(), error, as_json=as_json))
        sys.exit(tell_unexpected(screen(), error, None, as_json=as_json))
