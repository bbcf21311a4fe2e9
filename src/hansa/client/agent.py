"""The agent: checks in, does what its server has signed and its site allows, reports once, learns what became of it."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hansa.client.example_count import count_training
from hansa.client.limits import NOT_NOW, WAITS, Limits, require_fits
from hansa.client.machine import Machine
from hansa.client.participations import Participations
from hansa.client.pauses import OBSTRUCTED, backoff, rest
from hansa.client.policy import Policy, objections, refused
from hansa.client.records import Id, Identity, Pending, Report
from hansa.client.rehearsal import asked, offered, rehearsed, too_costly
from hansa.client.reports import AGAIN, Reports
from hansa.client.site_data import Own, SiteData
from hansa.client.state import DECLINED, OWN_METRICS, StateFolder
from hansa.client.sum_folder import Begun
from hansa.client.summing import Summing
from hansa.client.transport import Reach, Transport, passes_by_itself
from hansa.client.trust import believed, id_of, on_the_wire, with_new_keys
from hansa.client.usage import Usage
from hansa.client.work import Workshop
from hansa.core.clock import Clock, SystemClock
from hansa.core.errors import HansaError, RefusedError
from hansa.core.killpoints import reached
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.signatures import client_key, enrolment

log = logging.getLogger("hansa.client")

_ENDS: Final = frozenset(
    {
        "HANSA-AUTH-UNKNOWN",
        "HANSA-AUTH-SIGNATURE",
        "HANSA-CLIENT-ATTRIBUTES",
        "HANSA-CLIENT-FOLDER",
        "HANSA-CLIENT-RETIRED",
        "HANSA-ENROL-TOKEN",
    }
)
"""What no waiting mends."""


class Agent:
    """One client of one server, for one owner of data. Use it from one thread.

    ``data`` is a folder, a file, or a function of the site's own (:data:`hansa.client.site_data.Own`). ``attributes``
    are what the population's schema declares. ``wait`` is how many seconds a check-in may be held by the server: silos
    hear of work at once.
    """

    def __init__(  # noqa: PLR0913 - what an agent needs to know, by name
        self,
        server: str,
        data: Path | str | Own,
        state_folder: Path | str,
        policy: Policy | None = None,
        *,
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        attributes: Mapping[str, Any] | None = None,
        consent: bool = True,
        test_fraction: float = 0.0,
        wait: float = 30.0,
        plain: bool = False,
        clock: Clock | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.attributes = dict(attributes or {})
        self.consent = consent
        self.wait = wait
        self._clock = clock or SystemClock()
        reach, resources = Reach(server, ca=ca, certificate=certificate, plain=plain), self.policy.resources
        self.state = StateFolder(Path(state_folder), resources.disk_bytes)
        self._participations = Participations(self.state)
        usage = Usage(self.state, self._clock, kept=resources.bytes_a_day is not None)
        self._limits = Limits(resources, usage, self._clock, machine or Machine())
        self._transport = Transport(reach, clock=self._clock, meter=self._limits)
        self._sums = Summing(self.state, self._transport, self.policy.secure_sums, self._clock)
        self._reports = Reports(self.state, self._transport, self._participations)
        source = data if callable(data) else Path(data)
        site_data = SiteData(source, self.state.split_seed(), test_fraction)
        self._workshop = Workshop(self.state, self.policy, site_data)
        self._declined: Id | None = None
        self._withdrawn = False
        self.identity = self.state.identity()
        if self.identity is not None:
            self._transport.sign_as(self.identity.client, self.state.key())

    def close(self) -> None:
        """Let go of the connection and the folder."""
        self._transport.close()
        self.state.close()

    def enrol(self, token: str) -> Identity:
        """Become a client by a one-time token. Once enrolled, nothing is sent. Raises RefusedError."""
        if self.identity is not None:
            return self.identity
        proof = self.state.key().sign(enrolment(token))
        return self.enrol_with(wire.EnrolRequest(token=token, key_proof=proof))

    def enrol_with(self, request: wire.EnrolRequest) -> Identity:
        """Become a client by what a request holds: a token, or certificates and their proofs."""
        key = self.state.key()
        request.MergeFrom(
            wire.EnrolRequest(
                public_key=key.public_key().public_bytes_raw(),
                client_version=_version(),
                attributes=self._attributes(),
                consent=self.consent,
            )
        )
        with self._limits.lifted():
            answer = self._transport.enrol(request)
        reached("client.enrolled")
        identity = Identity(
            server=self._transport.reach.server,
            client=answer.client,
            number=answer.number,
            name=answer.name,
            population=answer.population,
            server_keys={each.key_id: bytes(each.public_key) for each in answer.server_keys},
        )
        self.state.save_identity(identity)
        self.identity = identity
        self._transport.sign_as(identity.client, key)
        log.info("enrolled client=%r name=%r population=%r", identity.client, identity.name, identity.population)
        return identity

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop. Raises HansaError for what no waiting mends."""
        self._workshop.stop = stop
        if self.state.next_key(make=False) is not None:
            self.insist(self.rotate_key, stop)
        failures = 0
        while not stop.is_set():
            try:
                pause = self.step()
                failures = 0
            except RefusedError as error:
                if error.code in _ENDS:
                    raise
                failures += 1
                pause = backoff(error, failures)
            stop.wait(pause)

    def insist(self, call: Callable[[], Any], stop: threading.Event) -> None:
        """Make a call until the server answers it: an agent may be started before its server, or while that is away."""
        failures = 0
        while not stop.is_set():
            try:
                call()
            except RefusedError as error:
                if not passes_by_itself(error):
                    raise
                failures += 1
                stop.wait(backoff(error, failures))
            else:
                return

    def step(self) -> float:
        """Do what is next: send what is on disk, else check in and answer; return in how many seconds to come back.

        What the policy does not allow now stays as it is on disk.
        """
        try:
            return self._do_next()
        except RefusedError as error:
            if error.code not in WAITS:
                raise
            log.info("resting code=%s because=%r", error.code, error.found)
            return OBSTRUCTED
        finally:
            self._limits.usage.write()

    def _do_next(self) -> float:
        pending = self.state.pending()
        if pending is not None and (not self.consent or self._limits.never(pending.size)):
            self._reports.keep_back(pending)
            pending = None
        if self.consent:
            if pending is not None:
                self._enrolled()
                return self._reports.send(pending, resumes=True)
            if (begun := self._sums.begun()) is not None:
                return self._sum(begun)
        answer = self._check_in(self.wait)
        if not answer.HasField("assignment"):
            return rest(answer.come_back_seconds)
        assigned = believed(answer.assignment, self._enrolled())
        self._settle(assigned)
        return self._take(assigned, answer.assignment.key_id)

    def rotate_key(self) -> None:
        """Take another key, known to the server from now on. One that was begun with and interrupted is ended."""
        identity, key = self._enrolled(), self.state.next_key(make=True)
        if key is None:
            raise LookupError("a next key is made where there is none")
        request = wire.RotateKeyRequest(
            public_key=key.public_key().public_bytes_raw(), key_proof=key.sign(client_key(identity.client))
        )
        with self._limits.lifted():
            try:
                self._transport.rotate_key(request)
            except RefusedError as error:
                if error.code != "HANSA-AUTH-SIGNATURE":
                    raise
                self._transport.sign_as(identity.client, key)  # the server may have it already: it signs for itself
                self._transport.rotate_key(request)
        self.state.take_next_key()
        self._transport.sign_as(identity.client, key)
        log.info("rotated key client=%s", identity.client)

    def goodbye(self) -> None:
        """End this client's part for good: it is never picked again."""
        with self._limits.lifted():
            self._transport.goodbye()

    def rehearse(self) -> dict[str, Any]:
        """Return what the server asks now, or would if it picked this client, and what would leave this machine.

        The federation stays as it is: the call only looks. Nothing is reported or declined. Where the client would rest
        now, nothing is fetched or computed.
        """
        rests = self._limits.obstacles()
        with self._limits.lifted():
            answer = self._transport.check_in(self._declaring(looks=True))
        self._learn_keys(answer)
        told: dict[str, Any] = {"assignment": None}
        if answer.HasField("assignment"):
            assigned = believed(answer.assignment, self._enrolled())
            told = offered(assigned)
            if not rests:
                told |= rehearsed(assigned, self._workshop, self._transport, self._limits, self.policy)
        self._limits.usage.write()
        return told | {"rests_because": rests}

    def used_today(self) -> int:
        """Return the bytes sent and received today."""
        return self._limits.usage.today()

    def _settle(self, assigned: wire.Assignment) -> None:
        """Learn what became of the run's own reports before its next answer builds on the rows that they left."""
        for report in self.state.reports():
            if report.outcome == "open" and report.id.run == assigned.id.run and report.id != id_of(assigned):
                self._check_in(0.0, report)

    def _check_in(self, wait: float, about: Report | None = None) -> wire.CheckInResponse:
        """Check in, learn the outcome of an open report (the oldest), and believe the server's new keys."""
        report, request = about or self.state.open_report(), self._declaring(wait_seconds=wait)
        if report is not None:
            request.reported.CopyFrom(on_the_wire(report.id))
        if self._declined is not None:
            request.declined.CopyFrom(on_the_wire(self._declined))
        withdraws = not self.consent and not self._withdrawn
        with self._limits.lifted(lifts=withdraws):
            answer = self._transport.check_in(request)
        if withdraws:
            self._withdrawn = True
            log.info("no consent: the server knows, and asks nothing of this client until it consents again")
        if report is not None:
            self._reports.learn(report, answer.outcome)
        self._learn_keys(answer)
        return answer

    def _declaring(self, **more: Any) -> wire.CheckInRequest:
        """Return a check-in with what this client declares. Raises RefusedError before it is enrolled."""
        self._enrolled()
        return wire.CheckInRequest(
            client_version=_version(), attributes=self._attributes(), consent=self.consent, **more
        )

    def _learn_keys(self, answer: wire.CheckInResponse) -> None:
        """Believe those new keys of the server that a known one vouches for."""
        identity = self._enrolled()
        keys = with_new_keys(identity.server_keys, answer.server_keys)
        if keys != identity.server_keys:
            self.identity = replace(identity, server_keys=keys)
            self.state.save_identity(self.identity)
            log.info("keys known=%d", len(keys))

    def _take(self, assigned: wire.Assignment, key_id: str) -> float:
        """Answer an assignment, or decline it."""
        assignment = id_of(assigned)
        if self.state.answered(assignment) or assignment == self._declined:
            log.warning("again assignment=%s", assignment)
            return AGAIN
        if 0 < assigned.deadline_ms < self._clock.now() * 1000:
            log.info("late assignment=%s", assignment)
            return AGAIN
        reached("client.assigned")
        began = time.perf_counter()
        try:
            pending = self._compute(assigned, assignment, key_id)
        except (HansaError, MemoryError) as error:
            code = error.code if isinstance(error, HansaError) else "HANSA-RUN-MEMORY"
            if passes_by_itself(error) or code == NOT_NOW:
                raise
            return self._decline(assigned, assignment, code, str(error))
        except (Exception, SystemExit) as error:
            log.debug("failed", exc_info=True)
            return self._decline(assigned, assignment, "HANSA-INTERNAL", f"{type(error).__name__}: {error}")
        log.info("computed assignment=%s seconds=%.2f", assignment, time.perf_counter() - began)
        if pending is None:
            return 0.0  # the secure sum is begun
        reached("client.pending-written")
        return self._reports.send(pending, resumes=False)

    def _compute(self, assigned: wire.Assignment, assignment: Id, key_id: str) -> Pending | None:
        """Return the report that is to be sent; None where the answer goes into a secure sum, which is begun."""
        if costs := too_costly(assigned, self._workshop, self._limits):
            raise refused(costs)
        job = self._workshop.job(assigned, self._transport)
        reasons = objections(self.policy, asked(assigned, job)) + self._participations.objections(job, assignment)
        if reasons:
            raise refused(reasons)
        model = self._workshop.model(assigned, self._transport)
        self._limits.require_now()
        count_training(self.state, assignment, job.plan)
        answer = self._workshop.answer(assigned, assignment, job, model)
        reached("client.trained")
        require_fits(self._limits, self.state.room, answer, assigned.cohort_size)
        if answer.own is not None:
            own = {"run": assignment.run, "job": job.name, "round": assignment.round, **answer.own}
            self.state.note(OWN_METRICS, own)
        self._participations.note(job, assignment)
        if answer.ring is not None:
            self.state.write_rows(assignment, answer.rows)
            self._sums.begin(assigned, job, answer, self._enrolled().server_keys[key_id])
            return None
        digest = hashlib.sha256(answer.content).hexdigest()
        return self.state.write_pending(assignment, answer.content, digest, answer.rows)

    def _sum(self, begun: Begun) -> float:
        """Go on with a secure sum; one that does not hold what it must is declined."""
        pause = self._sums.step(begun, self.wait, lambda pending: self._reports.send(pending, resumes=False))
        if self._sums.left == begun.id:
            self._declined = begun.id
            if not self.state.answered(begun.id):  # else its vector may be in the sum without its further help
                self._participations.forget(begun.id)
        return rest(pause)

    def _decline(self, assigned: wire.Assignment, assignment: Id, code: str, why: str) -> float:
        """Tell the server, at the next check-in, that an assignment is not answered; the reason stays here."""
        log.warning("declined assignment=%s plan=%r code=%s why=%r", assignment, assigned.plan_sha256, code, why)
        line = {
            "at": self._clock.now(),
            "assignment": str(assignment),
            "plan_sha256": assigned.plan_sha256,
            "code": code,
            "why": why,
        }
        self.state.note(DECLINED, line)
        self._declined = assignment
        return 0.0

    def _enrolled(self) -> Identity:
        if self.identity is None:
            raise RefusedError(
                "HANSA-AUTH-UNKNOWN",
                rule="A client enrols before it takes part.",
                found="This one has not.",
                action="Give it the one-time token that the federation's operator made for it.",
            )
        return self.identity

    def _attributes(self) -> dict[str, str]:
        return {name: json.dumps(value) for name, value in self.attributes.items()}


def _version() -> str:
    return metadata.version("hansa")
