"""Plans with privacy on a server in this process: a budget, a run with its clients, and updates of integers."""

from __future__ import annotations

import asyncio

import numpy as np

from hansa.algorithms.fixed_point import modulo
from hansa.algorithms.private_sums import released
from hansa.algorithms.secure_sums import training_code
from hansa.core.nouns import Batch
from hansa.governance.limits import Limit, set_limit
from hansa.wire.updates import encode_update

PRIVATE = (
    "evaluation={federated=false}",
    "transforms=[]",
    "privacy={clip_norm=1.0, delta=1e-5, epsilon=8.0}",
    'aggregator={kind="fixed-mean", divisor=2}',
    "rounds=3",
)
SCALED = ('features={label="disease", scaling="declared"}',)
BANDED = ('privacy.mechanism="banded-matrix"', 'cohort={kind="min-separation", size=2, rounds=1}')


async def budget(server, epsilon=8.0, **changes):
    limit = {"unit": "client", "adjacency": "zero-out", "delta": 1e-5} | changes
    async with server.services.store.transaction() as rows:
        wanted = Limit(scope="hospitals", epsilon=epsilon, populations=(server.population,), **limit)
        return await set_limit(rows, server.token.tenant, wanted, actor="an owner", now=server.clock.now())


async def started(server, *overrides, clients=2):
    devices = [await server.device(f"hospital {number}") for number in range(clients)]
    for device in devices:
        await device.check_in()
    return await server.submit(*PRIVATE, *SCALED, *overrides), devices


async def integers(server, assignment, norm=0.5):
    """The bytes of an update whose integers are so long, in bounds."""
    context = await server.context(assignment.id.run)
    code = training_code(context.plan, context.state.layout)
    whole = np.zeros(code.width, dtype=np.int64)
    whole[0] = -round(norm * code.norm)
    layout = released(context.state.layout)
    values = modulo(whole, code.branches[0].bits).astype(code.dtype)[None]
    return encode_update(Batch(values, layout.encode_lanes({"count": np.ones(1)}, 1), layout))


async def until(server, of, state="closed"):
    for _ in range(500):
        if (found := await server.round(of)).state == state:
            return found
        await asyncio.sleep(0.02)
    raise TimeoutError(found.state)


async def first_round(server, run):
    for _ in range(500):
        async with server.services.store.reading() as rows:
            if found := await rows.rounds.open_of(run):
                return found[0]
        await asyncio.sleep(0.02)
    raise TimeoutError("no round is open")
