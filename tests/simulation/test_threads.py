"""Clients on threads: what a model is found to be does not depend on which thread looked, or when."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import hansa
from hansa.algorithms import rounds
from hansa.algorithms.fold import collector
from hansa.core.nouns import Assignment
from hansa.simulation.executors import Batched, Serial
from hansa.simulation.preparation import prepare
from hansa.training import batching, torch_model


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def held_back() -> nn.Module:
    """Return a module with a hook on a parameter, which limits gradients that trial steps do not reach."""
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return module


def prepared(factory: str = "dropping"):
    data = {"source": "synthetic", "arguments": {"clients": 24, "features": 5, "classes": 3, "mean_size": 12}}
    return prepare(
        hansa.recipe(
            "fedavg",
            name="threads",
            rounds=1,
            data=data,
            model={"factory": f"{__name__}:{factory}"},
            trainer={
                "kind": "torch",
                "epochs": 1,
                "batch_size": 4,
                "optimizer": {"kind": "sgd", "learning_rate": 0.1},
            },
        )
    )


def model_after(executor, plan):
    everyone = np.arange(24)
    assignment = Assignment(1, plan.first.layout, plan.first.model, everyone, 24)
    whole = collector(plan.plan.aggregator, plan.first.layout, 24, None)
    for part in executor.partials(plan, assignment, lambda ordinals: {}):
        whole.merge(part.collected)
    executor.close()
    return rounds.close_round(plan.plan, plan.first, whole.finish(plan.plan.aggregator, 24))[0].model


@pytest.mark.parametrize("attempt", range(6))
def test_threads_that_meet_a_model_for_the_first_time_train_it_as_one_thread_does(attempt):
    wanted = model_after(Serial(), prepared())
    torch_model._identity.cache_clear()
    np.testing.assert_array_equal(model_after(Batched(chunk=1, workers=3), prepared()), wanted)


def test_training_leaves_the_random_numbers_of_the_program_alone():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    model_after(Serial(), prepared())
    assert torch.equal(torch.rand(2), wanted)


def test_a_hook_on_a_parameter_keeps_a_model_in_the_loop():
    plan = prepared("held_back")
    kind, reason = plan.plan.trainer.batching(plan.plan.model, plan.data.signature)
    assert (kind, reason) == ("none", "a parameter has hooks of its own")


USERS: list[tuple[int, int]] = []
"""(module, thread) of every forward pass in training of a :class:`Watched`."""


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        if self.training:
            USERS.append((id(self), threading.get_ident()))
            time.sleep(0.001)  # another thread has its turn
        return self.layer(x)


def watched() -> nn.Module:
    module = Watched()
    module.register_buffer("own", torch.zeros(1))  # no stack of layers: it goes through its forward
    return module


def test_each_thread_trains_its_own_network():
    """One that two trained at once would mix their clients."""
    USERS.clear()
    plan = prepared("watched")
    plan.plan.trainer.batching(plan.plan.model, plan.data.signature)
    USERS.clear()
    model_after(Batched(chunk=1, workers=3), plan)
    threads = {module: {thread for used, thread in USERS if used == module} for module, _ in USERS}
    assert len({thread for _, thread in USERS}) > 1
    assert all(len(users) == 1 for users in threads.values())


def test_a_model_that_diverged_here_is_looked_at_as_if_it_had_not():
    """How clients train together must not depend on what was trained before in this process."""
    torch_model._identity.cache_clear()
    plan = prepared()
    plan.plan.trainer.batching(plan.plan.model, plan.data.signature)
    network = torch_model.network_of(plan.plan.model, plan.data.signature)
    values = torch.full((network.branch.size,), float("nan"))
    network.load(values)
    batching._FOUND.pop(network.identity)
    assert plan.plan.trainer.batching(plan.plan.model, plan.data.signature)[0] == "fused"
    held = torch.empty_like(values)
    network.read(held)
    assert held.isnan().all()
