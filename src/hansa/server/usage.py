"""What a tenant uses of the server, and whether there is room for more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hansa.core.errors import StoreError
from hansa.server.rounds_at_rest import model_name, round_prefix, slots_name, upload_name
from hansa.store.blobs import Blobs

if TYPE_CHECKING:
    from hansa.server.services import Services

_ALL: Final = 1_000_000
_GOING_ON: Final = ("running", "paused")


@dataclass(frozen=True)
class Usage:
    """What a tenant uses; ``update_bytes`` are those of sealed updates and partial sums of open rounds."""

    populations: int
    clients: int
    jobs: int
    runs_by_state: Mapping[str, int]
    models: int
    model_bytes: int
    slot_bytes: int
    update_bytes: int
    quota_bytes: int | None


async def of_tenant(services: Services, tenant: str) -> Usage:
    """Return what a tenant uses."""
    async with services.store.reading() as rows:
        populations = await rows.populations.of(tenant)
        clients = sum([await rows.clients.size(each.id) for each in populations])
        jobs = await rows.jobs.of(tenant, _ALL)
        runs = await rows.runs.of(tenant, state=None, limit=_ALL)
        releases = await rows.releases.of(tenant)
        coming = [each.id for run in runs if run.state in _GOING_ON for each in await rows.rounds.open_of(run.id)]
    digests = {release.sha256 for release in releases} | {job.model for job in jobs} | {run.model for run in runs}
    return Usage(
        populations=len(populations),
        clients=clients,
        jobs=len(jobs),
        runs_by_state=dict(Counter(run.state for run in runs)),
        models=len(digests),
        model_bytes=await _bytes(services, tenant, digests),
        slot_bytes=await _sum(services, [slots_name(run.slots) for run in runs if run.slots is not None]),
        update_bytes=sum([each.size for key in coming for each in await services.blobs.listed(round_prefix(key))]),
        quota_bytes=services.settings.quota_bytes or None,
    )


async def require_room(services: Services, tenant: str, more: int, what: str) -> None:
    """Raise StoreError where so many more bytes would pass a tenant's quota; ``what`` they are, in words."""
    quota = services.settings.quota_bytes
    if not quota:
        return
    of = await of_tenant(services, tenant)
    used = of.model_bytes + of.slot_bytes + of.update_bytes
    if used + more > quota:
        raise StoreError(
            "HANSA-SERVER-STORAGE",
            rule=f"A tenant has at most {quota} bytes of models, optimizers' slots and updates of open rounds here.",
            found=f"It has {used}, and {more} more were to come: {what}.",
            action="Ask the server's administrator for more room, or wait until models of ended runs are removed.",
        )


async def size_of(blobs: Blobs, name: str) -> int | None:
    """Return a blob's bytes, or None where there is none of that name."""
    try:
        return await blobs.size(name)
    except StoreError as error:
        if error.code == "HANSA-NOT-FOUND":
            return None
        raise


async def _bytes(services: Services, tenant: str, digests: set[str]) -> int:
    names = [model_name(digest) for digest in digests]
    names += await services.blobs.names(upload_name(tenant, ""))
    return await _sum(services, names)


async def _sum(services: Services, names: Iterable[str]) -> int:
    sizes = [await size_of(services.blobs, name) for name in sorted(set(names))]
    return sum(size or 0 for size in sizes)
