"""A task in pfl-research: FedAvg in one process, or in several that split each cohort.

The processes of one run find each other by pfl's own environment variables; the first starts the others.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from dataclasses import replace

from peer_io import Examples, Job, Notes

_RANK, _ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"


def start_others(job: Job) -> list[subprocess.Popen[bytes]]:
    """Start the other processes of the run, before this one imports pfl, which connects to them."""
    if job.processes == 1 or _RANK in os.environ:
        return []
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    os.environ[_ADDRESSES] = ",".join(f"localhost:{port + rank}" for rank in range(job.processes))
    os.environ[_RANK] = "0"
    ranks = range(1, job.processes)
    return [subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {_RANK: str(rank)}) for rank in ranks]  # noqa: S603 - itself


def run(job: Job) -> None:
    """Train, and in the first process note times and models."""
    import numpy as np  # noqa: PLC0415 - after the other processes were started
    import torch  # noqa: PLC0415
    from pfl.aggregate.simulate import SimulatedBackend  # noqa: PLC0415
    from pfl.aggregate.weighting import WeightByDatapoints  # noqa: PLC0415
    from pfl.algorithm.base import NNAlgorithmParams  # noqa: PLC0415
    from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: PLC0415
    from pfl.callback.base import TrainingProcessCallback  # noqa: PLC0415
    from pfl.data.federated_dataset import FederatedDataset  # noqa: PLC0415
    from pfl.data.pytorch import PyTorchTensorDataset  # noqa: PLC0415
    from pfl.hyperparam.base import NNTrainHyperParams  # noqa: PLC0415
    from pfl.metrics import Metrics  # noqa: PLC0415
    from pfl.model.pytorch import PyTorchModel  # noqa: PLC0415
    from torch.nn.functional import cross_entropy  # noqa: PLC0415
    from torch_models import network, numpy_parameters  # noqa: PLC0415

    class WithLoss(torch.nn.Module):
        """The task's model with the methods that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network(job)

        def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:  # noqa: A002, FBT001, FBT002 - pfl's
            return cross_entropy(self.network(x), y)

        def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
            return {"loss": float(self.loss(x, y))}

    class WithoutEvaluation(FederatedAveraging):
        """FedAvg that leaves out the evaluation that pfl makes in the first round whatever its frequency."""

        def get_next_central_contexts(self, *args: object, **kwargs: object) -> tuple[object, ...]:
            contexts, model, metrics = super().get_next_central_contexts(*args, **kwargs)
            if contexts is not None:
                contexts = tuple(replace(context, do_evaluation=False) for context in contexts)
            return contexts, model, metrics

    class Watch(TrainingProcessCallback):
        """Notes the end of each round."""

        few: dict[str, np.ndarray] | None = None

        def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
            notes.begin()
            return Metrics()

        def after_central_iteration(
            self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            notes.end_round()
            if central_iteration + 1 == job.few_rounds:
                self.few = numpy_parameters(module, job)
            return False, Metrics()

    def dataset(client: int) -> PyTorchTensorDataset:
        x, y = examples.of(client)
        return PyTorchTensorDataset((torch.from_numpy(x), torch.from_numpy(y)), user_id=client)

    if job.processes > 1:
        torch.set_num_threads(1)
    notes = Notes(job, ("pfl", "torch", "numpy"))
    examples, cohorts, module, watch = Examples.load(job), job.cohort_rows(), WithLoss(), Watch()
    clients = itertools.cycle(cohorts.reshape(-1).tolist())
    backend = SimulatedBackend(
        training_data=FederatedDataset(dataset, lambda: next(clients)),
        val_data=None,
        postprocessors=[WeightByDatapoints()],
    )
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    WithoutEvaluation().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=cohorts.shape[1],
            val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job.learning_rate, local_batch_size=job.batch
        ),
        callbacks=[watch],
        send_metrics_to_platform=False,
    )
    if os.environ.get(_RANK, "0") == "0":
        notes.write(numpy_parameters(module, job), watch.few, threads=torch.get_num_threads())


def main() -> None:
    """Run the job whose file is the only argument."""
    job = Job.read(sys.argv[1])
    others = start_others(job)
    try:
        run(job)
    finally:
        for other in others:
            other.wait()


if __name__ == "__main__":
    main()
