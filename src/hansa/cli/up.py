"""``hansa up``: a federation that stays up on this machine, for a developer to play with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from hansa.cli.console import command_line, screen, sentence


def command(
    *,
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Where everything is kept; the same folder goes on where it was.")
    ] = Path("hansa-up"),
    port: Annotated[int, typer.Option(help="The server's port.", min=1, max=65535)] = 8443,
) -> None:
    """Keep a server and four hospital agents running on this machine, until Ctrl-C."""
    from hansa.algorithms.plan import recipe  # noqa: PLC0415 - help comes at once
    from hansa.cli.demo import POPULATION, local_hospitals  # noqa: PLC0415 - likewise
    from hansa.simulation.preparation import prepare  # noqa: PLC0415 - likewise

    console = screen()
    plan = recipe(
        "fedavg",
        name="hospitals",
        rounds=1,
        data={"source": "heart", "test_fraction": 0.25},
        model={"factory": "hansa.training.linear:logistic"},
        trainer={"kind": "linear", "epochs": 1, "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    )
    with local_hospitals(console, prepare(plan), folder.absolute(), port) as (federation, _):
        command_line(console, "pages", federation.url)
        command_line(console, "token", str(federation.token_file))
        command_line(console, "ca", str(federation.ca))
        options = f"--server {federation.url} --token-file {federation.token_file} --ca {federation.ca}"
        command_line(console, "submit", f"hansa submit PLAN.toml --population {POPULATION} {options}")
        sentence(console, "Ctrl-C stops everything; the same folder goes on where it was.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sentence(console, "stopping")
