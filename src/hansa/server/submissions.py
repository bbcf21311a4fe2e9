"""What a job must be before it is run: checked here, whole, without importing any code that its plan names."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hansa.algorithms.plan import Plan, plan_from_mapping, plan_sha256, population_problems
from hansa.algorithms.prologue import statistics_layout
from hansa.algorithms.round_storage import RoundStorage, round_storage
from hansa.algorithms.rounds import travelling_layout
from hansa.core.allowed import Allowance, allowance_for, allowing
from hansa.core.errors import HansaError, PlanError, Problem, RefusedError
from hansa.core.layout import Layout
from hansa.core.nouns import Signature
from hansa.core.schema import to_mapping
from hansa.core.sections import Features
from hansa.core.secure_aggregation import SecureAggregation
from hansa.evaluation.metrics import choose
from hansa.secagg.keys import KEY_BYTES
from hansa.server import usage
from hansa.server.eligibility_checks import check_eligibility
from hansa.server.model_files import HEADER, checked, read_header
from hansa.server.private_rounds import release_of
from hansa.server.rounds_at_rest import descriptor_name, model_name, upload_name
from hansa.server.spending import check_submission, require_unlimited
from hansa.store.blobs import Blobs
from hansa.store.records import Job, Population, Run, Tenant, Token
from hansa.wire.jobs import JobDescriptor, layout_from_mapping
from hansa.wire.server_models import unfit

if TYPE_CHECKING:
    from hansa.server.services import Services

LOWEST: Final = -100
HIGHEST: Final = 100
"""Between which a priority lies; the higher run goes first."""

_DEEPEST: Final = 64
_NO_PIECES: Final = frozenset(("name", "seed", "rounds", "model", "features", "secure_aggregation", "privacy"))
"""Sections in which no piece is named. The factory in ``model`` is text here: only sites import it."""
_ABSENT: Final = ("central", "validation")
"""What a stopping rule cannot watch in a federation."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A plan with what the server cannot find out by itself; ``model`` is the digest of a model uploaded before."""

    name: str
    population: str
    plan: Mapping[str, Any]
    signature: Mapping[str, Any]
    layout: Mapping[str, Any]
    model: str
    eligibility: str = ""
    priority: int = 0
    purpose: str = ""
    wait_for: int = 1
    """How many clients must be eligible before the first round."""


@dataclass(frozen=True)
class Checked:
    """A submission that stands: its plan as built, and what clients will be told."""

    plan: Plan
    descriptor: JobDescriptor


def check(  # noqa: PLR0913, PLR0917 - a submission, and what it must fit
    submission: Submission,
    population: Population,
    clients: int,
    tenant: Tenant,
    allowances: tuple[Allowance, ...],
    decryptor_urls: Sequence[str],
    authority_urls: Sequence[str],
    own_keys: Collection[bytes],
) -> Checked:
    """Return a submission that stands. Raises HansaError: PlanError with every problem where it is the plan's."""
    plan = planned({**submission.plan, "name": submission.name}, allowances)
    check_eligibility(submission.eligibility, population.schema)
    signature, layout = _model_of(submission)
    problems = [*population_problems(plan, clients), *federation_problems(plan, signature)]
    problems += [*decryptor_problems(plan, decryptor_urls), *authority_problems(plan, authority_urls, own_keys)]
    if problems:
        raise PlanError(problems)
    choose(plan.evaluation.metrics, signature)
    if plan.features is not None and plan.features.scaling == "federated":
        statistics_layout(plan.features)
    return Checked(
        plan,
        JobDescriptor(
            name=submission.name,
            plan=to_mapping(plan),
            plan_sha256=plan_sha256(plan),
            signature=signature,
            layout=layout,
            population=population.name,
            operator=tenant.name,
            purpose=submission.purpose,
        ),
    )


def planned(tables: Mapping[str, Any], allowances: tuple[Allowance, ...]) -> Plan:
    """Return the plan of some tables, without what only a simulation has.

    Nothing that they name is imported but pieces of Hansa and those that the server allows.

    Raises RefusedError (HANSA-CODE-FORBIDDEN) for any other piece, and PlanError.
    """
    kept = {key: value for key, value in tables.items() if key not in ("data", "devices")}
    with allowing(allowances):
        for key, value in kept.items():
            if key not in _NO_PIECES:
                for named in _code(value, key):
                    allowance_for(named)
        return plan_from_mapping(kept)


def _code(value: Any, path: str) -> Iterator[str]:
    """Yield every text that could be taken for "package.module:name"."""
    level = [value]
    for _ in range(_DEEPEST):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str) and ":" in item:
                yield item
            elif isinstance(item, Mapping):
                deeper += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                deeper += item
        level = deeper
    if level:
        raise PlanError([Problem(path, f"is nested more than {_DEEPEST} levels deep.")])


def _model_of(submission: Submission) -> tuple[Signature, Layout]:
    """Return what a submission says of its model and data. Raises RefusedError for what cannot be."""
    try:
        of = submission.signature
        signature = Signature(
            tuple(int(length) for length in of["shape"]),
            int(of["classes"]),
            bool(of.get("integer_inputs", False)),
            int(of.get("vocabulary", 0)),
        )
        layout = layout_from_mapping({"lanes": [], **submission.layout})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise unfit(f"The signature or layout cannot be read ({type(error).__name__}).") from None
    names = [branch.name for branch in layout.branches]
    if (
        layout.lanes
        or "params" not in names
        or not set(names) <= {"params", "buffers"}
        or len(set(names)) != len(names)
    ):
        raise unfit(f'Its branches are {names}; they must be "params", and "buffers" where there are some, no lanes.')
    if min((*signature.shape, signature.classes, signature.vocabulary)) < 0 or signature.classes == 1:
        raise unfit("Its signature has a negative length, or one class.")
    return signature, layout


def federation_problems(plan: Plan, signature: Signature) -> Iterator[Problem]:
    """Yield what a simulation finds in its data and a federation must find in the plan."""
    if plan.features is not None:
        yield from _feature_problems(plan.features, signature)
    if plan.secure_aggregation is not None:
        yield from _secure_problems(plan.secure_aggregation)
        if plan.evaluation.federated_clients is not None:
            yield Problem(
                "evaluation.federated_clients",
                "beside secure sums is for simulations: the last evaluation asks all once more, and two sums of one "
                "round would show the difference; remove it.",
            )
    part = (plan.stopping.metric or "").partition(".")[0]
    if part in _ABSENT:
        yield Problem("stopping.metric", f'a federation has no {part} examples; watch "federated." metrics.')
    if part == "federated" and not plan.evaluation.federated:
        yield Problem("stopping.metric", "needs evaluation.federated = true.")


def _secure_problems(section: SecureAggregation) -> Iterator[Problem]:
    """Yield what a simulation computes and this version's server does not carry."""
    keys = [each.identity for each in section.decryptors]
    for place, key in enumerate(keys):
        if len(key) != KEY_BYTES or key in keys[:place]:
            yield Problem(
                f"secure_aggregation.decryptors.{place}.key",
                "must be the decryptor's own public key, as `hansa decryptor key` prints it.",
            )
    if section.registrar == "authority" and section.authority is None:
        yield Problem(
            "secure_aggregation.registrar",
            'is "authority", and no [secure_aggregation.authority] names it; add that, or use "pinned".',
        )
    if section.authority is not None and len(section.authority.identity) != KEY_BYTES:
        yield Problem(
            "secure_aggregation.authority.key",
            "must be the authority's own public key, as `hansa authority key` prints it.",
        )


def decryptor_problems(plan: Plan, urls: Sequence[str]) -> Iterator[Problem]:
    """Yield the decryptors of a plan that the server does not call: it calls no place that only a plan names."""
    decryptors = () if plan.secure_aggregation is None else plan.secure_aggregation.decryptors
    for place, each in enumerate(decryptors):
        if each.url not in urls:
            yield Problem(
                f"secure_aggregation.decryptors.{place}.url",
                f"is {each.url!r}, which is not among the server's decryptor_urls; ask its administrator to add it.",
            )


def authority_problems(plan: Plan, urls: Sequence[str], own_keys: Collection[bytes]) -> Iterator[Problem]:
    """Yield why a plan's authority is none: the server does not call it, or it would be the server itself."""
    authority = None if plan.secure_aggregation is None else plan.secure_aggregation.authority
    if authority is not None and authority.identity in own_keys:
        yield Problem(
            "secure_aggregation.authority.key",
            "is a key of this server; an authority is another than the server: take what `hansa authority key` prints.",
        )
    if authority is not None and authority.url not in urls:
        yield Problem(
            "secure_aggregation.authority.url",
            f"is {authority.url!r}, which is not among the server's authority_urls; ask its administrator to add it.",
        )


def _feature_problems(features: Features, signature: Signature) -> Iterator[Problem]:
    if features.task is None:
        yield Problem("features.task", 'is needed where no data are at hand: "classification" or "regression".')
    if not features.columns:
        yield Problem("features.columns", "must be declared: each client reads the same ones.")
    if features.task == "classification" and len(features.classes) < 2:
        yield Problem("features.classes", "must name the classes, in the order of the model's outputs.")
    for position, column in enumerate(features.columns):
        if column.kind == "category" and not column.categories:
            yield Problem(f"features.columns.{position}.categories", f"must list the categories of {column.name!r}.")
        if column.kind == "number" and column.low is None:
            yield Problem(f"features.columns.{position}.low", f"must declare low and high of {column.name!r}.")
    slots = len(features.slots())
    if features.columns and signature.shape != (slots,):
        yield Problem("features.columns", f"give {slots} numbers, but the model was built for {signature.shape}.")
    classes = len(features.classes) if features.task == "classification" else 0
    if features.task is not None and features.classes and signature.classes != classes:
        yield Problem("features.classes", f"are {classes}, but the model was built for {signature.classes}.")


class Taken(NamedTuple):
    """A job that was taken, its run, and what a round of it stores."""

    job: Job
    run: Run
    storage: RoundStorage | None


async def submit(services: Services, token: Token, submission: Submission) -> Taken:
    """Check a submission and make its job and run, in one transaction. Raises HansaError."""
    async with services.store.reading() as rows:
        tenant = await rows.tenants.get(token.tenant)
        population = await rows.populations.named(token.tenant, submission.population)
        clients = await rows.clients.size(population.id) if population else 0
    if tenant is None or population is None:
        raise not_found(f"population {submission.population!r}")
    urls = services.settings.decryptor_urls, services.settings.authority_urls
    own = {each.public_key for each in services.signer.published()}
    stands = await asyncio.to_thread(check, submission, population, clients, tenant, services.allowances, *urls, own)
    planned = await asyncio.to_thread(release_of, stands.plan, stands.descriptor.layout, clients)
    if planned is not None:
        async with services.store.reading() as rows:
            now = services.clock.now()
            await check_submission(rows, token.tenant, population.id, [planned], plan=stands.plan, now=now)
    else:
        async with services.store.reading() as rows:
            await require_unlimited(rows, token.tenant, population)
    storage = await _room(services, tenant.id, stands, clients)
    uploaded = upload_name(tenant.id, submission.model)
    total = await check_model(services.blobs, uploaded, stands)
    content = stands.descriptor.to_bytes()
    descriptor = hashlib.sha256(content).hexdigest()
    await services.blobs.put(model_name(submission.model), services.blobs.read(uploaded, 0, total))
    await services.blobs.put(descriptor_name(descriptor), _once(content))
    job, run = _records(submission, stands, descriptor, token, population, services.clock.now())
    detail = {"job": job.id, "name": job.name, "plan_sha256": job.plan_sha256, "by": token.name}
    async with services.store.transaction() as rows:
        await rows.jobs.add(job)
        await rows.runs.add(run)
        await rows.events.add("run.submitted", tenant=tenant.id, at=job.submitted_at, run=run.id, detail=detail)
    await services.blobs.delete(uploaded)
    services.board.changed.set()
    return Taken(job, run, storage)


async def _room(services: Services, tenant: str, stands: Checked, clients: int) -> RoundStorage | None:
    """Return what a round of a plan stores. Raises StoreError where the tenant's quota has no room for it."""
    layout = travelling_layout(stands.plan, stands.descriptor.layout)
    storage = await asyncio.to_thread(round_storage, stands.plan, layout, clients, services.settings.fold_every)
    if storage is not None:
        what = f"{storage.waiting} x {storage.update} bytes of updates in an open round"
        await usage.require_room(services, tenant, storage.total, what if not storage.sums else f"{what}, and its sum")
    return storage


async def store_upload(services: Services, tenant: str, sha256: str, total: int, chunks: AsyncIterator[bytes]) -> None:
    """Keep a model for a submission. Raises RefusedError unless it is what was announced, finite, and not too large."""
    limit = services.settings.largest_model_bytes
    if total > limit:
        raise RefusedError(
            "HANSA-REQUEST-TOO-LARGE",
            rule=f"A model has at most {limit} bytes here.",
            found=f"This one has {total}.",
            action="Ask the server's administrator to raise largest_model_bytes.",
        )
    await services.blobs.put(upload_name(tenant, sha256), checked(chunks, sha256=sha256, total=total))


def _records(  # noqa: PLR0913, PLR0917 - what a job is made of
    submission: Submission, stands: Checked, descriptor: str, token: Token, population: Population, now: float
) -> tuple[Job, Run]:
    job = Job(
        id=f"job-{secrets.token_hex(8)}",
        tenant=token.tenant,
        population=population.id,
        name=submission.name,
        plan=stands.descriptor.plan,
        plan_sha256=stands.descriptor.plan_sha256,
        descriptor=descriptor,
        model=submission.model,
        eligibility=submission.eligibility.strip(),
        priority=submission.priority,
        submitted_by=token.name,
        submitted_at=now,
    )
    run = Run(
        id=f"run-{secrets.token_hex(8)}",
        tenant=token.tenant,
        job=job.id,
        population=population.id,
        state="running",
        version=0,
        round=0,
        model=submission.model,
        slots=None,
        notes={"wait_for": submission.wait_for},
        priority=submission.priority,
        started_at=now,
    )
    return job, run


async def check_model(blobs: Blobs, name: str, stands: Checked) -> int:
    """Return a model's bytes. Raises HansaError unless it was uploaded and has the plan's layout."""
    total = await usage.size_of(blobs, name)
    if total is None:
        raise not_found("uploaded model with this digest; upload it first")
    beginning = b"".join([chunk async for chunk in blobs.read(name, 0, min(total, HEADER + 8))])
    header = read_header(beginning, total)
    layout = stands.descriptor.layout
    if header.size != layout.size:
        branches = ", ".join(branch.name for branch in layout.branches)
        raise unfit(f"It has {header.size} numbers; the layout's branches ({branches}) have {layout.size}.")
    if header.features is not None:
        raise unfit("It holds a scaling of features, which follows from the plan.")
    return total


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def not_found(what: str) -> HansaError:
    """Return what to say of something that is not there, or not for this caller: the two are one."""
    return RefusedError(
        "HANSA-NOT-FOUND",
        rule="What is asked for belongs to the caller's tenant.",
        found=f"There is no {what}.",
        action="List what there is, and use its id.",
    )
