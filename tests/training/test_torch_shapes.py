"""What a torch module may return and change while it trains: anything else is refused, not guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hansa.core.errors import ModelError
from hansa.core.layout import TRAIN_LOSS
from hansa.core.nouns import Assignment, ClientBatch, ClientContext, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.testing import MemoryClients
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer

FEATURES = 4


class _Shaped(nn.Linear):
    """Returns its outputs in another shape where it trains."""

    def __init__(self, outputs: int, shape: str) -> None:
        super().__init__(FEATURES, outputs)
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        if not self.training:
            return out
        if self.shape == "made anew":
            self.weight = nn.Parameter(self.weight.detach().clone())
        shapes = {"transposed": out.T, "flat": out.reshape(-1), "squeezed": out.squeeze(), "pair": (out, out)}
        shapes |= {"summed": out.sum(), "more": out[:, None]}
        return shapes.get(self.shape, out)


def shaped(outputs: int, shape: str) -> nn.Module:
    return _Shaped(outputs, shape)


def train(outputs: int, shape: str, examples: int) -> None:
    trainer = TorchTrainer(optimizer=Sgd(learning_rate=0.1), steps=1, batch_size="all")
    model = Model(factory=f"{__name__}:shaped", arguments={"outputs": outputs, "shape": shape})
    signature = Signature((FEATURES,), outputs if outputs > 1 else 0)
    initial = trainer.initial(model, signature, Stream(1))
    labels = np.zeros(examples, dtype=np.int64 if outputs > 1 else np.float32)
    data = MemoryClients([np.ones((examples, FEATURES), dtype=np.float32)], [labels])
    cohort = np.zeros(1, dtype=np.int64)
    assignment = Assignment(1, initial.layout.with_lanes(TRAIN_LOSS), initial.values, cohort, population=1)
    trainer.train(model, ClientContext(assignment, ClientBatch(cohort, data, signature), Streams(2)), {})


@pytest.mark.parametrize(
    ("outputs", "shape", "examples"),
    [
        (3, "", 5),
        (3, "", 1),
        (3, "squeezed", 1),
        (1, "squeezed", 5),
        (1, "squeezed", 1),
        (1, "flat", 5),
        (1, "flat", 1),
    ],
)
def test_axes_of_one_may_be_squeezed_out(outputs: int, shape: str, examples: int) -> None:
    train(outputs, shape, examples)


@pytest.mark.parametrize(
    ("outputs", "shape", "examples", "found"),
    [
        (3, "transposed", 5, r"a tensor \[3, 5\] where \[5, 3\] was expected"),
        (3, "flat", 5, r"a tensor \[15\] where \[5, 3\]"),
        (3, "more", 5, r"a tensor \[5, 1, 3\]"),
        (3, "summed", 5, r"a tensor \[\]"),
        (1, "transposed", 5, r"a tensor \[1, 5\]"),
        (3, "pair", 5, r"a tuple where"),
    ],
)
def test_outputs_of_another_shape_are_refused(outputs: int, shape: str, examples: int, found: str) -> None:
    with pytest.raises(ModelError, match=found):
        train(outputs, shape, examples)


def test_a_parameter_that_training_replaces_is_refused() -> None:
    with pytest.raises(ModelError, match=r"replaced or removed the parameter 'weight'"):
        train(3, "made anew", 5)


def test_the_checks_leave_ordinary_layers_alone() -> None:
    trainer = TorchTrainer(optimizer=Sgd(learning_rate=0.1), steps=1, batch_size="all")
    for factory in ("normalised", "spectral", "lazy"):
        trainer.initial(Model(factory=f"{__name__}:{factory}"), Signature((FEATURES,), 3), Stream(1))


def normalised() -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 3))


def spectral() -> nn.Module:
    return torch.nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, 3))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(3))
