"""Errors that a user may see: the rule, what was found, what to do, and a stable code."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

CATALOGUE: Final[dict[str, tuple[int, str]]] = {
    "HANSA-USAGE": (2, "the command was given options or arguments that it does not take"),
    "HANSA-PLAN-INVALID": (2, "the plan has problems; each is listed with its key path"),
    "HANSA-PLAN-FILE": (2, "the plan file cannot be read"),
    "HANSA-CODE-IMPORT": (2, "a factory or piece named in the plan cannot be imported"),
    "HANSA-MODEL-UNSUITABLE": (2, "the model cannot be trained as the plan asks"),
    "HANSA-DATA-MISSING": (3, "a data file is missing or cannot be read"),
    "HANSA-DATA-INVALID": (3, "the data are malformed or do not fit the plan"),
    "HANSA-EXTRA-MISSING": (3, "an optional dependency is not installed"),
    "HANSA-RUN-FOLDER": (4, "a run folder cannot be created, read or resumed"),
    "HANSA-RUN-STORAGE": (4, "the run folder could not be written; the last closed round is kept"),
    "HANSA-RUN-CHANGED": (4, "files of a run folder changed after the run"),
    "HANSA-RUN-DIFFERS": (5, "a replay did not give the same result"),
    "HANSA-RUN-STALLED": (4, "in simulated time, too few clients could be reached or reported for a step"),
    "HANSA-RUN-MEMORY": (4, "there is not enough memory; the last closed round is kept"),
    "HANSA-RUN-WORKERS": (4, "worker processes kept dying; the last closed round is kept"),
    "HANSA-RUN-DIVERGED": (6, "training diverged"),
    "HANSA-RUN-INTERRUPTED": (130, "the run was interrupted after a whole round"),
    "HANSA-INTERNAL": (70, "an unexpected error: a bug of Hansa, or of code that the plan names"),
    "HANSA-STREAM-SECRET": (1, "secret randomness was asked from the seeded stream of a federation"),
}
"""Stable code -> (exit status of the command, meaning)."""


class HansaError(Exception):
    """An error with a stable code and a sentence of three parts.

    ``rule`` says what holds, ``found`` what was met instead, ``action`` what to do about it.
    """

    def __init__(self, code: str, *, rule: str, found: str, action: str) -> None:
        if code not in CATALOGUE:
            raise LookupError(f"{code} is not in the catalogue of errors")
        super().__init__(f"{rule} {found} {action}")
        self.code = code
        self.rule = rule
        self.found = found
        self.action = action

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Return what makes the same error in another process; constructors of subclasses differ."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self).copy()  # type: ignore[attr-defined]

    @property
    def exit_status(self) -> int:
        """Return the exit status that a command ends with after this error."""
        return CATALOGUE[self.code][0]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a plan: where (a dotted key path) and what, with what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class PlanError(HansaError):
    """A plan that does not build; ``problems`` holds every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = len(self.problems)
        listed = "; ".join(str(problem).rstrip(".") for problem in self.problems)
        super().__init__(
            "HANSA-PLAN-INVALID",
            rule="A plan builds only when all of it is valid and sound.",
            found=f"{count} problem{'s' if count != 1 else ''}: {listed}.",
            action="Mend each at its key path.",
        )


class DataError(HansaError):
    """Data that are missing or do not fit the plan."""


class ModelError(HansaError):
    """A model or factory that cannot be used."""


class RunError(HansaError):
    """A run that could not start, go on or be repeated."""


class DivergenceError(RunError):
    """Training whose model or update stopped being finite, or exploded."""
