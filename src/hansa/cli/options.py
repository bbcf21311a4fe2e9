"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="End standard output with the answer as one JSON object.")]
"""Programs read the last line of standard output; everything else goes to standard error."""

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the plan: rounds=20. May be repeated."),
]
"""Keys of a plan, with dots and with numbers along arrays; values as in TOML, or else texts."""
