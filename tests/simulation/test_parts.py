from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hansa
from hansa.core.nouns import Assignment, ClientBatch, Scaling, Signature
from hansa.simulation import executors
from hansa.simulation.baselines import _with_steps_of_all
from hansa.simulation.preparation import prepare
from hansa.testing import MemoryClients


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    rows=st.integers(1, 100),
    clients=st.integers(1, 8),
)
def test_parts_cover_all_clients_in_order_and_stay_within_the_padded_rows(sizes, rows, clients):
    data = MemoryClients([np.zeros((size, 1), np.float32) for size in sizes], [np.zeros(size, int) for size in sizes])
    centers = np.arange(len(sizes), dtype=np.float32).reshape(-1, 1, 1)
    scaling = Scaling(centers, np.ones_like(centers))
    batch = ClientBatch(np.arange(len(sizes)), data, Signature((1,), 2), scaling)
    parts = list(batch.parts(rows=rows, clients=clients))
    assert np.concatenate([part.ordinals for part in parts]).tolist() == list(range(len(sizes)))
    for part in parts:
        assert len(part) <= clients
        assert len(part) == 1 or len(part) * part.sizes.max() <= rows
        assert part.scaling.center[:, 0, 0].tolist() == part.ordinals.tolist()


@pytest.mark.parametrize(("work", "steps"), [({"steps": 3}, 12), ({"epochs": 3}, None)])
def test_pooled_training_makes_the_steps_of_all_clients(work, steps, heart):
    trainer = {"kind": "linear", "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.1}, **work}
    prepared = prepare(hansa.recipe("fedavg", **{**heart, "trainer": trainer}))
    assert _with_steps_of_all(prepared).plan.trainer.steps == steps
    assert prepared.plan.trainer.steps == work.get("steps")


@pytest.mark.parametrize("limit", [0, 3000, 10**9])
def test_a_ragged_chunk_is_bounded_in_bytes(limit, monkeypatch):
    """One client with very many examples must not make a chunk of all others as large, padding included."""
    trained = []
    update = executors.client_update

    def watched(plan, assignment, clients, *more):
        trained.append(clients.sizes)
        return update(plan, assignment, clients, *more)

    monkeypatch.setattr(executors, "client_update", watched)
    monkeypatch.setattr(executors, "_CHUNK_BYTES", limit)
    sizes = {"clients": 24, "features": 5, "classes": 3, "mean_size": 12, "size_sigma": 1.0}
    trainer = {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}}
    plan = hansa.recipe(
        "fedavg",
        name="ragged",
        rounds=1,
        data={"source": "synthetic", "arguments": sizes},
        model={"factory": "hansa.training.linear:softmax"},
        trainer=trainer,
    )
    found = prepare(plan)
    assignment = Assignment(1, found.first.layout, found.first.model, np.arange(24), 24)
    together = executors.Batched(chunk=24, workers=1)
    (part,) = together.partials(found, assignment, lambda _: {})
    assert part.collected.count == 24
    assert sum(map(len, trained)) == 24
    for some in trained:
        assert len(some) == 1 or 8 * 5 * len(some) * some.max() <= limit
    assert (len(trained) == 1) == (limit == 10**9)
