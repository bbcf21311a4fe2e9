"""The example networks: their sizes are those that the paper prints, and they train."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from hansa.core.nouns import Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream
from hansa.training.networks import char_lstm, cnn, mlp
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_counts_the_parameters_of_its_two_image_models() -> None:
    assert size_of(mlp()) == 199_210
    assert size_of(cnn()) == 1_663_370


def test_the_character_model_has_the_parameters_of_its_layers() -> None:
    lstm = 4 * 256 * ((8 + 256 + 2) + (256 + 256 + 2))
    assert size_of(char_lstm()) == 81 * 8 + lstm + 257 * 81


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (784,)])
def test_images_of_any_form_give_logits(shape: tuple[int, ...]) -> None:
    for module in (mlp(hidden=[3]), cnn()):
        assert module(torch.zeros(2, *shape)).shape == (2, 10)


def test_colour_images_of_another_size() -> None:
    assert cnn(channels=3, image=10, classes=4)(torch.zeros(2, 3, 10, 10)).shape == (2, 4)


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert size_of(mlp(inputs=5, hidden=(), classes=3)) == 18


def test_the_next_character_depends_on_order() -> None:
    module = char_lstm(vocabulary=7, embedding=2, hidden=4)
    forwards, backwards = module(torch.tensor([[1, 2, 3], [3, 2, 1]]))
    assert forwards.shape == (7,)
    assert not torch.allclose(forwards, backwards)


@pytest.mark.parametrize(
    ("factory", "arguments", "signature"),
    [
        ("mlp", '{"inputs": 6, "hidden": [4, 3], "classes": 2}', Signature((6,), 2)),
        ("cnn", '{"image": 8}', Signature((8, 8), 10)),
        ("char_lstm", '{"vocabulary": 9, "hidden": 4}', Signature((5,), 9, integer_inputs=True, vocabulary=9)),
    ],
)
def test_a_plan_can_name_them(factory: str, arguments: str, signature: Signature) -> None:
    model = Model(factory=f"hansa.training.networks:{factory}", arguments=json.loads(arguments))
    start = TorchTrainer(optimizer=Sgd(learning_rate=0.1), epochs=1).initial(model, signature, Stream(1))
    assert start.values.size == start.layout.branch("params").size
