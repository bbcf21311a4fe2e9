"""The client protocol as a Connect service. What it answers comes from the board; it writes only what changed."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import structlog
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf.wkt import Any as Detail

from hansa.core.errors import CATALOGUE, HansaError, RefusedError
from hansa.core.killpoints import reached
from hansa.server.board import Posted
from hansa.server.checking import NAMED, name_sender
from hansa.server.contexts import RunContext
from hansa.server.enrolment import check_declared, enrol, read_attributes, rotate_key
from hansa.server.leaving import leave, leave_all, tell
from hansa.server.measures import CHECK_INS
from hansa.server.recorder import unexpected
from hansa.server.services import Services
from hansa.server.transfers import RUN_ID, internal, malformed
from hansa.store.records import Assigned, Client, RoundKey
from hansa.wire.generated import federation_pb2 as messages
from hansa.wire.signatures import assignment as signed_content

_LOG: Final = structlog.get_logger("hansa.server")

SIGNED_AT: Final[ContextVar[float]] = ContextVar("signed_at", default=0.0)
"""When the call was signed, by its caller's clock."""
CALLER: Final[ContextVar[Client | HansaError | None]] = ContextVar("caller", default=None)
"""Who signed the call that is being answered, or why nobody did."""

_SOON: Final = 1.0
"""Seconds after which a client of a secure sum asks again, where it does not wait here."""
_LEFT: Final = ("declined", "refused")
_OUTCOMES: Final = {
    "included": messages.OUTCOME_INCLUDED,
    "reported": messages.OUTCOME_OPEN,
}


@dataclass(frozen=True)
class ClientApi:
    """Answers clients: enrolment, check-ins, goodbyes."""

    services: Services

    async def enrol(self, request: messages.EnrolRequest, _context: Any) -> messages.EnrolResponse:
        """Make a client of an invitation and a key."""
        try:
            client, population = await enrol(self.services, request)
        except Exception as error:  # noqa: BLE001 - what is no refusal is told as a bug, and nothing of it
            raise_connect(error)
        return messages.EnrolResponse(
            client=client.id,
            number=client.number,
            name=client.name,
            population=population.name,
            server_keys=self.services.signer.published(),
        )

    async def check_in(self, request: messages.CheckInRequest, _context: Any) -> messages.CheckInResponse:
        """Answer with an assignment, or with when to come back; with the outcome of the last report, if asked."""
        try:
            return await self._check_in(request)
        except Exception as error:  # noqa: BLE001 - what is no refusal is told as a bug, and nothing of it
            raise_connect(error)

    async def exchange(self, request: messages.ExchangeRequest, _context: Any) -> messages.ExchangeResponse:
        """Take a client's message of a secure sum; answer with the next one to it, or with when to come back."""
        try:
            return await self._exchange(request)
        except Exception as error:  # noqa: BLE001 - what is no refusal is told as a bug, and nothing of it
            raise_connect(error)

    async def rotate_key(self, request: messages.RotateKeyRequest, _context: Any) -> messages.RotateKeyResponse:
        """Give the client that calls another key, from its next call on."""
        try:
            await rotate_key(self.services, _caller(), request)
        except Exception as error:  # noqa: BLE001 - what is no refusal is told as a bug, and nothing of it
            raise_connect(error)
        return messages.RotateKeyResponse()

    async def goodbye(self, _request: messages.GoodbyeRequest, _context: Any) -> messages.GoodbyeResponse:
        """Retire the client that calls."""
        try:
            client = _caller()
            now = self.services.clock.now()
            async with self.services.store.transaction() as rows:
                await rows.clients.set_state(client.id, "retired", at=now, why="it said goodbye")
                left = await leave_all(rows, client.id, "lost", at=now)
            self.services.clients.drop(client.id)
            tell(self.services.board, client.id, left)
        except Exception as error:  # noqa: BLE001 - what is no refusal is told as a bug, and nothing of it
            raise_connect(error)
        return messages.GoodbyeResponse()

    async def _check_in(self, request: messages.CheckInRequest) -> messages.CheckInResponse:
        services, client = self.services, _caller()
        if request.looks:
            return await self._shown(client, request)
        client = await self._declared(client, request)
        services.board.callers.called(client.population, client.number, services.clock.now())
        if request.HasField("declined"):
            await self._declined(client, read_key(request.declined))
        answer = messages.CheckInResponse()
        found = self._assignment(client, request)
        if found is None and request.wait_seconds > 0:
            seconds = min(request.wait_seconds, services.settings.long_poll_seconds)
            await services.board.wait(client.id, seconds)
            found = self._assignment(client, request)
        if request.HasField("reported"):
            answer.outcome = await self._outcome(client, read_key(request.reported))
        announcement = None if found is None else await self._announcement(*found)
        answer.server_keys.extend(
            services.signer.published()
        )  # last: the key that signs may be new since the call came
        if found is None:
            CHECK_INS.labels("come back").inc()
            answer.come_back_seconds = services.pace.seconds(services.board.callers.count(client.population))
        elif announcement is None:
            answer.come_back_seconds = _SOON
        else:
            CHECK_INS.labels("assignment").inc()
            answer.assignment.CopyFrom(self._signed(client, *found, announcement))
            reached("server.check-in.answering")
        return answer

    async def _shown(self, client: Client, request: messages.CheckInRequest) -> messages.CheckInResponse:
        """Answer with what a client is asked, or would be if it were picked; nothing becomes of it."""
        services = self.services
        async with services.store.reading() as rows:
            population = await rows.populations.get(client.population)
        if population is None:
            raise LookupError("a client has a population")
        check_declared(population, read_attributes(request.attributes), request.client_version)
        answer = messages.CheckInResponse(server_keys=services.signer.published())
        found = services.board.assignment(client.id) or services.board.example(client)
        if found is None:
            answer.come_back_seconds = services.pace.seconds(services.board.callers.count(client.population))
        else:
            answer.assignment.CopyFrom(self._signed(client, *found, b""))
        return answer

    async def _exchange(self, request: messages.ExchangeRequest) -> messages.ExchangeResponse:
        services, client, key = self.services, _caller(), read_key(request.id)
        context = await self._context(key, client)
        wait = min(max(0.0, request.wait_seconds), services.settings.long_poll_seconds)
        now = services.clock.now()
        try:
            message = await services.sums.exchange(
                context, key, client, bytes(request.message), request.seen, wait, now
            )
        except RefusedError as error:
            if error.code in NAMED:
                await name_sender(services, key, client, error.code)
            raise
        return messages.ExchangeResponse(message=message, come_back_seconds=0.0 if message else _SOON)

    async def _context(self, key: RoundKey, client: Client) -> RunContext:
        """Return what the round's run is about. Raises RefusedError unless it is of the client's population."""
        standing = self.services.board.rounds.get(key)
        if standing is not None and standing.posted.population == client.population:
            return standing.posted.context
        held = self.services.sums.held.get(key)
        if held is not None and held.context.run.population == client.population:
            return held.context  # the survivors are frozen, and the round is off the board
        async with self.services.store.reading() as rows:
            run = await rows.runs.get(key.run)
        if run is None or run.population != client.population:
            raise unexpected()
        context = await self.services.contexts.of(run)
        if context.plan.secure_aggregation is None:
            raise unexpected()
        return context

    async def _declared(self, client: Client, request: messages.CheckInRequest) -> Client:
        """Take note of what a client declares anew; return its row. The first check-in makes it active."""
        attributes = read_attributes(request.attributes)
        same = (dict(client.attributes), client.version, client.consent) == (
            attributes,
            request.client_version,
            request.consent,
        )
        if same and client.state == "active":
            return client
        now = self.services.clock.now()
        left: list[RoundKey] = []
        async with self.services.store.transaction() as rows:
            population = await rows.populations.get(client.population)
            if population is None:
                raise LookupError("a client has a population")
            check_declared(population, attributes, request.client_version)
            if not same:
                declared = await rows.clients.declare(
                    client.id,
                    attributes=attributes,
                    version=request.client_version,
                    consent=request.consent,
                    at=SIGNED_AT.get(),
                )
                if client.consent != request.consent == declared.consent:
                    kind = "client.consented" if request.consent else "client.withdrew-consent"
                    await rows.events.add(kind, tenant=client.tenant, at=now, client=client.id)
            if not request.consent:
                left = await leave_all(rows, client.id, "declined", at=now)
            if client.state == "enrolled":
                await rows.clients.activate(client.id, at=now, why="it checked in")
        self.services.clients.drop(client.id)
        tell(self.services.board, client.id, left)
        changed = await self.services.clients.get(client.id)
        if changed is None:
            raise LookupError("a client that changed is there")
        self.services.board.changed.set()
        return changed

    def _assignment(self, client: Client, request: messages.CheckInRequest) -> tuple[Posted, Assigned] | None:
        """Return what a client is asked, unless it consents no more, or has just answered it."""
        found = self.services.board.assignment(client.id)
        if found is None or not request.consent:
            return None
        answered = [read_key(of) for of in (request.reported, request.declined) if of.run]
        return None if found[0].round.id in answered else found

    async def _declined(self, client: Client, key: RoundKey) -> None:
        """Take note that a site's policy refused: the round does not wait for this client."""
        now = self.services.clock.now()
        async with self.services.store.transaction() as rows:
            left = await leave(rows, key, client.id, "declined", at=now)
        if left:
            tell(self.services.board, client.id, [key])

    async def _outcome(self, client: Client, key: RoundKey) -> messages.Outcome:
        async with self.services.store.reading() as rows:
            assigned = await rows.rounds.assignment(key, client.id)
            round_ = await rows.rounds.get(key)
        if assigned is None or round_ is None or round_.state == "abandoned":
            return messages.OUTCOME_NOT_INCLUDED
        if round_.state == "aggregating" and assigned.fate in _LEFT:
            return messages.OUTCOME_OPEN  # its vector is in the sum, though it helps no more to unmask it
        return _OUTCOMES.get(assigned.fate or "reported", messages.OUTCOME_NOT_INCLUDED)

    async def _announcement(self, posted: Posted, assigned: Assigned) -> bytes | None:
        """Return what tells a client of its round's secure sum; None once the sum goes on without it."""
        if posted.context.plan.secure_aggregation is None:
            return b""
        try:
            return await self.services.sums.announcement(posted.context, posted.round, assigned.position) or None
        except RefusedError:
            return None  # the round is over, and this replica did not know

    def _signed(
        self, client: Client, posted: Posted, assigned: Assigned, announcement: bytes
    ) -> messages.SignedAssignment:
        round_, context = posted.round, posted.context
        content = messages.Assignment(
            id=message_of(round_.id),
            job_sha256=context.job.descriptor,
            plan_sha256=context.job.plan_sha256,
            model_sha256=round_.model,
            model_size=context.model_size,
            client=client.id,
            number=assigned.number,
            cohort_size=round_.cohort_size,
            population=round_.population,
            deadline_ms=int((assigned.notes.get("deadline") or round_.deadline or 0) * 1000),
            secure_sum=announcement,
        ).SerializeToString(deterministic=True)
        signature, key_id = self.services.signer.sign(signed_content(content))
        return messages.SignedAssignment(assignment=content, signature=signature, key_id=key_id)


def _caller() -> Client:
    caller = CALLER.get()
    if isinstance(caller, HansaError):
        raise caller
    if caller is None:
        raise LookupError("a call is authenticated before it is answered")
    return caller


def message_of(key: RoundKey) -> messages.AssignmentId:
    """Return the message that names a round's assignment."""
    return messages.AssignmentId(run=key.run, kind=f"KIND_{key.kind.upper()}", round=key.round, attempt=key.attempt)


def read_key(message: messages.AssignmentId) -> RoundKey:
    """Return the round that a message names. Raises RefusedError for none."""
    kinds: dict[int, Any] = {
        messages.KIND_STATISTICS: "statistics",
        messages.KIND_TRAINING: "training",
        messages.KIND_EVALUATION: "evaluation",
    }
    if message.kind not in kinds or not RUN_ID.fullmatch(message.run):
        raise malformed("An assignment is named by run, kind, round and attempt.")
    return RoundKey(message.run, kinds[message.kind], message.round, message.attempt)


def raise_connect(error: Exception) -> NoReturn:
    """Raise an error as Connect has it, with its parts as a detail. Only refusals tell what was found."""
    if not isinstance(error, HansaError):
        _LOG.error("call failed", error=type(error).__name__, exc_info=error)
        error = internal()
    shown = isinstance(error, RefusedError)
    found = error.found if shown else ""
    problem = messages.Problem(code=error.code, rule=error.rule, found=found, action=error.action)
    detail = Detail(type_url="type.googleapis.com/hansa.v1.Problem", value=problem.SerializeToString())
    code = Code(CATALOGUE[error.code].connect)
    message = f"{error.code}: {error}" if shown else error.code
    raise ConnectError(code, message, details=[detail]) from error
