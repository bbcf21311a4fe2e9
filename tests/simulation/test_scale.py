"""Rounds cost their cohort, not the population: counted, not timed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import hansa
from hansa.data import load
from hansa.simulation import preparation
from hansa.simulation.choice import EXECUTORS

MILLION = 10**6
TRILLION = 10**12


class Names(Sequence):
    """Names that can be picked but not gone through."""

    def __init__(self, names):
        self.picked = 0
        self.names = names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        self.picked += 1
        return self.names[index]

    def __iter__(self):
        raise AssertionError("somebody goes through the names of the population")


class Watched:
    """A part of a population that counts how many clients are asked for."""

    def __init__(self, part):
        self.part = part
        self.names = Names(part.names)
        self.asked = 0

    def sizes(self, ordinals):
        self.asked += len(ordinals)
        return self.part.sizes(ordinals)

    def gather(self, ordinals, positions):
        self.asked += len(ordinals)
        return self.part.gather(ordinals, positions)

    def labels_at(self, ordinals, positions):
        self.asked += len(ordinals)
        return self.part.labels_at(ordinals, positions)


def plan_of(clients, *, rounds=3, cohort=20, sampler=None, method="fedavg", **more):
    arguments = {"clients": clients, "features": 5, "classes": 3, "mean_size": 6, "central_examples": 50}
    settings = {
        "name": "scale",
        "rounds": rounds,
        "data": {"source": "synthetic", "arguments": arguments},
        "model": {"factory": "hansa.training.linear:softmax"},
        "trainer": {"kind": "linear", "epochs": 1, "batch_size": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
        "cohort": sampler or {"kind": "uniform", "size": cohort},
    }
    return hansa.recipe(method, **{**settings, **more})


COHORTS = {
    "uniform": {"kind": "uniform", "size": 20},
    "poisson": {"kind": "poisson", "rate": 20 / MILLION},
    "min-separation": {"kind": "min-separation", "size": 20, "rounds": 2},
}


@pytest.mark.parametrize("sampler", COHORTS.values(), ids=COHORTS)
@pytest.mark.parametrize("executor", ["serial", "batched"])
def test_a_run_asks_for_its_cohorts_and_a_thousand_clients_to_describe(sampler, executor, tmp_path, monkeypatch):
    watched = []

    def watching(*arguments):
        data = load(*arguments)
        watched.append(Watched(data.train))
        return replace(data, train=watched[0])

    monkeypatch.setattr(preparation, "load", watching)
    hansa.run(plan_of(MILLION, rounds=5, sampler=sampler), out=tmp_path / "run", executor=executor)
    assert watched[0].asked < 5 * 60 * 8 + 5 * 1000
    assert watched[0].names.picked <= 1000


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_memory_does_not_follow_the_population(method, tmp_path):
    peaks = []
    for clients in (1000, 1000, MILLION):  # the first run imports
        tracemalloc.start()
        hansa.run(plan_of(clients, method=method), out=tmp_path / str(len(peaks)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    table = 8 * MILLION if method == "scaffold" else 0  # its pages are made when a client takes part
    assert peaks[2] < peaks[1] + 500_000 + table


def test_memory_does_not_follow_the_cohort(tmp_path):
    peaks = []
    for cohort in (100, 100, 2000):
        tracemalloc.start()
        hansa.run(plan_of(MILLION, cohort=cohort), out=tmp_path / str(len(peaks)), executor="batched", workers=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 1900 * 600  # ordinals and the draw, no row of a model


def test_a_trillion_clients_run(tmp_path):
    summary = hansa.run(plan_of(TRILLION), out=tmp_path / "run").summary
    assert summary["data"]["clients"] == TRILLION
    assert (tmp_path / "run" / "report.html").is_file()


def test_all_executors_make_the_same_examples(tmp_path):
    models = [
        hansa.run(plan_of(MILLION), out=tmp_path / executor, executor=executor).model.read_bytes()
        for executor in sorted({"serial", "batched", "process"} & set(EXECUTORS))
    ]
    values = [np.frombuffer(model[-4 * 18 :], dtype=np.float32) for model in models]
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], atol=1e-5)


def test_an_interim_evaluation_asks_for_as_many_clients_as_the_plan_says(tmp_path, monkeypatch):
    watched = []

    def watching(*arguments):
        data = load(*arguments)
        watched.append(Watched(data.test))
        return replace(data, test=watched[0])

    monkeypatch.setattr(preparation, "load", watching)
    arguments = {"clients": 20_000, "features": 5, "classes": 3, "mean_size": 6}
    asked = []
    plan = plan_of(
        20_000,
        rounds=4,
        data={"source": "synthetic", "arguments": arguments, "test_fraction": 0.3},
        evaluation={"federated_clients": 50},
    )
    callbacks = [lambda event: asked.append(watched[0].asked) if event["event"] == "round" else None]
    result = hansa.run(plan, out=tmp_path / "run", callbacks=callbacks)
    assert asked[3] <= 4 * 50 * 8
    federated = result.summary["metrics"]["federated"]["loss"]
    assert federated["clients"] + federated["undefined"] == 20_000
    assert len(result.summary["metrics"]["per_client"]) == 5000


def test_baselines_of_many_clients_keep_the_figures_of_some(tmp_path):
    plan = plan_of(
        7000,
        data={
            "source": "synthetic",
            "arguments": {"clients": 7000, "features": 3, "classes": 2, "mean_size": 4},
            "test_fraction": 0.3,
        },
        evaluation={"baselines": ["local-only", "centralised"], "local_only_clients": 2, "federated_clients": 20},
    )
    baselines = hansa.run(plan, out=tmp_path / "run").summary["baselines"]
    assert len(baselines["centralised"]["per_client"]) == 5000
    for client in baselines["local_only"]["clients"]:
        assert set(client["own"]) == {"accuracy", "auc", "loss"}
