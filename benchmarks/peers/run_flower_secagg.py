"""One SecAgg+ round of Flower, in one process: its own workflow as the server, its own mod in every client.

Messages are handed over in memory, as copies. What is timed: a client's mod, stage by stage; the workflow without its
clients. Quantising, and the mean that the strategy makes of the sum, are timed apart and left out of both.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

client_side = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
server_side = import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")

MASK_STAGE = "collect_masked_vectors"
WEIGHT = 1000


class Silent(ClientProxy):
    """A client as the strategy sees it; it is only asked for its number."""

    def _never(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _never


class Apart:
    """Seconds that are spent in functions that no secure sum needs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, holder: Any, name: str) -> None:
        """Count what a function takes from now on."""
        work = getattr(holder, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        setattr(holder, name, counted)

    def take(self) -> float:
        """Return the seconds since the last time."""
        taken, self.seconds = self.seconds, 0.0
        return taken


class InMemory(Grid):
    """Gives each message to its client's mod at once, and stops the watch of the server meanwhile."""

    def __init__(self, updates: dict[int, Parameters], dropped: set[int], apart: Apart) -> None:
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in updates}
        self.updates, self.dropped, self.apart = updates, dropped, apart
        self.client_seconds: dict[int, dict[str, float]] = defaultdict(dict)
        self.up_bytes = 0
        self.away = self.server_apart = 0.0

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> list[Message]:
        """Return the clients' answers."""
        began, self.server_apart = time.perf_counter(), self.server_apart + self.apart.take()
        answers = [answer for message in messages if (answer := self._ask(message)) is not None]
        self.apart.take()
        self.away += time.perf_counter() - began
        return answers

    def _ask(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        given = copy.deepcopy(message)
        stage = str(given.content.config_records[client_side.RECORD_KEY_CONFIGS]["stage"])
        if stage == MASK_STAGE and node in self.dropped:
            return None
        self.apart.take()
        began = time.perf_counter()
        answer = client_side.secaggplus_mod(given, self.contexts[node], self._fit)
        self.client_seconds[node][stage] = time.perf_counter() - began - self.apart.take()
        return copy.deepcopy(answer)

    def _fit(self, message: Message, context: Context) -> Message:
        began = time.perf_counter()
        result = FitRes(Status(Code.OK, ""), self.updates[context.node_id], WEIGHT, {})
        answer = Message(compat.fitres_to_recorddict(result, keep_input=True), reply_to=message)
        self.apart.seconds += time.perf_counter() - began
        return answer

    def get_node_ids(self) -> list[int]:
        """Return the clients."""
        return list(self.contexts)

    def _never(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    run = property(_never)
    set_run = create_message = push_messages = pull_messages = _never


def main() -> None:
    """Run the job whose file is the only argument."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    random = np.random.default_rng(0)
    vectors = [random.uniform(-1, 1, job["parameters"]).astype(np.float32) for _ in range(4)]
    nodes = range(1, job["clients"] + 1)
    updates = {node: ndarrays_to_parameters([vectors[node % len(vectors)]]) for node in nodes}
    gone = int(job["clients"] * job["dropout"])
    dropped = set(list(nodes)[:: job["clients"] // gone][:gone]) if gone else set()
    apart = Apart()
    for holder, names in (
        (client_side, ("quantize", "parameters_multiply")),
        (server_side, ("dequantize",)),
        (FedAvg, ("aggregate_fit",)),
    ):
        for name in names:
            apart.watch(holder, name)
    grid = InMemory(updates, dropped, apart)
    context = _context(job, vectors[0])
    workflow = SecAggPlusWorkflow(job["neighbours"] + 1, job["threshold"])
    began = time.perf_counter()
    workflow(grid, context)
    server = time.perf_counter() - began - grid.away - grid.server_apart - apart.take()
    mean = _mean(context)
    wanted = np.mean([vectors[node % len(vectors)] for node in nodes if node not in dropped], axis=0)
    _write(job, grid, server, close=bool(np.abs(mean - wanted).max() < 1e-3))


def _context(job: dict[str, Any], initial: np.ndarray) -> LegacyContext:
    count = job["clients"]
    context = LegacyContext(
        Context(1, 0, {}, RecordDict(), {}),
        strategy=FedAvg(fraction_fit=1.0, min_fit_clients=count, min_available_clients=count),
    )
    for node in range(1, count + 1):
        client = Silent(str(node))
        client.node_id = node
        context.client_manager.register(client)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([np.zeros_like(initial)]), keep_input=True
    )
    return context


def _mean(context: LegacyContext) -> np.ndarray:
    record = context.state.array_records[MAIN_PARAMS_RECORD]
    return parameters_to_ndarrays(compat.arrayrecord_to_parameters(record, keep_input=True))[0]


def _write(job: dict[str, Any], grid: InMemory, server: float, *, close: bool) -> None:
    stayed = [times for node, times in grid.client_seconds.items() if node not in grid.dropped]
    stages = {stage: 1000 * statistics.median(times[stage] for times in stayed) for stage in stayed[0]}
    result = {
        "sum_is_right": close,
        "client_ms": {**stages, "total": sum(stages.values())},
        "server_seconds": server,
        "versions": {name: metadata.version(name) for name in ("flwr", "numpy", "cryptography", "pycryptodome")},
    }
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
