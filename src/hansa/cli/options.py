"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="End standard output with the answer as one JSON object.")]
"""Programs read the last line of standard output; everything else goes to standard error."""

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the plan: rounds=20. May be repeated."),
]
"""Keys of a plan, with dots and with numbers along arrays; values as in TOML, or else texts."""

ServerUrl = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The federation's server. Default: HANSA_SERVER.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Holds your operator token. Default: HANSA_TOKEN, or you are asked."
    ),
]
CaFile = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Trust servers of this authority only. Default: HANSA_CA.")
]
