"""What every executor promises: the serial one's model to float32 rounding, and its own bit for bit.

A plan runs through :class:`hansa.simulation.engine.Engine`, with executors that live as long as this module, so that
their workers start once.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from hansa.algorithms.plan import plan_from_mapping
from hansa.reporting.run_folder import PLAN, RunFolder
from hansa.simulation import engine as engine_module
from hansa.simulation.choice import Choice
from hansa.simulation.engine import Engine
from hansa.simulation.executors import Batched, Serial
from hansa.simulation.preparation import prepare
from hansa.simulation.processes import Processes
from hansa.testing import MemoryClients
from hansa.training.kernels import PLAIN
from hansa.wire.models import model_bytes, sha256
from hansa.wire.plans import write_plan

pytest.importorskip("torch")

FACTORY = "tests.simulation.networks:"
SIZES = (1, 40, 7, 2, 19, 33, 1, 12, 5, 26, 3, 40, 8, 1, 15, 22, 9, 4, 37, 11, 6, 2, 29)
"""Examples of the clients: from one to several batches."""
NEAR = 2e-5
"""How far a model may be from the serial one's, as a share of how far training moved it."""
ROUNDED = 1e-2
"""The same, where updates are rounded to few bits: the last bit of a float32 decides now and then which way."""

COMMON = {
    "name": "contract",
    "seed": 5,
    "rounds": 3,
    "cohort": {"kind": "uniform", "size": 11},
    "evaluation": {"every": 1000, "federated": False, "central": False},
}
NUMBERS = {"source": "synthetic", "arguments": {"clients": len(SIZES), "features": 6, "classes": 3}}
TOKENS = {"source": "synthetic", "arguments": {"clients": len(SIZES), "shape": [5], "classes": 3, "vocabulary": 7}}
IMAGES = {"source": "synthetic", "arguments": {"clients": len(SIZES), "shape": [1, 6, 6], "classes": 3}}
SGD = {"kind": "sgd", "learning_rate": 0.1}
HEART = {"source": "heart", "test_fraction": 0.25}
PHONES = {"classes": [{"name": "any", "speed_spread": 1.0}], "examples_per_second": 10.0}


def linear(**changes):
    trainer = {"kind": "linear", "epochs": 2, "batch_size": 8, "optimizer": SGD, **changes}
    return {"data": NUMBERS, "model": {"factory": "hansa.training.linear:softmax"}, "trainer": trainer}


def torch_model(factory, data=NUMBERS, *, model=None, **changes):
    trainer = {"kind": "torch", "epochs": 2, "batch_size": 8, "optimizer": SGD, **changes}
    return {"data": data, "model": {"factory": FACTORY + factory, **(model or {})}, "trainer": trainer}


MOMENTUM = {**SGD, "momentum": 0.9, "weight_decay": 1e-2}
PLANS = {
    "fedavg": {"recipe": "fedavg", **linear(optimizer=MOMENTUM)},
    "fedsgd": {"recipe": "fedsgd", **linear(epochs=1, batch_size="all")},
    "fedprox": {"recipe": {"kind": "fedprox", "mu": 0.5}, **linear()},
    "fedavgm": {"recipe": "fedavgm", **linear()},
    "fedadagrad": {"recipe": "fedadagrad", **linear()},
    "fedadam": {"recipe": "fedadam", **linear()},
    "fedyogi": {"recipe": "fedyogi", **linear()},
    "scaffold": {"recipe": "scaffold", **linear(), "rounds": 5},
    "fednova": {"recipe": "fednova", **linear()},
    "fedbuff": {
        "recipe": {"kind": "fedbuff", "buffer_size": 5, "concurrency": 9},
        **linear(),
        "devices": PHONES,
        "cohort": None,
    },
    "local steps": {"recipe": "fedavg", **linear(epochs=None, steps=5)},
    "clip, largest weight": {
        "recipe": "fedavg",
        **linear(),
        "transforms": [{"kind": "clip", "clip_norm": 0.2}, {"kind": "weigh-by-size", "maximum": 10}],
    },
    "int8 rotation": {
        "recipe": "fedavg",
        **linear(),
        "transforms": [{"kind": "weigh-by-size"}, {"kind": "int8-rotation"}],
    },
    "median": {"recipe": "fedavg", **linear(), "transforms": [], "aggregator": {"kind": "median"}},
    "trimmed mean": {
        "recipe": "fedavg",
        **linear(),
        "transforms": [],
        "aggregator": {"kind": "trimmed-mean", "fraction": 0.2},
    },
    "everyone": {"recipe": "scaffold", **linear(), "cohort": {"kind": "full"}},
    "sometimes nobody": {"recipe": "fedavg", **linear(), "rounds": 8, "cohort": {"kind": "poisson", "rate": 0.06}},
    "one client": {"recipe": "fedavg", **linear(), "cohort": {"kind": "uniform", "size": 1}},
    "federated scaling": {
        "recipe": "fedavg",
        **linear(),
        "data": HEART,
        "model": {"factory": "hansa.training.linear:logistic"},
        "cohort": {"kind": "full"},
    },
    "secure sum": {
        "recipe": "scaffold",
        **linear(),
        "secure_aggregation": {"rotation": True, "group_size": 4, "max_weight": 50.0},
    },
    "deadline": {
        "recipe": "fedavg",
        **linear(),
        "devices": PHONES,
        "schedule": {"kind": "sync", "round_deadline": 4.0},
    },
    "dense": {"recipe": "fedavg", **torch_model("dense")},
    "dense, many outputs": {
        "recipe": {"kind": "fedprox", "mu": 0.5},
        **torch_model("dense", model={"arguments": {"hidden": 64}}, optimizer=MOMENTUM),
    },
    "dense, control variates": {"recipe": "scaffold", **torch_model("dense"), "rounds": 5},
    "dropout": {"recipe": "fedavg", **torch_model("dropped")},
    "layer norm, Adam": {
        "recipe": "fedavg",
        **torch_model("normalised", optimizer={"kind": "adam", "learning_rate": 0.01}),
    },
    "embedding": {"recipe": "fedavg", **torch_model("embedded", TOKENS)},
    "gru": {"recipe": "fedavg", **torch_model("Recurrent", TOKENS)},
    "convolution, group norm": {"recipe": "fedprox", **torch_model("image", IMAGES)},
    "batch norm, own buffers": {"recipe": "fedavg", **torch_model("batch_normed")},
    "batch norm, averaged": {"recipe": "fedavg", **torch_model("batch_normed", model={"buffers": "average"})},
}
ALL = sorted(PLANS)
SUMS = sorted(PLANS.keys() - {"median", "trimmed mean", "secure sum"})
"""Plans whose model every client's update changes, and can be weighed; a rule over rows may well leave one out."""
MANY_PATHS = ["scaffold", "median", "dropout", "gru", "batch norm, own buffers", "fedbuff"]
"""Plans that between them take every path: fused, vmap and alone, sums and rows, states, several model versions."""


def ragged(prepared):
    """Return a plan's clients with as many examples as SIZES says."""
    if prepared.population != len(SIZES):
        return prepared
    signature, draw = prepared.data.signature, np.random.default_rng(0)
    labels = [draw.integers(0, signature.classes, size) for size in SIZES]
    if signature.vocabulary:
        examples = [draw.integers(0, signature.vocabulary, (size, *signature.shape)) for size in SIZES]
    else:
        examples = [draw.standard_normal((size, *signature.shape)).astype(np.float32) for size in SIZES]
    return replace(prepared, data=replace(prepared.data, train=MemoryClients(examples, labels)))


@pytest.fixture(scope="module")
def plans():
    return {}


@pytest.fixture
def prepared(plans, request):
    """The plan of a test by its name, prepared once."""
    name = request.param
    if name not in plans:
        tables = {key: value for key, value in {**COMMON, **PLANS[name]}.items() if value is not None}
        trainer = {key: value for key, value in tables["trainer"].items() if value is not None}
        plans[name] = ragged(prepare(plan_from_mapping({**tables, "trainer": trainer})))
    return plans[name]


@pytest.fixture(scope="module")
def workers():
    """Two worker processes; ``chunk`` may be set."""
    executor = Processes(chunk=1, workers=2, kernels=PLAIN)
    yield executor
    executor.close()


class Kept:
    """An executor that outlives a run, and changes the factors of its updates if asked."""

    def __init__(self, executor, changed=None):
        self.executor, self.changed = executor, changed

    def partials(self, prepared, assignment, states_of, factors=None):
        if self.changed is not None and len(assignment.cohort):
            factors = np.ones(len(assignment.cohort), dtype=np.float32) if factors is None else factors.copy()
            factors[self.changed % len(factors)] *= 1.01
        return self.executor.partials(prepared, assignment, states_of, factors)

    def close(self):
        pass


@pytest.fixture
def ran(tmp_path_factory, monkeypatch):
    """Return the last model that a plan reaches with an executor, and its SHA-256."""

    def run(prepared, executor, *, changed=None):
        monkeypatch.setattr(engine_module, "executor_of", lambda _: Kept(executor, changed))
        folder = RunFolder.create(tmp_path_factory.mktemp("run") / "run")
        folder.write(PLAN, write_plan(prepared.plan))
        engine = Engine(prepared, folder, Choice(executor="serial"))
        with threadpool_limits(limits=1):
            state, _ = engine.run()
        return state.model, sha256(model_bytes(prepared.plan, state))

    return run


@contextmanager
def batched(chunk, workers=1):
    executor = Batched(chunk=chunk, workers=workers, kernels=PLAIN)
    yield executor
    executor.close()


def tolerance(prepared):
    kinds = {type(transform).__name__ for transform in prepared.plan.transforms}
    rounded = "Int8Rotation" in kinds or prepared.plan.secure_aggregation is not None
    return ROUNDED if rounded else NEAR


def apart(prepared, found, wanted):
    """Return how far two models are from each other, branch by branch, as a share of how far training moved."""
    slices = prepared.first.layout.slices.values()
    moved = [np.abs(wanted[part] - prepared.first.model[part]).max() for part in slices]
    return max(
        float(np.abs(found[part] - wanted[part]).max()) / float(move)
        for part, move in zip(slices, moved, strict=True)
        if move > 0
    )


@pytest.mark.parametrize("prepared", ALL, indirect=True)
def test_chunks_reach_the_serial_model_whatever_their_size_and_the_number_of_threads(prepared, ran):
    wanted, _ = ran(prepared, Serial())
    for chunk in (4, 7):
        with batched(chunk) as one, batched(chunk, workers=2) as two:
            (found, digest), (_, on_threads) = ran(prepared, one), ran(prepared, two)
        assert apart(prepared, found, wanted) < tolerance(prepared)
        assert on_threads == digest


@pytest.mark.parametrize("prepared", ALL, indirect=True)
def test_worker_processes_reach_the_bits_of_the_executor_that_computes_the_same_chunks(prepared, ran, workers):
    with batched(4) as four:
        for chunk, same in ((1, Serial()), (4, four)):
            workers.chunk = chunk
            assert ran(prepared, workers)[1] == ran(prepared, same)[1]


@pytest.mark.parametrize("prepared", MANY_PATHS, indirect=True)
def test_every_executor_repeats_itself_bit_for_bit(prepared, ran, workers):
    workers.chunk = 7
    with batched(7) as seven:
        for executor in (Serial(), seven, workers):
            assert ran(prepared, executor)[1] == ran(prepared, executor)[1]


@pytest.mark.parametrize("prepared", SUMS, indirect=True)
def test_one_per_cent_of_one_clients_update_is_far_beyond_the_tolerance(prepared, ran):
    """So a client that is left out, counted twice or trained otherwise cannot pass for rounding."""
    changed, _ = ran(prepared, Serial(), changed=1)
    assert apart(prepared, changed, ran(prepared, Serial())[0]) > 10 * NEAR


PATHS = {
    "fused": ["fednova", "dense, many outputs", "dropout", "layer norm, Adam", "embedding"],
    "vmap": ["gru", "convolution, group norm"],
    "none": ["batch norm, own buffers", "batch norm, averaged"],
}


@pytest.mark.parametrize(
    ("path", "prepared"), [(path, name) for path, names in PATHS.items() for name in names], indirect=["prepared"]
)
def test_the_plans_take_the_paths_that_they_are_here_for(path, prepared):
    assert prepared.plan.trainer.batching(prepared.plan.model, prepared.data.signature)[0] == path


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 10, 11, 12, 13, 1000])
@pytest.mark.parametrize("prepared", ["scaffold"], indirect=True)
def test_any_size_of_a_chunk_will_do(prepared, chunk, ran, workers):
    wanted, _ = ran(prepared, Serial())
    workers.chunk = chunk
    with batched(chunk) as one, batched(chunk, workers=3) as three:
        (found, digest), others = ran(prepared, one), [ran(prepared, three)[1], ran(prepared, workers)[1]]
    assert apart(prepared, found, wanted) < NEAR
    assert others == [digest, digest]


# Ray, which takes some seconds to start


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    from hansa.simulation.ray_cluster import Ray

    executor = Ray(chunk=4, workers=2, kernels=PLAIN)
    yield executor
    executor.close()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    "prepared",
    [name if name in ("scaffold", "secure sum") else pytest.param(name, marks=pytest.mark.slow) for name in ALL],
    indirect=True,
)
def test_a_ray_cluster_reaches_the_bits_of_the_executor_that_computes_the_same_chunks(prepared, ran, cluster):
    with batched(4) as four:
        assert ran(prepared, cluster)[1] == ran(prepared, four)[1]
