"""Rows to begin with."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from hansa.store.enrolments import Newcomer
from hansa.store.records import Assigned, Invitation, Job, Population, Report, Round, RoundKey, Run, Tenant


@dataclass(frozen=True)
class Seed:
    tenant: Tenant
    population: Population
    job: Job
    run: Run


def job_of(tenant, population, name="a job"):
    return Job(secrets.token_hex(8), tenant.id, population.id, name, {"rounds": 3, "rate": 1e-05, "whole": 2.0},
               "plan", "descriptor", "model", "", 0, "somebody", 1.0)  # fmt: skip


def run_of(job, priority=0):
    return Run(
        secrets.token_hex(8), job.tenant, job.id, job.population, "running", 0, 0, "model", None, {}, priority, 1.0
    )


async def seeded(store, name="hospitals"):
    async with store.transaction() as rows:
        tenant = await rows.tenants.add(name)
        population = Population(secrets.token_hex(8), tenant.id, "wards", schema={"region": "string"})
        await rows.populations.add(population)
        job = job_of(tenant, population)
        await rows.jobs.add(job)
        run = run_of(job)
        await rows.runs.add(run)
    return Seed(tenant, population, job, run)


async def enrolled(store, population, count, state="active", attributes=None):
    async with store.transaction() as rows:
        newcomers = [
            Newcomer(None, secrets.token_bytes(32), attributes or {}, "1.0", consent=True, state=state)
            for _ in range(count)
        ]
        await rows.clients.add_many(population.id, newcomers, at=1.0)
        return await rows.clients.page(population.id, limit=count)


def invitation_of(population, uses=1, **more):
    return Invitation(secrets.token_hex(8), population.id, secrets.token_hex(32), uses, **more)


def round_of(key, state="collecting", size=0):
    return Round(key, state, 0, "model", size, size, 1.0, None, b"wrapped")


async def opened(store, run, clients, *, number=1, attempt=1, kind="training", state="collecting"):
    key = RoundKey(run.id, kind, number, attempt)
    async with store.transaction() as rows:
        round_ = round_of(key, state, len(clients))
        assigned = [Assigned(key, client.id, client.number, place) for place, client in enumerate(clients)]
        await rows.rounds.add(round_, assigned)
    return round_


def report_of(key, client, sha256="a" * 64):
    return Report(key, client.id, client.number, sha256, 10, f"updates/{key.name}/{client.id}", 2.0)
