"""What the rows of the database hold, as frozen records. Times are Unix seconds, digests are SHA-256 in hexadecimal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["owner", "operator", "analyst", "auditor", "site-administrator"]
Admission = Literal["enrolled", "checked-in"]
ClientState = Literal["invited", "enrolled", "active", "suspended", "retired"]
RunState = Literal["running", "paused", "cancelled", "finished", "failed"]
Kind = Literal["statistics", "training", "evaluation"]
"""What a round is for: sums for feature scaling (round 0), a step of the model, tallies on held-out examples."""
RoundState = Literal["created", "opening", "collecting", "aggregating", "closed", "abandoned"]
Fate = Literal["reported", "included", "late", "lost", "declined", "refused"]
"""What became of an assignment. "reported": acknowledged, the round is open; "refused": its update was not valid."""
LedgerKind = Literal["limit", "reserve", "freeze", "commit", "row", "void"]
Stage = Literal["candidate", "canary", "production", "retired"]


@dataclass(frozen=True)
class Tenant:
    """An organisation on this server. Whatever belongs to one tenant is invisible to every other."""

    id: str
    name: str


@dataclass(frozen=True)
class Token:
    """A secret of the operator API; only its digest is kept."""

    id: str
    tenant: str
    role: Role
    name: str
    digest: str
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True)
class Population:
    """A named set of clients of one tenant."""

    id: str
    tenant: str
    name: str
    admission: Admission = "enrolled"
    schema: Mapping[str, Literal["string", "number", "boolean"]] = field(default_factory=dict)
    """The attributes that its clients may declare."""
    minimum_version: str | None = None


@dataclass(frozen=True)
class Invitation:
    """A token that lets ``uses`` clients enrol; only its digest is kept. With ``client`` it is for that one."""

    id: str
    population: str
    digest: str
    uses: int
    used: int = 0
    client: str | None = None
    expires_at: float | None = None


@dataclass(frozen=True)
class Client:
    """One owner of data in one population. ``number`` is its position in the population's list, from 0, for ever."""

    id: str
    tenant: str
    population: str
    number: int
    name: str
    state: ClientState
    public_key: bytes | None
    profile: int
    attributes: Mapping[str, Any]
    version: str
    consent: bool
    invited_at: float
    enrolled_at: float | None = None


@dataclass(frozen=True)
class Job:
    """A plan submitted to a population. ``descriptor`` is the digest of the blob that clients fetch."""

    id: str
    tenant: str
    population: str
    name: str
    plan: Mapping[str, Any]
    plan_sha256: str
    descriptor: str
    model: str
    """Digest of the blob of the initial model."""
    eligibility: str
    """An expression over attributes; empty: every active client."""
    priority: int
    submitted_by: str
    submitted_at: float


@dataclass(frozen=True)
class Run:
    """One execution of a job. ``version`` counts its changes: a change names the version that it read."""

    id: str
    tenant: str
    job: str
    population: str
    state: RunState
    version: int
    round: int
    """The last closed round of training."""
    model: str
    """Digest of the blob that clients fetch: the model over all branches, and the features' scaling."""
    slots: str | None
    """Digest of the blob of the server optimizers' slots, which nobody fetches."""
    notes: Mapping[str, Any]
    """What else the coordinator must find again: norms, watched metrics, a buffer."""
    priority: int
    started_at: float
    ended_at: float | None = None
    why: str | None = None
    lease_owner: str | None = None
    lease_until: float = 0.0


@dataclass(frozen=True)
class RoundKey:
    """Names one attempt of one round of a run."""

    run: str
    kind: Kind
    round: int
    attempt: int

    @property
    def name(self) -> str:
        """Return the one name of this attempt: of its key, and of the folder of its updates."""
        return f"{self.run}-{self.kind}-{self.round}-{self.attempt}"


@dataclass(frozen=True)
class Round:
    """One attempt of a round. ``key`` wraps the key that seals its updates."""

    id: RoundKey
    state: RoundState
    version: int
    model: str
    cohort_size: int
    """How many were picked."""
    population: int
    """How many were eligible."""
    opened_at: float
    deadline: float | None
    key: bytes
    notes: Mapping[str, Any] = field(default_factory=dict)
    closed_at: float | None = None
    report: Mapping[str, Any] | None = None
    """What a closed round tells: an event like a line of metrics.jsonl; sums over the cohort only."""


@dataclass(frozen=True)
class Assigned:
    """One client's part in a round: its position in the cohort, its number, and what became of it."""

    round: RoundKey
    client: str
    number: int
    position: int
    fate: Fate | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """An acknowledged update: unique by round, attempt and client. ``blob`` names the sealed bytes."""

    round: RoundKey
    client: str
    position: int
    sha256: str
    size: int
    blob: str
    received_at: float
    folded: int = 0
    """In which partial sum of its round it is, the first is 1; 0: in none, and its sealed bytes are kept."""


@dataclass(frozen=True)
class SumRecord:
    """One record of a secure sum of a round, sealed with the round's key. ``place`` counts from 0 in each sum."""

    place: int
    content: bytes
    at: float
    part: int = 0
    """Which sum: the number of its group in the round's cohort."""


@dataclass(frozen=True)
class Release:
    """A model that a closed round gave. Only what has such a row can be fetched."""

    tenant: str
    run: str
    round: int
    sha256: str
    stage: Stage
    at: float


@dataclass(frozen=True)
class Event:
    """Something that happened, append-only. Nothing of a client's data is in it, and no secret."""

    number: int
    tenant: str
    at: float
    kind: str
    run: str | None = None
    client: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LedgerScope:
    """Whose privacy is spent together: a budget, and the end of its chain of rows.

    ``spent`` is the running account of ``accountant``. A scope that was restored from a backup spends nothing until its
    limit is set anew; what became of reservations up to ``restored_row`` is not known then.
    """

    id: str
    tenant: str
    name: str
    unit: str
    adjacency: str
    delta: float
    epsilon_limit: float
    rows: int
    head: str
    accountant: str
    spent: str
    restored_at: float | None = None
    restored_row: int = 0


@dataclass(frozen=True)
class LedgerRow:
    """One row of a scope's chain. ``content`` is the canonical JSON that ``hash`` is of; the rest is found in it."""

    scope: str
    number: int
    kind: LedgerKind
    key: str | None
    run: str | None
    noise_row: int | None
    event: str | None
    content: str
    hash: str


@dataclass(frozen=True)
class SigningKey:
    """A key of the server by which clients know its assignments; the private half lies with the key provider."""

    id: str
    public_key: bytes
    wrapped: bytes
    endorsed_by: str | None
    endorsement: bytes
    created_at: float
    retired_at: float | None = None
