"""A cohort of a thousand drawn from a million enrolled clients on PostgreSQL, by attributes and minimum separation."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.federation.arrivals import percentile
from benchmarks.federation.jobs import plan_of
from benchmarks.federation.served import VERSION
from hansa.algorithms.rounds import start
from hansa.core.nouns import ServerState, Signature
from hansa.core.streams import Streams
from hansa.server.cohorts import draw, eligible_clients, secret_coins
from hansa.server.eligibility import Eligibility
from hansa.store.enrolments import Newcomer
from hansa.store.records import Job, Population, Run
from hansa.store.store import Store

CLIENTS: Final = 1_000_000
COHORT: Final = 1_000
_BATCH: Final = 100_000
_SEPARATION: Final = 8
_PREPARED: Final = 20
"""Rounds that were held before the first draw: whoever took part lately may not be drawn again."""
_RUN: Final = "run"
CONDITIONS: Final = 'attributes.region == "eu" && attributes.device == "phone" && attributes.ram_gb >= 4.0'


def cohort(*, clients: int = CLIENTS, draws: int = 100) -> dict[str, Any]:
    """Measure draws: who is eligible is read anew for each, and each cohort's participation is recorded."""
    from hansa.testing.postgres import own_postgres  # noqa: PLC0415 - this scenario's alone

    with tempfile.TemporaryDirectory(prefix="hansa-pg-") as folder, own_postgres(Path(folder)) as url:
        return asyncio.run(_measured(url, clients, draws))


def _vacuum(url: str) -> None:
    """Leave the tables as autovacuum leaves them, which runs once a minute."""
    import psycopg  # noqa: PLC0415 - this scenario's alone

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


async def _measured(url: str, clients: int, draws: int) -> dict[str, Any]:
    store = await Store.open(url)
    try:
        began = time.perf_counter()
        population = await _enrolled(store, clients)
        enrolled = time.perf_counter() - began
        await asyncio.to_thread(_vacuum, url)
        plan = plan_of(cohort__kind="min-separation", cohort__size=COHORT, cohort__rounds=_SEPARATION)
        model = plan.trainer.initial(plan.model, Signature((9,), 2), Streams(0).of("model"))
        state = start(plan, model)
        eligibility = Eligibility(CONDITIONS)
        taken, looked, cohorts, eligible_count = [], [], [], 0
        for number in range(_PREPARED + draws):
            state = ServerState(number, state.layout, state.model, state.slots)
            began = time.perf_counter()
            async with store.reading() as rows:
                eligible = await eligible_clients(rows, population, eligibility, callers=None)
            found = time.perf_counter() - began
            drawn = await draw(store, plan, state, run=_RUN, eligible=eligible, coins=secret_coins())
            if number >= _PREPARED:
                taken.append(time.perf_counter() - began)
                looked.append(found)
                cohorts.append(len(drawn))
            eligible_count = eligible.count
            async with store.transaction() as rows:
                await rows.participation.record(_RUN, drawn, number + 1)
    finally:
        await store.close()
    return {
        "clients": clients,
        "eligible": eligible_count,
        "draws": draws,
        "smallest_cohort": min(cohorts),
        "enrol_seconds": enrolled,
        "eligible_p50_ms": 1000 * percentile(looked, 0.5),
        **{f"p{share}_ms": 1000 * percentile(taken, share / 100) for share in (50, 95, 99)},
    }


async def _enrolled(store: Store, count: int) -> str:
    """Put active clients of various attributes into a new population; return it."""
    schema = {"region": "string", "device": "string", "ram_gb": "number"}
    async with store.transaction() as rows:
        tenant = (await rows.tenants.add("load")).id
        population = Population("population", tenant, "load", schema=schema)
        await rows.populations.add(population)
        job = Job("job", tenant, population.id, "load", {}, "plan", "job", "model", CONDITIONS, 0, "somebody", 0.0)
        await rows.jobs.add(job)
        await rows.runs.add(Run(_RUN, tenant, job.id, population.id, "running", 0, 0, "model", None, {}, 0, 0.0))
    chance = np.random.default_rng(0)
    for begins in range(0, count, _BATCH):
        size = min(_BATCH, count - begins)
        newcomers = [
            Newcomer(None, os.urandom(32), _attributes(words), VERSION, consent=True, state="active")
            for words in chance.integers(0, (4, 3, 4), size=(size, 3)).tolist()
        ]
        async with store.transaction() as rows:
            await rows.clients.add_many(population.id, newcomers, at=time.time())
    return population.id


def _attributes(words: list[int]) -> dict[str, Any]:
    region, device, ram = words
    return {
        "region": ("eu", "us", "asia", "africa")[region],
        "device": ("phone", "tablet", "desktop")[device],
        "ram_gb": float(2 ** (ram + 1)),
    }
