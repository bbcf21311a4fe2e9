"""From an assignment to an answer: the job, the site's data and the model, each brought once and kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.client.policy import Policy
from hansa.client.records import Id, Kind
from hansa.client.state import StateFolder
from hansa.client.transport import Transport
from hansa.core.allowed import Allowance
from hansa.core.errors import RefusedError
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import LARGEST, JobDescriptor

if TYPE_CHECKING:
    from hansa.client.learner import Answer, Learner, SiteExamples
    from hansa.client.site_data import SiteData


@dataclass
class Workshop:
    """Computes answers; the last job and the examples as it has them encoded stay at hand."""

    state: StateFolder
    policy: Policy
    data: SiteData
    stop: threading.Event = field(default_factory=threading.Event)
    """Set, it ends what is computed in a process of its own."""
    _learner: tuple[str, Learner] | None = field(default=None, init=False)
    _examples: tuple[tuple[Any, ...], SiteExamples] | None = field(default=None, init=False)

    @property
    def code(self) -> Sequence[Allowance]:
        """What code a plan may name here."""
        return self.policy.code.allowances()

    def job(self, assigned: wire.Assignment, transport: Transport) -> JobDescriptor:
        """Return the job of an assignment, fetched once. Raises RefusedError for one that it does not name."""
        path = self.state.job(assigned.job_sha256)
        if not path.exists():
            content = transport.job(assigned.job_sha256, LARGEST)
            self.state.room.make(len(content))
            self.state.save_job(assigned.job_sha256, content)
        if self._learner is not None and self._learner[0] == assigned.job_sha256:
            return self._learner[1].job
        job = JobDescriptor.from_bytes(path.read_bytes())
        if job.plan_sha256 != assigned.plan_sha256:
            raise RefusedError(
                "HANSA-REQUEST-INVALID",
                rule="An assignment is of the plan of its job.",
                found="This one names another.",
                action="Tell the operator of the server; nothing was done.",
            )
        return job

    def model(self, assigned: wire.Assignment, transport: Transport) -> Path:
        """Return the file of the model that an assignment starts from."""
        path = self.state.model(assigned.model_sha256)
        if not path.exists():
            self.state.room.make(self.to_fetch(assigned), self._needed(assigned))
            transport.download(assigned.model_sha256, path, assigned.model_size)
        return path

    def to_fetch(self, assigned: wire.Assignment) -> int:
        """Return how many bytes of an assignment's model are not here yet."""
        path = self.state.model(assigned.model_sha256)
        partial = path.with_name(f"{path.name}.part")
        have = partial.stat().st_size if partial.exists() else 0
        return 0 if path.exists() else max(0, assigned.model_size - have)

    def objections(self, assigned: wire.Assignment, kind: Kind) -> list[str]:
        """Return why model and answer do not fit the folder; an answer in training is taken to be like the model."""
        size = self.to_fetch(assigned) + about(assigned, kind)
        return self.state.room.objections(size, self._needed(assigned))

    def _needed(self, assigned: wire.Assignment) -> list[Path]:
        model = self.state.model(assigned.model_sha256)
        return [self.state.job(assigned.job_sha256), model, model.with_name(f"{model.name}.part")]

    def answer(self, assigned: wire.Assignment, assignment: Id, job: JobDescriptor, model: Path) -> Answer:
        """Return what the client reports."""
        resources = self.policy.resources
        limited = resources.cpu_share < 1 or (resources.memory_mb, resources.seconds) != (None, None)
        if limited and not callable(self.data.source):
            from hansa.client.confined import confined_answer  # noqa: PLC0415 - where the policy sets limits

            return confined_answer(self, assigned, assignment, model)
        return self.compute(assigned, assignment, job, model)

    def lanes(self, kind: Kind) -> list[str]:
        """Return the names of the lanes that the last answer carries."""
        if self._learner is None or kind == "evaluation":
            return []
        return self._learner[1].lanes(kind)

    def compute(self, assigned: wire.Assignment, assignment: Id, job: JobDescriptor, model: Path) -> Answer:
        """Compute an answer in this process."""
        from hansa.client.learner import Request  # noqa: PLC0415 - a client at rest needs none of it
        from hansa.wire.server_models import ServedModel  # noqa: PLC0415 - likewise

        learner = self._learner_of(assigned.job_sha256, job)
        served = ServedModel.from_bytes(model.read_bytes(), learner.layout.size)
        request = Request(assignment.kind, assignment.round, assigned.number, assigned.population, assigned.cohort_size)
        return learner.answer(request, served, self._examples_for(learner), self.state.rows(assignment.run))

    def _learner_of(self, sha256: str, job: JobDescriptor) -> Learner:
        from hansa.client.learner import Learner  # noqa: PLC0415 - a client at rest needs none of it

        if self._learner is None or self._learner[0] != sha256:
            self._learner, self._examples = (sha256, Learner(job, self.code)), None
        return self._learner[1]

    def _examples_for(self, learner: Learner) -> SiteExamples:
        version = self.data.version()
        if self._examples is None or self._examples[0] != version:
            self._examples = version, self.data.examples(learner.plan.features, learner.job.signature)
        return self._examples[1]


def about(assigned: wire.Assignment, kind: Kind) -> int:
    """Return about how many bytes an answer has, before it is computed: in training those of the model."""
    return assigned.model_size if kind == "training" else 0
