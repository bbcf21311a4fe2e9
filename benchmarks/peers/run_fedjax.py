"""A task in FedJAX: its own federated averaging, with its for-each-client loop compiled by JAX."""

from __future__ import annotations

import sys

import fedjax_shim
import haiku as hk
import jax
import numpy as np
from peer_io import Examples, Job, Notes

fedjax_shim.patch_jax()

import fedjax  # noqa: E402 - under the patched JAX
from fedjax.algorithms import fed_avg  # noqa: E402

Parameters = dict[str, dict[str, np.ndarray]]


def forward(job: Job, x: jax.Array) -> jax.Array:
    """Return logits of x [b, ...]."""
    if job.network == "cnn":
        x = x[..., None]
        for number, channels in enumerate((32, 64)):
            x = jax.nn.relu(hk.Conv2D(channels, 5, padding="SAME", name=f"layer{number}")(x))
            x = hk.max_pool(x, window_shape=(2, 2, 1), strides=(2, 2, 1), padding="VALID")
        x = jax.nn.relu(hk.Linear(512, name="layer2")(hk.Flatten()(x)))
        return hk.Linear(job.classes, name="layer3")(x)
    for number, width in enumerate(job.hidden):
        x = jax.nn.relu(hk.Linear(width, name=f"layer{number}")(x))
    return hk.Linear(job.classes, name=f"layer{len(job.hidden)}")(x)


def to_jax(initial: dict[str, np.ndarray]) -> Parameters:
    """Return parameters of torch's layout as Haiku's: images have their channels last, matrices are transposed."""
    turned: Parameters = {}
    flat_next = False
    for name, value in initial.items():
        number, _, kind = name.partition(".")
        place, key = turned.setdefault(f"layer{number}", {}), "w" if kind == "weight" else "b"
        if value.ndim == 4:
            place[key], flat_next = value.transpose(2, 3, 1, 0), True
        elif value.ndim == 2:
            place[key], flat_next = (_channels_last(value) if flat_next else value).T, False
        else:
            place[key] = value
    return turned


def to_torch(parameters: Parameters) -> dict[str, np.ndarray]:
    """Return Haiku's parameters in torch's layout."""
    turned: dict[str, np.ndarray] = {}
    flat_next = False
    for number in range(len(parameters)):
        weight, bias = (np.asarray(parameters[f"layer{number}"][kind]) for kind in "wb")
        if weight.ndim == 4:
            weight, flat_next = weight.transpose(3, 2, 0, 1), True
        else:
            weight = _channels_first(weight.T) if flat_next else weight.T
            flat_next = False
        turned |= {f"{number}.weight": weight, f"{number}.bias": bias}
    return turned


def _channels_last(matrix: np.ndarray) -> np.ndarray:
    """Return a dense layer [out, 64 x 7 x 7] for inputs that are flattened as [7, 7, 64]."""
    return matrix.reshape(-1, 64, 7, 7).transpose(0, 2, 3, 1).reshape(len(matrix), -1)


def _channels_first(matrix: np.ndarray) -> np.ndarray:
    return matrix.reshape(-1, 7, 7, 64).transpose(0, 3, 1, 2).reshape(len(matrix), -1)


def algorithm(job: Job) -> fedjax.FederatedAlgorithm:
    """Return FedJAX's federated averaging of the task's model."""
    model = fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(lambda batch: forward(job, batch["x"])),
        sample_batch={"x": np.zeros((1, *job.shape), np.float32), "y": np.zeros(1, np.int64)},
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
    )
    return fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(job.learning_rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=job.batch, num_epochs=1, seed=job.seed),
    )


def run(job: Job) -> None:
    """Train and note times and models."""
    notes = Notes(job, ("fedjax", "jax", "jaxlib", "dm-haiku", "numpy"))
    examples, cohorts = Examples.load(job), job.cohort_rows()
    averaging = algorithm(job)
    state, few = averaging.init(jax.device_put(to_jax(job.initial()))), None
    data = fedjax.InMemoryFederatedData(
        {client: dict(zip("xy", examples.of(client), strict=True)) for client in range(job.clients)}
    )
    key = jax.random.PRNGKey(job.seed)
    notes.begin()
    for number, cohort in enumerate(cohorts.tolist()):
        keys = jax.random.split(jax.random.fold_in(key, number), len(cohort))
        clients = [(name, dataset, keys[place]) for place, (name, dataset) in enumerate(data.get_clients(cohort))]
        state, _ = averaging.apply(state, clients)
        jax.block_until_ready(state.params)
        notes.end_round()
        if number + 1 == job.few_rounds:
            few = to_torch(state.params)
    notes.write(to_torch(state.params), few, backend=jax.default_backend(), shim=fedjax_shim.patched)


if __name__ == "__main__":
    run(Job.read(sys.argv[1]))
