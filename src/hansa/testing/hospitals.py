"""The four hospitals of the heart data as a federation of real processes, to be tested: over TLS, on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from hansa.algorithms.plan import Plan, plan_from_mapping
from hansa.cli.demo_data import write_hospitals
from hansa.cli.job_building import build_job
from hansa.cli.local_federation import LocalFederation
from hansa.cli.operator_client import Operator, operator
from hansa.core.errors import RunError
from hansa.simulation.preparation import Prepared, prepare
from hansa.wire.models import model_bytes, sha256
from hansa.wire.server_models import ServedModel

POPULATION: Final = "hospitals"
SMALL: Final[Mapping[str, Any]] = {
    "name": "heart disease across four hospitals",
    "seed": 3,
    "rounds": 6,
    "data": {"source": "heart", "test_fraction": 0.25},
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {
        "kind": "linear",
        "epochs": 1,
        "batch_size": 32,
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    },
    "cohort": {"kind": "full"},
    "transforms": [{"kind": "weigh-by-size"}],
    "aggregator": {"kind": "mean"},
    "server_optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "evaluation": {"every": 3, "metrics": ["auc"], "baselines": []},
}
"""A plan of a few rounds that all hospitals take part in."""
_POLL: Final = 0.05


def small_plan(**changes: Any) -> Plan:
    """Return the small plan with other tables."""
    return plan_from_mapping({**SMALL, **changes})


@dataclass
class Hospitals:
    """A server, the data of four hospitals and their agents: each process can be killed and started again."""

    local: LocalFederation
    sites: Mapping[str, Path]
    tokens: dict[str, str] = field(default_factory=dict)
    """What the agents enrol with: their names -> one-time tokens."""
    trusted: Mapping[str, str] = field(default_factory=dict)
    """Operators of decryptors that the agents trust -> their keys."""
    demands: Mapping[str, str] = field(default_factory=dict)
    """What else the agents demand of secure sums: of another registrar than their own lists of peers, say."""

    @contextmanager
    def calls(self, server: str | None = None) -> Iterator[Operator]:
        """Call the server as its operator."""
        with operator(server or self.local.url, self.local.token_file, self.local.ca) as calls:
            yield calls

    def invite(self, names: Sequence[str] | None = None) -> None:
        """Make the population, and invite the hospitals in their order: that of the population's list."""
        with self.calls() as calls:
            calls.call("POST", "/populations", {"name": POPULATION})
            self.local.introduce(self.sites, self.trusted, self.demands)
            for name in names or self.sites:
                made = calls.call("POST", f"/populations/{POPULATION}/invitations", {"name": name})
                self.tokens[name] = made["token"]

    def start_agent(self, name: str, server: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Start a hospital's agent; one that has enrolled goes on as the client that it is."""
        self.local.start_agent(
            name, data=self.sites[name], token=self.tokens[name], server=server, environment=environment
        )

    def start(self) -> None:
        """Start the server and all agents."""
        self.local.start_server()
        self.invite()
        for name in self.sites:
            self.start_agent(name)


@contextmanager
def hospitals(folder: Path, **settings: Any) -> Iterator[Hospitals]:
    """Yield the hospitals, with nothing started; at the end everything is stopped. ``settings`` are the server's."""
    sites = write_hospitals(folder / "hospitals", prepare(small_plan()).data)
    with LocalFederation(folder, settings=settings) as local:
        yield Hospitals(local, sites)


def submit(calls: Operator, plan: Plan, **options: Any) -> str:
    """Submit a plan of the heart data; return its run. Nothing begins before all four hospitals are there."""
    job = build_job(prepare(plan).plan, population=POPULATION, **{"wait_for": 4, **options})
    calls.upload(f"/models/{job.body['model']}", job.model)
    return str(calls.call("POST", "/jobs", job.body)["run"]["id"])


def finished(calls: Operator, run: str, seconds: float = 60.0) -> dict[str, Any]:
    """Wait until a run has finished; return it. Raises RunError if it has not in time, or ended otherwise."""
    until = time.monotonic() + seconds
    while True:
        found = calls.get(f"/runs/{run}")
        if found["state"] == "finished":
            return found
        if found["state"] != "running" or time.monotonic() > until:
            raise RunError(
                "HANSA-RUN-STATE",
                rule=f"The run finishes within {seconds:g} seconds.",
                found=f"It is {found['state']} after round {found['round']}: {found['why'] or 'nothing moves'}.",
                action="See the events of the run.",
            )
        time.sleep(_POLL)


def model_of(calls: Operator, prepared: Prepared, run: Mapping[str, Any]) -> str:
    """Return the digest of a run's last model, in the form in which a simulation writes it."""
    return as_simulated(prepared, calls.download(f"/models/{run['model']}"), int(run["round"]))


def as_simulated(prepared: Prepared, content: bytes, rounds: int) -> str:
    """Return the digest of a model that a server keeps, in the form in which a simulation writes it."""
    served = ServedModel.from_bytes(content, prepared.first.layout.size)
    state = replace(prepared.first, round=rounds, model=served.values, features=served.features)
    return sha256(model_bytes(prepared.plan, state))
