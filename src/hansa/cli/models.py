"""``hansa models``: what runs gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.cli.console import command_line, new_table, print_json, screen, sentence
from hansa.cli.operator_client import Operator, in_path, operator, when, whole
from hansa.cli.options import AsJson, CaFile, ServerUrl, TokenFile
from hansa.core.errors import RunError

app = typer.Typer()

Model = Annotated[
    str, typer.Argument(metavar="MODEL|RUN", help="A model's digest or its beginning, or a run: its newest model.")
]


@app.callback(invoke_without_command=True)
def command(  # noqa: PLR0913 - a command's options
    context: typer.Context,
    *,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Only those of this run.")] = None,
    limit: Annotated[int, typer.Option(help="How many, at most.", min=1, max=1000)] = 20,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the models that runs gave; download one, or take it to another stage."""
    if context.invoked_subcommand is not None:
        return
    with operator(server, token_file, ca) as calls:
        found = calls.get("/models", run=run, limit=limit)
    _show(found["models"])
    if as_json:
        print_json(found)


@app.command()
def download(  # noqa: PLR0913 - a command's options
    which: Model,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to; it must not exist.")] = Path("model.safetensors"),
    as_served: Annotated[
        bool, typer.Option("--as-served", help="As clients fetch it: one vector, without names of parameters.")
    ] = False,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Download a model as a safetensors file, its parameters by name, as a simulation writes it."""
    with operator(server, token_file, ca) as calls:
        release = _release(calls, which)
        content = calls.download(f"/models/{release['sha256']}")
        _require_digest(content, release["sha256"])
        if not as_served:
            content = _named(calls, release, content)
    _write(out, content)
    command_line(screen(), "model", str(out))
    if as_json:
        print_json({**release, "file": str(out)})


@app.command()
def stage(  # noqa: PLR0913 - a command's options
    which: Model,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="candidate, canary, production or retired.")],
    *,
    server: ServerUrl = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Take a model to another stage."""
    with operator(server, token_file, ca) as calls:
        found = calls.call("PUT", f"/models/{_release(calls, which)['sha256']}/stage", {"stage": stage})
    _show([found])
    if as_json:
        print_json(found)


def _release(calls: Operator, which: str) -> dict[str, Any]:
    """Return the release that a digest, its beginning or a run names; of a run the newest."""
    of_run = which.startswith("run-")
    found = calls.get("/models", run=which if of_run else None, limit=1 if of_run else 1000)["models"]
    fitting = [each for each in found if of_run or each["sha256"].startswith(which)]
    if len({each["sha256"] for each in fitting}) != 1:
        raise RunError(
            "HANSA-NOT-FOUND",
            rule="A model is named by its digest, the beginning of it, or its run.",
            found=f"{which} names {len(fitting) or 'none'} of the newest models.",
            action="List them with: hansa models.",
        )
    release: dict[str, Any] = fitting[0]
    return release


def _require_digest(content: bytes, sha256: str) -> None:
    import hashlib  # noqa: PLC0415 - with a download

    if hashlib.sha256(content).hexdigest() != sha256:
        raise RunError(
            "HANSA-UPLOAD-DIGEST",
            rule="A model has the digest that names it.",
            found="What arrived has another.",
            action="Download it again.",
        )


def _named(calls: Operator, release: dict[str, Any], content: bytes) -> bytes:
    """Return a served model as a file with its parameters by name."""
    from hansa.algorithms.plan import plan_from_mapping  # noqa: PLC0415 - help comes at once
    from hansa.algorithms.rounds import travelling_layout  # noqa: PLC0415
    from hansa.core.nouns import ServerState  # noqa: PLC0415
    from hansa.wire.jobs import layout_from_mapping  # noqa: PLC0415
    from hansa.wire.models import model_bytes  # noqa: PLC0415
    from hansa.wire.server_models import ServedModel  # noqa: PLC0415

    run = calls.get(f"/runs/{in_path(release['run'])}")
    job = calls.get(f"/jobs/{run['job']}")
    plan = plan_from_mapping(job["plan"])
    layout = travelling_layout(plan, layout_from_mapping(job["layout"]))
    served = ServedModel.from_bytes(content, layout.size)
    state = ServerState(release["round"], layout, served.values, slots={}, features=served.features)
    return model_bytes(plan, state)


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise RunError(
            "HANSA-OUTPUT-FILE",
            rule="A file that exists is never overwritten.",
            found=f"{path} cannot be written: {error.strerror or error}.",
            action="Choose another --out.",
        ) from None


def _show(models: list[dict[str, Any]]) -> None:
    if not models:
        sentence(screen(), "no models yet: a round of training must close first")
        return
    table = whole(new_table(("model", "run", "stage", "at", "round"), texts=4), 0, 1, 2, 3, 4)
    for each in models:
        table.add_row(each["sha256"][:16], each["run"], each["stage"], when(each["at"]), str(each["round"]))
    screen().print(table)
