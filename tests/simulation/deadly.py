"""Pieces for the tests of worker processes: they end the process that they run in, or refuse, when a file says so."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hansa.algorithms.transforms import Identity
from hansa.core.errors import ModelError
from hansa.core.schema import Doc


class AwkwardError(Exception):
    """An error that pickle writes but cannot read."""

    def __init__(self, *, rule: int) -> None:
        super().__init__(f"rule {rule} is broken")


@dataclass(frozen=True, kw_only=True)
class Deadly(Identity):
    """Kills its process in a round: once if the file ``folder/once`` is there, whenever ``folder/always`` is."""

    folder: Annotated[str, Doc("where the files are")]
    round: Annotated[int, Doc("the round in which it kills")] = 2

    def encode(self, batch, context, states):
        if context.assignment.round == self.round:
            here = Path(self.folder)
            try:
                (here / "once").unlink()
            except FileNotFoundError:
                if (here / "refuse").exists():
                    raise ModelError(
                        "HANSA-MODEL-UNSUITABLE", rule="A rule.", found="A worker found it.", action="Mend it."
                    ) from None
                if (here / "awkward").exists():
                    raise AwkwardError(rule=7) from None
                if (here / "break").exists():
                    raise ZeroDivisionError("a piece of the user's own fails") from None
                if not (here / "always").exists():
                    return batch
            os.kill(os.getpid(), signal.SIGKILL)
        return batch
