"""FedAvg of a task in one of pfl-research's processes; importing this connects it to the others."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from peer_io import Examples, Job, Notes
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy
from torch_models import network, numpy_parameters


class WithLoss(torch.nn.Module):
    """The task's model with the methods that pfl asks for."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.network = network(job)

    def loss(self, x, y):
        return cross_entropy(self.network(x), y)

    def metrics(self, x, y):
        return {"loss": float(self.loss(x, y))}


class WithoutEvaluation(FederatedAveraging):
    """FedAvg that leaves out the evaluation that pfl makes in the first round whatever its frequency."""

    def get_next_central_contexts(self, *args, **kwargs):
        contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
        if contexts is not None:
            contexts = tuple(replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics


class Watch(TrainingProcessCallback):
    """Notes the end of each round."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.few: dict[str, np.ndarray] | None = None

    def on_train_begin(self, *, model):  # noqa: ARG002 - pfl's form
        self.notes.begin()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # noqa: ARG002 - pfl's form
        self.notes.end_round()
        if central_iteration + 1 == self.notes.job.few_rounds:
            self.few = numpy_parameters(model.pytorch_model, self.notes.job)
        return False, Metrics()


def backend_of(job: Job) -> SimulatedBackend:
    """Return pfl's simulation of the task's clients, which draws the cohorts that it is told."""
    examples = Examples.load(job)
    clients = itertools.cycle(job.cohort_rows().reshape(-1).tolist())

    def dataset(client: int) -> PyTorchTensorDataset:
        return PyTorchTensorDataset(tuple(map(torch.from_numpy, examples.of(client))), user_id=client)

    federated = FederatedDataset(dataset, lambda: next(clients))
    return SimulatedBackend(training_data=federated, val_data=None, postprocessors=[WeightByDatapoints()])


def run(job: Job, *, first: bool) -> None:
    """Train, and in the first process note times and models."""
    if job.processes > 1 or job.network != "cnn":  # small products gain nothing from a second thread
        torch.set_num_threads(1)
    notes, module = Notes(job, ("pfl", "torch", "numpy")), WithLoss(job)
    watch = Watch(notes)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    local = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=job.learning_rate, local_batch_size=job.batch)
    central = NNAlgorithmParams(
        central_num_iterations=job.rounds,
        evaluation_frequency=job.rounds + 1,
        train_cohort_size=job.cohort_rows().shape[1],
        val_cohort_size=0,
    )
    WithoutEvaluation().run(central, backend_of(job), model, local, callbacks=[watch], send_metrics_to_platform=False)
    if first:
        notes.write(numpy_parameters(module, job), watch.few, threads=torch.get_num_threads())
