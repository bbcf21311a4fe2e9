"""The client's and the server's side of a task in Flower; imported by its actors."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from peer_io import Examples, Job, Notes
from torch import nn
from torch.nn.functional import cross_entropy
from torch_models import network

JOB = "HANSA_BENCHMARK_JOB"
"""The environment variable with the job's path; actors inherit it."""

client_app = ClientApp()
server_app = ServerApp()


@functools.cache
def _job() -> Job:
    return Job.read(os.environ[JOB])


@functools.cache
def _examples() -> Examples:
    return Examples.load(_job())


@functools.cache
def _network() -> nn.Module:
    return network(_job())


@client_app.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's form
    """Train the client that the server names; the actor keeps module and mapped data from call to call."""
    job, module = _job(), _network()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = map(torch.from_numpy, _examples().of(message.content["config"]["client"]))
    optimizer = torch.optim.SGD(module.parameters(), lr=job.learning_rate)
    for start in range(0, len(y), job.batch):
        optimizer.zero_grad()
        cross_entropy(module(x[start : start + job.batch]), y[start : start + job.batch]).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(content=RecordDict(content), reply_to=message)


class SameCohorts(FedAvg):
    """FedAvg that tells the nodes it samples which clients to be, so that cohorts are those of all systems."""

    def __init__(self, cohorts: np.ndarray, notes: Notes) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=cohorts.shape[1])
        self.cohorts, self.notes, self.few = cohorts, notes, None

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002 - Flower's form
        grid: Grid,
    ) -> Iterable[Message]:
        """Return one message for each client of the round."""
        clients = self.cohorts[server_round - 1].tolist()
        nodes, _ = sample_nodes(grid, self.min_available_nodes, len(clients))
        if server_round == 1:
            self.notes.begin()
        records = (RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})}) for client in clients)
        return list(itertools.chain.from_iterable(map(self._one, records, nodes)))

    def _one(self, record: RecordDict, node: int) -> Iterable[Message]:
        return self._construct_messages(record, [node], "train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and note the end of the round."""
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) != self.cohorts.shape[1]:
            raise RuntimeError(f"{len(replies)} replies, {len(failed)} of them failed: {failed[:1]}")
        aggregated = super().aggregate_train(server_round, replies)
        self.notes.end_round()
        if server_round == _job().few_rounds:
            self.few = _numpy(aggregated[0])
        return aggregated


def _numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """Return arrays under the names of the initial model."""
    return dict(zip(_job().initial(), (value.numpy() for value in arrays.values()), strict=True))


@server_app.main()
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's form
    """Run all rounds and write times and models."""
    job = _job()
    notes = Notes(job, ("flwr", "ray", "torch", "numpy"))
    strategy = SameCohorts(job.cohort_rows(), notes)
    result = strategy.start(grid, ArrayRecord(_network().state_dict()), num_rounds=job.rounds)
    notes.write(_numpy(result.arrays), strategy.few)
