"""A module trains in the loop, with a reason in words, wherever training its clients together is not sound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hansa.core.nouns import Signature
from hansa.core.sections import Model
from hansa.training.linear import LinearTrainer
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer

SIGNATURE = Signature((4,), 3)
TRAINER = TorchTrainer(optimizer=Sgd(learning_rate=0.1), epochs=1)


class Odd(nn.Module):
    """A dense layer with one oddity in its forward pass."""

    def __init__(self, oddity: str) -> None:
        super().__init__()
        self.oddity = oddity
        self.dense, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(x)
        oddities: dict[str, Any] = {
            "centred": lambda: out - out.mean(dim=0),
            "ranked": lambda: out + torch.arange(len(x))[:, None] * len(x),
            "noise": lambda: out + torch.randn_like(out),
            "gumbel": lambda: functional.gumbel_softmax(out),
            "rrelu": lambda: functional.rrelu(out, training=True),
            "branch": lambda: out * 2 if out.sum() > 0 else out,
            "numpy": lambda: out + torch.from_numpy(out.detach().numpy() * 0.1),
            "buffer": lambda: out + self.seen.add_(1),
            "checkpoint": lambda: checkpoint(lambda y: self.drop(self.dense(y)), x, use_reentrant=False),
            "plain": lambda: out,
        }
        changed: Tensor = oddities[self.oddity]()
        return changed


def odd(oddity: str) -> nn.Module:
    return Odd(oddity)


def layers(kind: str) -> nn.Module:
    makers: dict[str, Any] = {
        "batch norm": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
        "half": lambda: nn.Linear(4, 3).bfloat16(),
        "double": lambda: nn.Linear(4, 3).double(),
    }
    module: nn.Module = makers[kind]()
    return module


def batching(factory: str, **arguments: Any) -> tuple[str, str]:
    return TRAINER.batching(Model(factory=f"{__name__}:{factory}", arguments=arguments), SIGNATURE)


@pytest.mark.parametrize(("kind", "reason"), [("batch norm", "BatchNorm"), ("half", "bfloat16"), ("double", "float64")])
def test_layers_and_dtypes_that_rule_a_module_out(kind: str, reason: str) -> None:
    found, why = batching("layers", kind=kind)
    assert found == "none"
    assert reason in why


@pytest.mark.parametrize(
    ("oddity", "reason"),
    [
        ("centred", "depend on the others in its batch"),
        ("ranked", "depend on how many are in its batch"),
        ("noise", "draws random numbers otherwise than by dropout"),
        ("gumbel", "draws random numbers otherwise than by dropout"),
        ("rrelu", "draws random numbers otherwise than by dropout"),
        ("branch", "depend on|raised"),
        ("numpy", "raised"),
        ("buffer", "its buffer 'seen' changes in training"),
        ("checkpoint", "checkpointing"),
    ],
)
def test_forward_passes_that_rule_a_module_out(oddity: str, reason: str) -> None:
    found, why = batching("odd", oddity=oddity)
    assert found == "none"
    assert any(part in why for part in reason.split("|")), why


class Counting(nn.Linear):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.calls = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        self.calls += 1
        return super().forward(input)


class Keeping(nn.Linear):
    """Keeps its last outputs."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.last: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        self.last = super().forward(input)
        return self.last


@pytest.mark.parametrize(("factory", "attribute"), [("Counting", "calls"), ("Keeping", "last")])
def test_an_attribute_that_changes_rules_a_module_out(factory: str, attribute: str) -> None:
    assert batching(factory) == ("none", f"its attribute '{attribute}' changes in training")


def test_a_plain_module_may_train_together() -> None:
    kind, why = batching("odd", oddity="plain")
    assert kind in {"vmap", "fused"}
    assert "equals that of the loop" in why


def test_finding_out_changes_nothing() -> None:
    network = TRAINER._network(Model(factory=f"{__name__}:odd", arguments={"oddity": "plain"}), SIGNATURE)
    before, state = network.first_values(), torch.get_rng_state()
    batching("odd", oddity="plain")
    assert (network.first_values() == before).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_linear_trainer_is_fused() -> None:
    trainer = LinearTrainer(optimizer=Sgd(learning_rate=0.1), epochs=1)
    assert trainer.batching(Model(factory="hansa.training.linear:softmax"), SIGNATURE)[0] == "fused"
