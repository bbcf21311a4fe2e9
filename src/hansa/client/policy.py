"""What a site accepts: which plans, for whom and what for, of what code, at what cost, and when."""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Le, MinLen

from hansa.core.allowed import DEFAULT, Allowance, record
from hansa.core.errors import PlanError, RefusedError
from hansa.core.schema import Doc, Unsound, build
from hansa.wire.jobs import JobDescriptor

Kind = Literal["statistics", "training", "evaluation"]

MOST_ROUNDS: Final = 10_000
"""Rounds of a plan that a site takes part in where its policy does not say."""
_KEY_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class Accept:
    """Which jobs a site takes part in. An empty list accepts all."""

    plans: Annotated[tuple[str, ...], Doc("SHA-256 of the plans that are accepted (`hansa check` prints it)")] = ()
    purposes: Annotated[tuple[str, ...], Doc("purposes that are accepted, as the job states them")] = ()
    operators: Annotated[tuple[str, ...], Doc("operators whose jobs are accepted")] = ()
    kinds: Annotated[tuple[Kind, ...], Doc("what is answered: statistics, training, evaluation")] = (
        "statistics",
        "training",
        "evaluation",
    )
    most_rounds: Annotated[int, Ge(1), Doc("take part in plans of at most so many rounds")] = MOST_ROUNDS
    smallest_cohort: Annotated[int, Ge(1), Doc("take part only among at least so many clients of a round")] = 1
    smallest_population: Annotated[int, Ge(1), Doc("take part only where at least so many are eligible")] = 1


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What taking part may cost the machine."""

    cpu_share: Annotated[
        float, Gt(0), Le(1), Doc("share of the machine's processors that training takes; below 1 it also gives way")
    ] = 1.0
    memory_mb: Annotated[int | None, Ge(128), Doc("most memory of training, in MB; absent: no limit")] = None
    seconds: Annotated[
        float | None,
        Gt(0),
        Doc(
            "most seconds that one answer is computed for; absent: no limit, and a plan may keep a client busy for ever"
        ),
    ] = None
    disk_mb: Annotated[
        int | None,
        Ge(1),
        Doc(
            "most disk of the client's folder, in MB (a million bytes), all files counted: no model, job, report, row "
            "or part of a secure sum is written that does not fit; absent: no limit"
        ),
    ] = None
    bytes_a_day: Annotated[
        int | None,
        Ge(0),
        Doc(
            "most bytes sent and received in a local day: the bodies of all calls, check-ins, messages of secure sums "
            "and repeats included, without headers and TLS; absent: no limit"
        ),
    ] = None
    hours: Annotated[
        str,
        Doc(
            'local hours in which the client calls and begins to compute: "22-6" or "8-12 13-18"; what is being '
            "computed then is brought to its end; empty: always"
        ),
    ] = ""
    battery: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("on battery, least charge at which the client calls and begins to compute; 1: only on mains; 0: always"),
    ] = 0.0
    metered_network: Annotated[
        bool,
        Doc(
            "also work over a network that is told to be metered; false: nothing is sent or fetched there, no message "
            "of a begun secure sum either"
        ),
    ] = True

    def __post_init__(self) -> None:
        hours_of(self.hours)

    @property
    def disk_bytes(self) -> int | None:
        """Most bytes of the client's folder; None without a limit."""
        return None if self.disk_mb is None else self.disk_mb * 1_000_000


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The files that an allowance means, as `hansa client allow` writes them down."""

    pattern: Annotated[str, Doc('"package.module:name" or "package.module:*"')]
    distribution: Annotated[str, Doc("the installed package that it came with; empty: a file of the site's own")] = ""
    version: Annotated[str, Doc("that package's version")] = ""
    sha256: Annotated[str, Doc("SHA-256 over the module, or over the package that it is in; none for Hansa's own")] = ""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Which code a plan may name."""

    allow: Annotated[
        tuple[str, ...], Doc('"package.module:name", or "package.module:*" for all that the module defines')
    ] = tuple(each.pattern for each in DEFAULT)
    recorded: Annotated[
        tuple[Recorded, ...],
        Doc("what `hansa client allow` allowed, with its files; the last of a pattern holds"),
    ] = ()

    def __post_init__(self) -> None:
        known = {each.pattern for each in self.recorded}
        for pattern in self.allow:
            if pattern not in known and not pattern.startswith("hansa."):
                raise Unsound(f"allow names {pattern!r} without a record of its files: hansa client allow {pattern}")

    def allowances(self) -> tuple[Allowance, ...]:
        """Return what is allowed, with the records."""
        own = {pattern: Allowance(pattern) for pattern in self.allow}
        recorded = {
            each.pattern: Allowance(each.pattern, each.distribution, each.version, each.sha256)
            for each in self.recorded
        }
        return tuple((own | recorded).values())


@dataclass(frozen=True, kw_only=True)
class TrustedDecryptor:
    """A decryptor that a site trusts not to work with the server, and the key by which it is known."""

    operator: Annotated[str, MinLen(1), Doc("the organisation that runs it, as plans name it")]
    key: Annotated[str, Doc("its key, as `hansa decryptor key` prints it: had from its operator, not from the server")]

    def __post_init__(self) -> None:
        _read_key("decryptors", self.key, "hansa decryptor key")


@dataclass(frozen=True, kw_only=True)
class SecureSums:
    """What a site demands of secure sums, beside what a plan says."""

    required: Annotated[bool, Doc("answer only plans with [secure_aggregation]")] = False
    registrar: Annotated[
        Literal["pinned", "authority", "server"],
        Doc(
            "who vouches for the other clients' keys: this site's own list, an authority apart from the server, or the "
            "server, who could invent them"
        ),
    ] = "pinned"
    peers: Annotated[
        tuple[str, ...], Doc("keys of all who may take part, as `hansa client key` prints them at each site")
    ] = ()
    authority_key: Annotated[
        str,
        Doc('registrar = "authority": its key, as `hansa authority key` prints it: had from it, not from the server'),
    ] = ""
    authority_operator: Annotated[
        str,
        Doc(
            'registrar = "authority": the organisation that runs it; a plan that names another is not answered. Empty: '
            "the name in a plan is what its author says, and only the key counts"
        ),
    ] = ""
    server: Annotated[
        Literal["curious", "malicious"], Doc("malicious: only protocols that hold against a server that lies")
    ] = "malicious"
    assumed_colluding: Annotated[
        int, Ge(0), Doc("secagg-plus: clients that may work with a server that lies; a smaller graph is refused")
    ] = 1
    minimum_cohort: Annotated[int, Ge(3), Doc("fewest clients with which a sum begins")] = 3
    minimum_survivors: Annotated[int, Ge(3), Doc("fewest clients whose sum is shown to the server")] = 3
    decryptors: Annotated[
        tuple[TrustedDecryptor, ...],
        Doc("decryptors that this site trusts; a plan of oneshot-seeds that names another is not answered"),
    ] = ()

    def __post_init__(self) -> None:
        self.keys()
        if self.registrar == "authority" and not self.authority_key:
            raise Unsound('authority_key is needed with registrar = "authority": what `hansa authority key` prints.')
        for name in ("authority_key", "authority_operator"):
            if self.registrar != "authority" and getattr(self, name):
                raise Unsound(f'{name} has no use with registrar = "{self.registrar}"; set registrar = "authority".')
        self.authority()
        if len({each.operator for each in self.decryptors}) < len(self.decryptors):
            raise Unsound("decryptors names an operator twice.")

    def keys(self) -> tuple[bytes, ...]:
        """Return the peers' keys, 32 bytes each."""
        return tuple(_read_key("peers", text, "hansa client key") for text in self.peers)

    def authority(self) -> bytes:
        """Return the authority's key, 32 bytes; none with another registrar."""
        return _read_key("authority_key", self.authority_key, "hansa authority key") if self.authority_key else b""

    def decryptor_keys(self) -> dict[str, bytes]:
        """Return the keys of the decryptors that are trusted, by operator."""
        return {each.operator: _read_key("decryptors", each.key, "hansa decryptor key") for each in self.decryptors}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A site's policy. Without a file: every job of the server that was enrolled with, of Hansa's own linear models."""

    accept: Annotated[Accept, Doc("which jobs")] = field(default_factory=Accept)
    resources: Annotated[Resources, Doc("at what cost, and when")] = field(default_factory=Resources)
    code: Annotated[Code, Doc("of what code")] = field(default_factory=Code)
    secure_sums: Annotated[SecureSums, Doc("what is demanded of secure sums")] = field(default_factory=SecureSums)


@dataclass(frozen=True)
class Asked:
    """What an assignment asks, as far as a policy judges it."""

    kind: Kind
    round: int
    job: JobDescriptor
    cohort_size: int
    population: int


def read_policy(path: Path) -> Policy:
    """Return the policy in a file. Raises RefusedError with every problem and its key path."""
    try:
        policy, problems = build(Policy, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise _invalid(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{path} is no TOML: {error}.") from None
    if problems:
        raise _invalid(f"{path}: {PlanError(problems).found}")
    checked: Policy = policy
    return checked


def allow(path: Path, pattern: str) -> Allowance:
    """Let plans name some code: append its record to a policy file, which is made where there is none.

    Raises RefusedError for code that is not there, lies in the working directory, or a file that is no policy.
    """
    if path.exists():
        read_policy(path)
    allowance = record(pattern)
    lines = [f"{key} = {json.dumps(value)}" for key, value in asdict(allowance).items() if value]
    block = "\n".join(["[[code.recorded]]", *lines]) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if path.stat().st_size else "") + block)
    except OSError as error:
        raise _invalid(f"{path} cannot be written: {error.strerror or error}.") from None
    read_policy(path)
    return allowance


def objections(policy: Policy, asked: Asked) -> list[str]:
    """Return why a site does not take part in this, a sentence each; none where it does."""
    accept, job = policy.accept, asked.job
    rounds = job.rounds
    reasons = {
        f"the plan {job.plan_sha256} is not accepted": bool(accept.plans) and job.plan_sha256 not in accept.plans,
        f"the purpose {job.purpose!r} is not accepted": bool(accept.purposes) and job.purpose not in accept.purposes,
        f"the operator {job.operator!r} is not accepted": bool(accept.operators)
        and job.operator not in accept.operators,
        f"the plan has {rounds} rounds, more than most_rounds ({accept.most_rounds})": rounds > accept.most_rounds,
        f"round {asked.round} is asked of a plan of {rounds}": asked.round > rounds,
        "the plan has no secure sum": policy.secure_sums.required and not job.plan.get("secure_aggregation"),
        f"{asked.kind} is not answered": asked.kind not in accept.kinds,
        f"the cohort has {asked.cohort_size} clients, fewer than {accept.smallest_cohort}": asked.cohort_size
        < accept.smallest_cohort,
        f"{asked.population} clients are eligible, fewer than {accept.smallest_population}": asked.population
        < accept.smallest_population,
    }
    return [*(reason for reason, holds in reasons.items() if holds), *_other_authority(policy.secure_sums, job.plan)]


def _other_authority(demands: SecureSums, plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the authority that a plan names is another than the one that a site trusts."""
    section = plan.get("secure_aggregation")
    named = section.get("authority") if isinstance(section, Mapping) else None
    if demands.registrar != "authority" or not isinstance(named, Mapping):
        return  # then the roster's registrar is another, which the sum refuses
    operator, key = named.get("operator"), named.get("key")
    if demands.authority_operator and operator != demands.authority_operator:
        yield f"the plan names {operator!r} as its authority's operator, not {demands.authority_operator!r}"
    if key != demands.authority_key:
        yield "the plan's authority has another key than authority_key"


def hours_of(text: str) -> tuple[tuple[float, float], ...]:
    """Return intervals of hours; one that ends before it begins goes over midnight. Raises Unsound."""
    found = []
    for part in text.split():
        start, separator, end = part.partition("-")
        try:
            interval = float(start), float(end)
        except ValueError:
            interval = (-1.0, -1.0)
        if not separator or not all(0 <= hour <= 24 for hour in interval) or interval[0] == interval[1]:
            raise Unsound(f'hours holds {part!r}; write intervals of hours, such as "22-6" or "8-12 13-18".')
        found.append(interval)
    return tuple(found)


def refused(reasons: list[str] | tuple[str, ...]) -> RefusedError:
    """Return the error of an assignment that the policy does not allow."""
    found = "; ".join(reasons)
    return RefusedError(
        "HANSA-POLICY-REFUSED",
        rule="A site answers what its policy allows.",
        found=f"{found[:1].upper()}{found[1:]}.",
        action="Change the policy, or ask for another plan.",
    )


def _read_key(field: str, text: str, command: str) -> bytes:
    """Return a key, 32 bytes. Raises Unsound."""
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise Unsound(f"{field} holds {text[:60]!r}, which is no key as `{command}` prints it.")
    return key


def _invalid(found: str) -> RefusedError:
    return RefusedError(
        "HANSA-POLICY-INVALID",
        rule="A policy is a TOML file of the tables accept, resources, code and secure_sums.",
        found=found,
        action="Mend each at its key path.",
    )
