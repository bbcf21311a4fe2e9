"""``hansa replay``: run a run folder's plan again and compare, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hansa.cli.console import print_json, screen
from hansa.cli.failures import running, tell
from hansa.cli.options import AsJson
from hansa.cli.progress import watch
from hansa.core.errors import RunError, described
from hansa.simulation.run import Replayed, replay


def command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Run a finished run again and compare it, bit for bit.

    Exit status 0: exactly the same. 4: files of the folder were changed since; they are named, and nothing is run.
    5: something came out differently.
    """
    console = screen()
    with watch(console) as seen, running(lambda: None):
        found = replay(run_folder, callbacks=[seen])
    error = _error(run_folder, found)
    answer = {
        "exact": error is None,
        "changed": list(found.changed),
        "differences": list(found.differences),
        "model_sha256": found.model_sha256,
    }
    if error is not None:
        status = tell(console, error, as_json=False)
        if as_json:
            print_json({**answer, "error": described(error)})
        raise typer.Exit(status)
    console.print(Text("exact: ", style="bold green").append(f"the same model, {found.model_sha256}", style="none"))
    if as_json:
        print_json(answer)


def _error(folder: Path, found: Replayed) -> RunError | None:
    """Return why the replay is not exact, or None."""
    if found.changed:
        return RunError(
            "HANSA-RUN-CHANGED",
            rule="A run can be replayed as long as its folder is what it wrote.",
            found=f"In {folder}, changed since: {', '.join(found.changed)}.",
            action="Restore what is named, or run the plan again.",
        )
    if found.differences:
        return RunError(
            "HANSA-RUN-DIFFERS",
            rule="The same plan, data, executor and environment give the same run, bit for bit.",
            found=f"This time it differs in: {'; '.join(found.differences)}.",
            action="Compare environment.json of the folder with this environment (hansa doctor).",
        )
    return None
