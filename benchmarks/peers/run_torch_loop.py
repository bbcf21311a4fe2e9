"""A plain torch loop over clients, split over processes: what a task costs without any framework. No peer."""

from __future__ import annotations

import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import torch
from peer_io import Examples, Job, Notes
from torch import nn
from torch.nn.functional import cross_entropy
from torch_models import network, numpy_parameters


def train(module: nn.Module, start: torch.Tensor, examples: Examples, clients: list[int], job: Job) -> torch.Tensor:
    """Return the sum of the clients' models, each weighed by its examples: [parameters]."""
    parameters = list(module.parameters())
    total = torch.zeros_like(start)
    for client in clients:
        nn.utils.vector_to_parameters(start.clone(), parameters)
        x, y = map(torch.from_numpy, examples.of(client))
        for first in range(0, len(y), job.batch):
            loss = cross_entropy(module(x[first : first + job.batch]), y[first : first + job.batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-job.learning_rate)
        with torch.no_grad():
            total.add_(nn.utils.parameters_to_vector(parameters), alpha=float(len(y)))
    return total


def work(job: Job, clients: list[list[int]], start: torch.Tensor, total: torch.Tensor, pipe: Connection) -> None:
    """Train this process's part of each cohort, from a shared model into a shared sum."""
    torch.set_num_threads(1)
    module, examples = network(job).train(), Examples.load(job)
    with torch.no_grad():
        vector = start.clone()
    for mine in clients:
        pipe.recv()
        vector.copy_(start)
        total.copy_(train(module, vector, examples, mine, job))
        pipe.send(None)


def dealt(cohort: np.ndarray, sizes: np.ndarray, processes: int) -> list[list[int]]:
    """Return each process's clients: the largest first, each to the process with the least work."""
    parts: list[list[int]] = [[] for _ in range(processes)]
    loads = np.zeros(processes)
    for client in sorted(cohort.tolist(), key=lambda client: -sizes[client]):
        least = int(np.argmin(loads))
        parts[least].append(client)
        loads[least] += sizes[client]
    return parts


def run(job: Job) -> None:
    """Train and note times and models."""
    notes = Notes(job, ("torch", "numpy"))
    module, sizes, cohorts = network(job), np.diff(Examples.load(job).offsets), job.cohort_rows()
    vector = nn.utils.parameters_to_vector(module.parameters()).detach().share_memory_()
    totals = [torch.zeros_like(vector).share_memory_() for _ in range(job.processes)]
    parts = [dealt(cohort, sizes, job.processes) for cohort in cohorts]
    context, pipes, few = get_context("spawn"), [], None
    for rank, total in enumerate(totals):
        ours, theirs = context.Pipe()
        mine = [part[rank] for part in parts]
        context.Process(target=work, args=(job, mine, vector, total, theirs), daemon=True).start()
        pipes.append(ours)
    notes.begin()
    for number, cohort in enumerate(cohorts):
        for pipe in pipes:
            pipe.send(None)
        for pipe in pipes:
            pipe.recv()
        vector.copy_(torch.stack(totals).sum(0) / float(sizes[cohort].sum()))
        notes.end_round()
        if number + 1 == job.few_rounds:
            nn.utils.vector_to_parameters(vector, module.parameters())
            few = numpy_parameters(module, job)
    nn.utils.vector_to_parameters(vector, module.parameters())
    notes.write(numpy_parameters(module, job), few)


if __name__ == "__main__":
    run(Job.read(sys.argv[1]))
