"""Privacy over a real network: noise by the server or the clients, charged to a ledger, of the size that is claimed."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

import hansa
from hansa.cli.operator_client import Operator
from hansa.simulation.preparation import prepare
from hansa.testing.hospitals import POPULATION, finished, hospitals, small_plan, submit
from hansa.wire.server_models import ServedModel

ROUNDS = 4
PRIVACY = {"clip_norm": 0.5, "delta": 1e-5, "epsilon": 40.0}
PRIVATE = {
    "rounds": ROUNDS,
    "features": {"label": "disease", "scaling": "declared"},
    "transforms": [],
    "aggregator": {"kind": "fixed-mean", "divisor": 4},
    "evaluation": {"every": 4, "federated": False, "baselines": []},
}
SECURE = {"maximum_cohort": 4, "minimum_survivors": 4, "minimum_cohort": 4, "assumed_colluding": 1}
PLANS = {
    "central": {"privacy": PRIVACY},
    "in a secure sum": {"privacy": PRIVACY, "secure_aggregation": SECURE},
    "distributed": {"privacy": PRIVACY | {"noise_by": "clients"}, "secure_aggregation": SECURE},
}


def plan_of(name, **changes):
    return small_plan(**{"name": name, **PRIVATE, **PLANS[name], **changes})


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """Run all plans in one federation: name -> (run, its last model), and the ledger's rows and scope."""
    with hospitals(tmp_path_factory.mktemp("federation")) as federation:
        federation.start()
        with federation.calls() as calls:
            budget = {"epsilon": 1000.0, "delta": 1e-5, "unit": "client", "adjacency": "zero-out"}
            calls.call("PUT", "/ledger/hospitals", budget | {"populations": [POPULATION]})
            runs = {name: submit(calls, plan_of(name)) for name in PLANS}
            ended = {name: finished(calls, run, seconds=80) for name, run in runs.items()}
            models = {name: _model(calls, name, found) for name, found in ended.items()}
            rows = calls.get("/ledger/hospitals/rows", limit=1000)["rows"]
            return ended, models, rows, calls.get("/ledger/hospitals")


def _model(calls: Operator, name, run):
    size = prepare(plan_of(name)).first.layout.size
    return ServedModel.from_bytes(calls.download(f"/models/{run['model']}"), size).values.astype(np.float64)


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory):
    """The model of the same plan with next to no noise, simulated."""
    plan = plan_of("central", privacy=PRIVACY | {"epsilon": 1e9})
    result = hansa.run(plan, out=tmp_path_factory.mktemp("simulated") / "run", executor="serial")
    tensors = load_file(result.model)
    names = [parameter.name for parameter in prepare(plan).first.layout.branch("params").parameters]
    return np.concatenate([tensors[f"params/{name}"].astype(np.float64).reshape(-1) for name in names])


@pytest.mark.parametrize("name", PLANS)
def test_the_noise_is_of_the_size_that_is_claimed_whoever_adds_it(name, deployed, noiseless):
    _, models, _, _ = deployed
    plan = plan_of(name)
    claimed = plan.privacy.noise_multiplier * PRIVACY["clip_norm"] / 4 * np.sqrt(ROUNDS)
    if name == "distributed":
        claimed *= np.sqrt(4 / 3)  # all four add noise, and three of them are enough
    off = np.linalg.norm(models[name] - noiseless) / np.sqrt(len(noiseless))
    assert 0.5 * claimed < off < 2.0 * claimed


def test_every_round_is_in_the_ledger_and_no_more_is_charged_than_claimed(deployed):
    ended, _, rows, scope = deployed
    kinds = [row["row"]["kind"] for row in rows]
    assert kinds.count("reserve") == kinds.count("commit") == ROUNDS * len(PLANS)
    assert kinds.count("freeze") == 2 * ROUNDS, "a secure sum is frozen before it is seen"
    assert scope["epsilon_charged"] < 3 * 40
    assert {run["round"] for run in ended.values()} == {ROUNDS}
