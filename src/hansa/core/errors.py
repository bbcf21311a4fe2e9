"""Errors that a user may see: the rule, what was found, what to do, and a stable code."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple


class Entry(NamedTuple):
    """What one error is: the command's exit status, its meaning, the HTTP status and the Connect code of a server."""

    exit_status: int
    meaning: str
    http: int = 400
    connect: str = "invalid_argument"


CATALOGUE: Final[dict[str, Entry]] = {
    "HANSA-USAGE": Entry(2, "the command was given options or arguments that it does not take"),
    "HANSA-PLAN-INVALID": Entry(2, "the plan has problems; each is listed with its key path"),
    "HANSA-PLAN-FILE": Entry(2, "the plan file cannot be read"),
    "HANSA-CODE-IMPORT": Entry(2, "a factory or piece named in the plan cannot be imported"),
    "HANSA-MODEL-UNSUITABLE": Entry(2, "the model cannot be trained as the plan asks"),
    "HANSA-DATA-MISSING": Entry(3, "a data file is missing or cannot be read"),
    "HANSA-DATA-INVALID": Entry(3, "the data are malformed or do not fit the plan"),
    "HANSA-EXTRA-MISSING": Entry(3, "an optional dependency is not installed"),
    "HANSA-RUN-FOLDER": Entry(4, "a run folder cannot be created, read or resumed"),
    "HANSA-OUTPUT-FILE": Entry(4, "a file that a command is to write exists already, or cannot be written"),
    "HANSA-RUN-STORAGE": Entry(4, "the run folder could not be written; the last closed round is kept"),
    "HANSA-RUN-CHANGED": Entry(4, "files of a run folder changed after the run"),
    "HANSA-RUN-DIFFERS": Entry(5, "a replay did not give the same result"),
    "HANSA-RUN-SECRET": Entry(4, "a run that was charged to a ledger cannot be repeated: its noise was secret"),
    "HANSA-RUN-STALLED": Entry(4, "in simulated time, too few clients could be reached or reported for a step"),
    "HANSA-RUN-MEMORY": Entry(4, "there is not enough memory; the last closed round is kept"),
    "HANSA-RUN-WORKERS": Entry(4, "worker processes kept dying; the last closed round is kept"),
    "HANSA-RUN-DIVERGED": Entry(6, "training diverged"),
    "HANSA-RUN-INTERRUPTED": Entry(130, "the run was interrupted after a whole round"),
    "HANSA-INTERNAL": Entry(70, "an unexpected error: a bug of Hansa, or of code that the plan names", 500, "internal"),
    "HANSA-STREAM-SECRET": Entry(1, "secret randomness was asked from the seeded stream of a federation"),
    "HANSA-SERVER-SETTINGS": Entry(
        2, "the server's settings have problems; each is listed with its key path", 500, "internal"
    ),
    "HANSA-SERVER-UNREACHABLE": Entry(
        7, "the server cannot be reached, or the connection is not trusted", 503, "unavailable"
    ),
    "HANSA-CERTIFICATE-FILE": Entry(2, "a file of certificates, or of a private key, cannot be used"),
    "HANSA-SERVER-KEY": Entry(
        7, "an assignment is not signed by a key of the server that its client knows", 401, "unauthenticated"
    ),
    "HANSA-SERVER-BUSY": Entry(7, "the server takes no more at the moment; come back later", 503, "unavailable"),
    "HANSA-SERVER-LIMIT": Entry(7, "a limit on rates was passed", 429, "resource_exhausted"),
    "HANSA-SERVER-STORAGE": Entry(
        7,
        "the server's disk or a tenant's quota is full; nothing that was acknowledged is lost",
        507,
        "resource_exhausted",
    ),
    "HANSA-STORE-CONFLICT": Entry(1, "somebody else changed the same row first", 409, "aborted"),
    "HANSA-STORE-LEDGER": Entry(2, "going back to an older schema would forget what privacy was spent"),
    "HANSA-STORE-SCHEMA": Entry(4, "the database has a schema that this version does not serve", 500, "internal"),
    "HANSA-KEY-MISSING": Entry(4, "a key is not with the key provider, or was destroyed", 500, "internal"),
    "HANSA-SEAL-BROKEN": Entry(4, "sealed bytes are not what was sealed for this place", 500, "data_loss"),
    "HANSA-AUTH-MISSING": Entry(3, "a call carries no credentials, or they cannot be read", 401, "unauthenticated"),
    "HANSA-AUTH-UNKNOWN": Entry(
        3, "the token or client is not known, has expired or was revoked", 401, "unauthenticated"
    ),
    "HANSA-AUTH-SIGNATURE": Entry(3, "a signature is not by the key that it should be by", 401, "unauthenticated"),
    "HANSA-AUTH-CLOCK": Entry(3, "the caller's clock differs too much from the server's", 401, "unauthenticated"),
    "HANSA-AUTH-REPLAYED": Entry(3, "a call was sent a second time; each is signed anew", 401, "unauthenticated"),
    "HANSA-AUTH-ROLE": Entry(3, "the token's role does not allow this", 403, "permission_denied"),
    "HANSA-ENROL-TOKEN": Entry(
        3, "an invitation does not let this client in: unknown, used up or expired", 403, "permission_denied"
    ),
    "HANSA-ENROL-CERTIFICATE": Entry(3, "a client certificate is not accepted for enrolment", 403, "permission_denied"),
    "HANSA-CLIENT-STATE": Entry(3, "the client is suspended, or has not enrolled", 403, "permission_denied"),
    "HANSA-CLIENT-RETIRED": Entry(3, "the client is retired for ever", 403, "permission_denied"),
    "HANSA-CLIENT-VERSION": Entry(
        3, "the client's version is older than its population allows", 400, "failed_precondition"
    ),
    "HANSA-CLIENT-ATTRIBUTES": Entry(3, "attributes do not fit the population's schema", 400, "invalid_argument"),
    "HANSA-CLIENT-FOLDER": Entry(4, "the client's state folder cannot be used", 500, "internal"),
    "HANSA-REQUEST-INVALID": Entry(2, "a request is malformed", 400, "invalid_argument"),
    "HANSA-REQUEST-SLOW": Entry(7, "a body came too slowly or paused for too long; send it again", 408, "unavailable"),
    "HANSA-REQUEST-TOO-LARGE": Entry(2, "a body is larger than this server takes", 413, "out_of_range"),
    "HANSA-NOT-FOUND": Entry(2, "there is no such thing, or not for this caller", 404, "not_found"),
    "HANSA-UPLOAD-OFFSET": Entry(
        1, "a part of an upload does not begin where the last one ended", 409, "failed_precondition"
    ),
    "HANSA-UPLOAD-DIGEST": Entry(1, "what arrived has another digest than was announced", 400, "invalid_argument"),
    "HANSA-REPORT-UNEXPECTED": Entry(1, "nothing was asked of this client in that round", 409, "failed_precondition"),
    "HANSA-REPORT-ANSWERED": Entry(
        1, "the client has reported something else for the same assignment", 409, "already_exists"
    ),
    "HANSA-REPORT-INVALID": Entry(1, "an update has another form than the plan's", 400, "invalid_argument"),
    "HANSA-REPORT-NOT-FINITE": Entry(1, "an update holds numbers that are not finite", 400, "invalid_argument"),
    "HANSA-RING-INVALID": Entry(1, "a packed vector of a secure sum has another form", 400, "invalid_argument"),
    "HANSA-SUM-RANGE": Entry(
        4, "a secure sum lies outside what its clients can give; nothing of it is used", 500, "internal"
    ),
    "HANSA-SECAGG-TASK": Entry(2, "a secure sum has parameters that do not protect, or cannot be met"),
    "HANSA-SECAGG-MESSAGE": Entry(1, "bytes are no message of a secure sum"),
    "HANSA-SECAGG-UNEXPECTED": Entry(
        1, "a message of a secure sum is for another task, role, client or phase", 409, "failed_precondition"
    ),
    "HANSA-SECAGG-ANSWERED": Entry(
        1, "a phase of a secure sum was answered before, differently", 409, "already_exists"
    ),
    "HANSA-SECAGG-REFUSED": Entry(
        3, "a check of a secure sum's keys, signatures, sets or floors does not hold", 403, "permission_denied"
    ),
    "HANSA-DECRYPTOR-SETTINGS": Entry(2, "the decryptor's settings have problems; each is listed with its key path"),
    "HANSA-DECRYPTOR-FOLDER": Entry(4, "the decryptor's folder cannot be used"),
    "HANSA-AUTHORITY-SETTINGS": Entry(2, "the authority's settings have problems; each is listed with its key path"),
    "HANSA-AUTHORITY-FOLDER": Entry(4, "the authority's folder cannot be used"),
    "HANSA-AUTHORITY-LIST": Entry(
        2, "the authority's list of keys cannot be read; it vouches for nobody", 503, "unavailable"
    ),
    "HANSA-AUTHORITY-KEY": Entry(2, "that is no key of a client, which an authority could vouch for"),
    "HANSA-AUTHORITY-UNLISTED": Entry(2, "the key that is to be taken off the authority's list is not on it"),
    "HANSA-AUTHORITY-FEW": Entry(
        3,
        "a roster has fewer clients than the authority vouches for: use larger cohorts or groups, or ask its operator"
        " for another minimum_cohort",
        403,
        "permission_denied",
    ),
    "HANSA-AUTHORITY-STRANGER": Entry(
        3,
        "a roster holds a key that is not on the authority's list: its operator adds it (hansa authority vouch), or the"
        " server's operator suspends that client (hansa clients suspend); compare `hansa clients` with the list",
        403,
        "permission_denied",
    ),
    "HANSA-AUTHORITY-DRAWN": Entry(
        3,
        "the authority has drawn a beacon for that task, for others who advertised or another server: another attempt"
        " gets another; where nobody restored an older copy of the server's database, tell the authority's operator",
        409,
        "failed_precondition",
    ),
    "HANSA-AUTHORITY-ATTEMPTS": Entry(
        3,
        "the authority has drawn as often for a client in a round as its operator allows: find out why the attempts"
        " failed, or ask for another attempts_per_round",
        403,
        "permission_denied",
    ),
    "HANSA-AUTHORITY-REFUSED": Entry(
        3,
        "the authority does not vouch for a roster: ask its operator to look at its list, server_keys and"
        " minimum_cohort, or suspend the client that is not on the list (hansa clients suspend)",
        403,
        "permission_denied",
    ),
    "HANSA-AUTHORITY-UNREACHABLE": Entry(
        7,
        "the authority cannot be reached: look at its url in the plan, at authority_ca, and whether it runs",
        503,
        "unavailable",
    ),
    "HANSA-DECRYPTOR-REFUSED": Entry(3, "a decryptor does not help with a sum", 403, "permission_denied"),
    "HANSA-DECRYPTOR-UNREACHABLE": Entry(7, "a decryptor cannot be reached", 503, "unavailable"),
    "HANSA-PRIVACY-INVALID": Entry(2, "numbers of a privacy mechanism that make no sense, or claim what does not hold"),
    "HANSA-PRIVACY-UNREACHABLE": Entry(2, "no setting within the limits meets the privacy or utility that is asked"),
    "HANSA-BUDGET-OVERDRAWN": Entry(
        3, "a release costs more than is left of its scope's privacy budget", 409, "failed_precondition"
    ),
    "HANSA-BUDGET-MISSING": Entry(3, "a population has no privacy budget yet", 409, "failed_precondition"),
    "HANSA-BUDGET-SCOPE": Entry(
        2,
        "a scope of the ledger has one privacy unit, one adjacency, one delta, and keeps its populations",
        409,
        "failed_precondition",
    ),
    "HANSA-BUDGET-SETTLED": Entry(
        1, "a reservation in the ledger is another, or is past the point where this can be done", 409, "aborted"
    ),
    "HANSA-BUDGET-CLAIM": Entry(2, "a release claims participations or sampling that the plan does not enforce"),
    "HANSA-BUDGET-RESTORED": Entry(
        4, "the ledger was restored from a backup; what was spent since is not in it", 409, "failed_precondition"
    ),
    "HANSA-NOISE-ROW": Entry(
        4, "a row of correlated noise was released before, and is never used again", 409, "failed_precondition"
    ),
    "HANSA-LEDGER-CHANGED": Entry(4, "rows of a ledger were changed, removed or reordered", 500, "data_loss"),
    "HANSA-RUN-STATE": Entry(1, "the run is not in a state in which this can be done", 409, "failed_precondition"),
    "HANSA-STATE": Entry(
        1, "a client, model or token is not in a state in which this can be done", 409, "failed_precondition"
    ),
    "HANSA-RUN-ATTEMPTS": Entry(4, "a round was given up too often; the run is paused", 500, "internal"),
    "HANSA-POLICY-REFUSED": Entry(3, "the site's policy does not allow what a plan asks", 403, "permission_denied"),
    "HANSA-POLICY-WAITS": Entry(
        3, "the site's policy does not let the client work now: hours, battery or network", 403, "permission_denied"
    ),
    "HANSA-POLICY-BYTES": Entry(
        3, "more than what is left of the bytes that the site's policy allows in a day", 403, "permission_denied"
    ),
    "HANSA-POLICY-INVALID": Entry(2, "the site's policy file has problems", 400, "invalid_argument"),
    "HANSA-CODE-FORBIDDEN": Entry(3, "a plan names code that is not on the allow-list", 403, "permission_denied"),
    "HANSA-CODE-CHANGED": Entry(3, "allowed code is not the file that was allowed", 403, "permission_denied"),
}
"""Stable code -> what every runtime makes of it."""


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


class SettingsError(HansaError):
    """A file of settings with problems; ``problems`` holds every one that was found, ``subject`` what has them."""

    def __init__(self, problems: Sequence[Problem], *, code: str, subject: str) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        self.subject = subject
        count = len(self.problems)
        listed = "; ".join(str(problem).rstrip(".") for problem in self.problems)
        super().__init__(
            code,
            rule=f"Every value of {subject} is valid before anything starts.",
            found=f"{count} problem{'s' if count != 1 else ''}: {listed}.",
            action="Mend each at its key path.",
        )


class DataError(HansaError):
    """Data that are missing or do not fit the plan."""


class ModelError(HansaError):
    """A model or factory that cannot be used."""


class RunError(HansaError):
    """A run that could not start, go on or be repeated."""


class StoreError(HansaError):
    """The server's store refuses something, or cannot hold it."""


class StoreConflictError(StoreError):
    """Somebody else changed the same row first; read it again."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "HANSA-STORE-CONFLICT",
            rule="A row is changed by whoever read its last version.",
            found=f"{what} was changed in between.",
            action="Read it again, then decide again.",
        )


class RefusedError(HansaError):
    """A server's answer to a call that it does not accept, and what a client's policy refuses."""


class DivergenceError(RunError):
    """Training whose model or update stopped being finite, or exploded."""


def described(error: HansaError) -> dict[str, Any]:
    """Return an error as a mapping, for programs."""
    problems = error.problems if isinstance(error, PlanError | SettingsError) else ()
    return {
        "code": error.code,
        "rule": error.rule,
        "found": error.found,
        "action": error.action,
        "problems": [{"path": problem.path, "message": problem.message} for problem in problems],
    }
