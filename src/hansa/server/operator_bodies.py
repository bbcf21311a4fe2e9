"""What the operator API takes and gives, as its OpenAPI document says: types, bounds and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import MaxLen
from pydantic import BaseModel, ConfigDict, Field

from hansa.server.operator_types import (
    Attributes,
    Days,
    Digest,
    Id,
    Name,
    Number,
    Tables,
    Text,
    Version,
    Word,
)
from hansa.server.submissions import HIGHEST, LOWEST
from hansa.store.records import Admission, ClientState, Kind, Role, RoundState, RunState, Stage


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProblemBody(_Given):
    """One of several things that are wrong: at which key, and what."""

    path: str
    message: str


class ErrorParts(_Given):
    """What a refusal says: a stable code, the rule, what was found, what to do."""

    code: str = Field(examples=["HANSA-NOT-FOUND"])
    rule: str
    found: str
    action: str
    problems: list[ProblemBody] = []


class ErrorBody(_Given):
    """Every answer that is no success."""

    error: ErrorParts


class Who(_Given):
    """Whose token the caller has, and what it may do."""

    tenant: str
    name: str
    role: Role
    permissions: Sequence[str]
    expires_at: float | None


class TokenRequest(_Taken):
    """A token to be made."""

    name: Name = Field(examples=["nightly jobs"])
    role: Role = Field(examples=["analyst"])
    days: Days | None = Field(default=None, description="how long it holds; absent: as the server is set")


class TokenBody(_Given):
    """A token, without its secret."""

    id: str
    name: str
    role: Role
    expires_at: float | None
    revoked_at: float | None


class TokenMade(TokenBody):
    """A token that was just made: the one time that its secret is told."""

    token: str


class Tokens(_Given):
    """The tokens of a tenant."""

    tokens: list[TokenBody]


class PopulationRequest(_Taken):
    """A population to be made."""

    name: Word = Field(examples=["hospitals"])
    admission: Admission = Field(
        default="enrolled", description="drawn from all active clients, or from those that call"
    )
    attributes: Attributes = Field(
        default={}, description="what clients may declare", examples=[{"region": "string", "ram_gb": "number"}]
    )
    minimum_version: Version | None = None


class PopulationChange(_Taken):
    """What is to be changed of a population; what is absent stays."""

    attributes: Attributes | None = None
    minimum_version: Version | None = None


class PopulationBody(_Given):
    """A population."""

    id: str
    name: str
    admission: Admission
    attributes: dict[str, str]
    minimum_version: str | None
    clients: int = Field(description="clients that were ever invited by name or enrolled")


class Populations(_Given):
    """The populations of a tenant."""

    populations: list[PopulationBody]


class InvitationRequest(_Taken):
    """An invitation to be made: for one named client, or for several."""

    uses: int = Field(default=1, ge=1, le=1_000_000)
    name: Name | None = Field(default=None, description="the client's name; with uses = 1 only", examples=["cleveland"])
    client: Id | None = Field(default=None, description="a known client's id: it may enrol again, with another key")
    days: Days = Field(default=7.0, examples=[7.0])


class InvitationMade(_Given):
    """An invitation that was just made: the one time that its secret is told."""

    id: str
    token: str
    uses: int
    expires_at: float
    client: str | None = Field(description="the client's id, where it is for one")


class ClientBody(_Given):
    """A client, as the operator sees it."""

    id: str
    number: int
    name: str
    state: ClientState
    version: str
    consent: bool
    attributes: dict[str, Any]
    invited_at: float
    enrolled_at: float | None
    last_seen: float | None = Field(description="last check-in with the replica that answers, since it was started")


class Clients(_Given):
    """A page of clients in the order of their numbers; the next begins after ``next``."""

    clients: list[ClientBody]
    next: int | None


class CountBody(_Given):
    """How many clients are in a state with a version."""

    state: ClientState
    version: str
    clients: int


class Counts(_Given):
    """All clients of a population, by state and version."""

    counts: list[CountBody]


class Reason(_Taken):
    """Why something is done; kept with the event."""

    why: Text = ""


class SignatureBody(_Taken):
    """What the model was built for."""

    shape: Annotated[list[Number], MaxLen(16)] = Field(examples=[[13]])
    classes: Number = Field(examples=[2], description="0 for a real-valued label")
    integer_inputs: bool = False
    vocabulary: Number = 0


class JobRequest(_Taken):
    """A plan to be run: what ``hansa submit`` sends after the initial model was uploaded."""

    name: Name = Field(examples=["heart disease"])
    population: Word = Field(examples=["hospitals"])
    plan: Tables = Field(description="the plan as tables, resolved or with a recipe", examples=[{"recipe": "fedavg"}])
    signature: SignatureBody
    layout: Tables = Field(
        description="the model's branches: name and shape of every parameter",
        examples=[{"branches": [{"name": "params", "parameters": [["weight", [13, 1]], ["intercept", [1]]]}]}],
    )
    model: Digest = Field(description="SHA-256 of the uploaded initial model")
    eligibility: Text = Field(default="", examples=['attributes.region == "eu"'])
    priority: int = Field(default=0, ge=LOWEST, le=HIGHEST)
    purpose: Text = Field(default="", examples=["diagnosis support"])
    wait_for: int = Field(default=1, ge=1, le=10**9, description="clients that must be eligible before a round opens")


class JobBody(_Given):
    """A job."""

    id: str
    name: str
    population: str
    plan_sha256: str
    descriptor: str = Field(description="digest of what clients fetch; a site that approves it approves the plan")
    model: str
    eligibility: str
    priority: int
    submitted_by: str
    submitted_at: float


class JobWhole(JobBody):
    """A job with its plan and layout."""

    plan: dict[str, Any]
    signature: dict[str, Any]
    layout: dict[str, Any]
    purpose: str


class Jobs(_Given):
    """The newest jobs of a tenant."""

    jobs: list[JobBody]


class RunBody(_Given):
    """A run."""

    id: str
    job: str
    name: str
    population: str
    state: RunState
    round: int = Field(description="the last closed round of training")
    rounds: int = Field(description="the rounds of the plan")
    model: str = Field(description="digest of the model as it is now")
    priority: int
    started_at: float
    ended_at: float | None
    why: str | None = Field(description="why it ended, is paused, or opens no round")


class Submitted(_Given):
    """A job that was taken, and its run."""

    job: JobBody
    run: RunBody
    round_bytes: int | None
    """What an open round of training stores, about, in bytes; unknown where clients train all the time."""


class Runs(_Given):
    """The newest runs of a tenant."""

    runs: list[RunBody]


class PriorityRequest(_Taken):
    """A run's priority: the higher run goes first."""

    priority: int = Field(ge=LOWEST, le=HIGHEST, examples=[10])


class Funnel(_Given):
    """From who could take part to whose update counted."""

    eligible: int
    picked: int
    included: int
    fates: dict[str, int] = Field(description="what became of those who were picked", examples=[{"included": 4}])


class RoundBody(_Given):
    """One attempt of a round."""

    kind: Kind
    round: int
    attempt: int
    state: RoundState
    model: str
    opened_at: float
    deadline: float | None
    closed_at: float | None
    funnel: Funnel
    report: dict[str, Any] | None = Field(description="sums over the cohort, as a line of metrics.jsonl")


class Rounds(_Given):
    """The newest rounds of a run, the last first."""

    rounds: list[RoundBody]


class AssignedBody(_Given):
    """What became of one client in a round."""

    client: str
    number: int
    fate: str | None


class Cohort(_Given):
    """Who was picked for a round, in the order of the cohort."""

    clients: list[AssignedBody]


class ReleaseBody(_Given):
    """A model that a closed round gave."""

    sha256: str
    run: str
    round: int
    stage: Stage
    at: float


class Releases(_Given):
    """The models of a tenant or run, the last first."""

    models: list[ReleaseBody]


class StageRequest(_Taken):
    """A model's next stage."""

    stage: Stage = Field(examples=["production"])


class Uploaded(_Given):
    """A model that is here now."""

    sha256: str
    size: int


class EventBody(_Given):
    """Something that happened."""

    number: int
    at: float
    kind: str
    run: str | None
    client: str | None
    detail: dict[str, Any]


class Events(_Given):
    """A page of events, the oldest first; the next begins after ``next``, now or later."""

    events: list[EventBody]
    next: int


class Usage(_Given):
    """What a tenant uses."""

    populations: int
    clients: int
    jobs: int
    runs_by_state: dict[str, int]
    models: int
    model_bytes: int
    slot_bytes: int
    """What server optimizers keep."""
    update_bytes: int
    """Sealed updates of open rounds, and sums of them."""
    quota_bytes: int | None
