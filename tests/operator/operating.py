"""The operator side of a server in this process, with two tenants, and what is submitted to it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.routing import Mount

from hansa.server import health, operator_api, pages
from hansa.server.rounds_at_rest import model_name
from hansa.server.services import Services
from hansa.server.settings import ServerSettings
from hansa.server.signing import Signer
from hansa.server.tokens import new_token
from hansa.store.blobs import LocalBlobs
from hansa.store.keys import LocalKeys
from hansa.store.records import Assigned, Release, Round, RoundKey
from hansa.store.store import Store
from hansa.wire.server_models import ServedModel

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip

LAYOUT = {"branches": [{"name": "params", "parameters": [["weight", [3, 1]], ["intercept", [1]]]}]}
PLAN = {
    "rounds": 3,
    "recipe": "fedavg",
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
}
MODEL = ServedModel(np.zeros(4, dtype=np.float32), None).to_bytes()
MODEL_SHA256 = hashlib.sha256(MODEL).hexdigest()


def job(**changes: Any) -> dict[str, Any]:
    """Return a job's body that stands, with some keys changed."""
    return {
        "name": "a job",
        "population": "hospitals",
        "plan": PLAN,
        "signature": {"shape": [3], "classes": 2},
        "layout": LAYOUT,
        "model": MODEL_SHA256,
        **changes,
    }


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead


@dataclass
class World:
    """The operator side of a server; each call runs in one event loop."""

    runner: asyncio.Runner
    services: Services
    app: Starlette
    clock: Clock
    tokens: dict[str, str] = field(default_factory=dict)
    """Role, or "other" for another tenant's owner -> token."""
    tenants: dict[str, str] = field(default_factory=dict)

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def call(
        self, method: str, path: str, *, by: str | None = "owner", base: str = "/api/v1", **options: Any
    ) -> httpx.Response:
        """Call with the token of a role; None: without any; a text that is no role stands for itself.

        ``address``: where the call comes from.
        """
        caller = (options.pop("address", "127.0.0.1"), 40000)
        headers = dict(options.pop("headers", {}))
        if by is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(by, by)}"

        async def go():
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False, client=caller)
            async with httpx.AsyncClient(transport=transport, base_url="https://testserver") as client:
                return await client.request(method, base + path, headers=headers, **options)

        return self.run(go())

    def ok(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self.call(method, path, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def rows(self, use) -> Any:
        """Return what comes of an async function over rows, in one transaction."""

        async def go():
            async with self.services.store.transaction() as rows:
                return await use(rows)

        return self.run(go())


async def opened(folder: Path, clock: Clock, options: dict[str, Any]) -> Services:
    settings = ServerSettings(folder=str(folder), **options)
    settings.make_folder()
    store = await Store.open(settings.database_url)
    keys = LocalKeys(folder / "keys")
    signer = await Signer.open(store, keys, clock)
    return Services(settings, store, LocalBlobs(folder / "blobs"), keys, clock, signer)


async def with_tenants(services: Services, world: World) -> None:
    now = services.clock.now()
    async with services.store.transaction() as rows:
        for name in ("own", "other"):
            tenant = await rows.tenants.add(name)
            world.tenants[name] = tenant.id
            roles = ("owner", "operator", "analyst", "auditor", "site-administrator") if name == "own" else ("owner",)
            for role in roles:
                token, secret = new_token(tenant.id, role, f"the {role}", now + 3600)
                await rows.tokens.add(token)
                world.tokens[role if name == "own" else "other"] = secret


def application(services: Services) -> Starlette:
    """Return what the server mounts of the operator side, without the coordinator."""
    routes = [
        Mount("/api/v1", app=operator_api.build(services)),
        *health.routes(services),
        Mount("/", app=pages.build(services)),
    ]
    return Starlette(routes=routes)


async def closed_rounds(world: World) -> str:
    """Put into the store what a coordinator would: an evaluation, a round of training that closed, one abandoned."""
    services = world.services
    content = ServedModel(np.arange(4, dtype=np.float32), None).to_bytes()
    digest = hashlib.sha256(content).hexdigest()

    async def once():
        yield content

    await services.blobs.put(model_name(digest), once())
    now = services.clock.now()
    reports = {
        ("evaluation", 0, 1): {"event": "evaluation", "round": 0, "federated": {"auc": {"overall": 0.5, "clients": 2}}},
        ("training", 1, 1): {"why": "1 of 2 picked clients reported in time"},
        ("training", 1, 2): {"event": "round", "round": 1, "cohort": 2, "train_loss": 0.6, "update_norm": 0.1},
        ("evaluation", 1, 1): {"event": "evaluation", "round": 1, "federated": {"auc": {"overall": 0.8, "clients": 2}}},
    }
    async with services.store.transaction() as rows:
        run = await rows.runs.get(world.run_id)
        for place, ((kind, number, attempt), report) in enumerate(reports.items()):
            key = RoundKey(run.id, kind, number, attempt)
            failed = "why" in report
            round_ = Round(key, "opening", 0, run.model, 2, 2, now + place, None, b"", {"tenant": run.tenant})
            assigned = [Assigned(key, client, place, place) for place, client in enumerate(world.clients)]
            await rows.rounds.add(round_, assigned)
            fates = {
                world.clients[0]: "late" if failed else "included",
                world.clients[1]: "lost" if failed else "included",
            }
            await rows.rounds.set_fates(key, fates)
            state = "abandoned" if failed else "closed"
            for step in ("collecting", "aggregating", state):
                round_ = await rows.rounds.change(
                    replace(round_, state=step, report=report if step == state else None, closed_at=now + place + 1)
                )
            await rows.events.add(
                f"round.{state}", tenant=run.tenant, at=now, run=run.id, detail={"kind": kind, "round": number}
            )
        await rows.runs.change(replace(run, model=digest, slots=digest, round=1))
        await rows.releases.add(Release(run.tenant, run.id, 1, digest, "candidate", now))
    return digest
