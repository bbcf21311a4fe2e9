"""The kernels under a module: each agrees with plain torch, and with itself bit for bit."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hansa.algorithms.hooks import Prox
from hansa.core.layout import TRAIN_LOSS
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream, Streams
from hansa.testing import MemoryClients
from hansa.training import torch_dense, torch_kernels
from hansa.training.kernels import PLAIN, Kernels, chosen, measure, use
from hansa.training.optimizers import Adam, Sgd
from hansa.training.torch_dense import Products
from hansa.training.torch_fourier import Convolution, Shape, pays
from hansa.training.torch_kernels import Layers, layers
from hansa.training.torch_trainer import TorchTrainer

IMAGES = Signature((14, 14), 3)
EVERY = [
    Kernels(channels_last=last, fourier=fourier, dense=dense)
    for last, fourier, dense in product((False, True), (False, True), ("native", "onednn"))
]
BEST = Kernels(channels_last=True, fourier=True, dense="onednn")
CNN = Model(factory=f"{__name__}:convolutions", arguments={})


class convolutions(nn.Module):  # noqa: N801 - a factory
    """Convolutions that go every way: direct, Fourier, grouped, strided; a dense layer large enough to be swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 5, padding="same")
        self.grouped = nn.Conv2d(32, 32, 3, groups=4, stride=2)
        self.dense = nn.Linear(32 * 6 * 6, 64)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.second(functional.gelu(self.first(x[:, None]))))
        x = functional.avg_pool2d(functional.max_pool2d(x, 3, 1, 1), 1)
        hidden = functional.gelu(self.dense(self.grouped(x).flatten(1)))
        return self.last(hidden)


def trained(trainer: TorchTrainer, kernels: Kernels, model: Model = CNN, signature: Signature = IMAGES) -> Batch:
    initial = trainer.initial(model, signature, Stream(1))
    random, sizes, cohort = np.random.default_rng(5), (30, 9, 1), np.arange(3)
    x = [random.standard_normal((size, *signature.shape)).astype(np.float32) for size in sizes]
    clients = ClientBatch(cohort, MemoryClients(x, [random.integers(0, 3, size) for size in sizes]), signature)
    assignment = Assignment(3, initial.layout.with_lanes(TRAIN_LOSS), initial.values, cohort, population=3)
    context = ClientContext(assignment, clients, Streams(11))
    with use(kernels):
        return trainer.train(model, context, {})[0]


SGD = Sgd(learning_rate=0.05)


def sgd(**work: object) -> TorchTrainer:
    return TorchTrainer(**({"optimizer": SGD, "epochs": 2, "batch_size": 16} | work))


@pytest.mark.parametrize("kernels", EVERY)
@pytest.mark.parametrize(
    "trainer",
    [
        sgd(),
        sgd(optimizer=Sgd(learning_rate=0.05, momentum=0.9, weight_decay=0.1)),
        sgd(optimizer=Adam(learning_rate=1e-3, epsilon=1e-3)),
        sgd(hooks=(Prox(mu=0.5),)),
    ],
    ids=["plain", "momentum", "adam", "prox"],
)
def test_all_kernels_train_as_plain_torch_does_and_repeat_themselves(kernels: Kernels, trainer: TorchTrainer) -> None:
    reference, batch = trained(trainer, PLAIN).values, trained(trainer, kernels)
    np.testing.assert_array_less(
        np.linalg.norm(batch.values - reference, axis=1), 1e-4 * np.linalg.norm(reference, axis=1)
    )
    np.testing.assert_array_equal(batch.values, trained(trainer, kernels).values)


def test_the_kernels_are_used_where_they_should_be() -> None:
    module = convolutions()
    with Layers(BEST) as mode:
        module(torch.zeros(16, 14, 14))
    assert mode.swapped == {"channels_last", "fourier", "dense"}


@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "shape"),
    [
        (5, 3, 4, Shape((14, 14), (5, 5), (2, 2))),
        (3, 2, 4, Shape((9, 7), (3, 5), (1, 2))),
        (2, 3, 2, Shape((8, 7), (4, 3), (0, 1))),
        (2, 1, 2, Shape((6, 5), (5, 3), (4, 0))),
        (1, 2, 3, Shape((1, 1), (1, 1), (0, 0))),
        (2, 2, 3, Shape((2, 1), (1, 1), (0, 0))),
        (2, 2, 3, Shape((1, 2), (1, 2), (0, 1))),
    ],
)
def test_fourier_convolution_and_its_gradients_are_those_of_double_precision(
    batch: int, channels: int, outputs: int, shape: Shape
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(size, generator=generator, requires_grad=True)
        for size in ((batch, channels, *shape.image), (outputs, channels, *shape.kernel), (outputs,))
    ]
    exact = [value.detach().double().requires_grad_() for value in values]
    result = Convolution.apply(*values, shape)
    wanted = functional.conv2d(*exact, padding=shape.padding)
    pull = torch.randn(wanted.shape, generator=generator)
    found = (result, *torch.autograd.grad(result, values, pull))
    truth = (wanted, *torch.autograd.grad(wanted, exact, pull.double()))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6 * float(other.detach().abs().max()))


def test_fourier_pays_for_large_kernels_over_many_channels_and_examples_only() -> None:
    wide = Shape((14, 14), (5, 5), (2, 2))
    assert pays(wide, 20, 32, 64)
    assert not pays(wide, 2, 32, 64)
    assert not pays(Shape((28, 28), (5, 5), (2, 2)), 20, 1, 32)
    assert not pays(Shape((14, 14), (1, 1), (0, 0)), 20, 32, 64)
    assert not pays(Shape((3, 3), (5, 5), (0, 0)), 20, 32, 64)


def test_a_weight_that_is_hooked_or_computed_gets_its_gradient_as_ever() -> None:
    seen: list[Tensor] = []
    layer, made = nn.Linear(256, 256), torch.randn(256, 256, requires_grad=True)
    layer.weight.register_hook(seen.append)
    products = Products()
    with layers(BEST, products):
        functional.linear(layer(torch.ones(2, 256)), made * 2).sum().backward()
    assert len(seen) == 1
    assert made.grad is not None
    assert not products.debts


def test_a_dense_layer_of_more_axes_gives_what_torch_gives() -> None:
    x, layer = torch.randn(2, 3, 256), nn.Linear(256, 128)
    with layers(BEST):
        result = layer(x)
    torch.testing.assert_close(result, layer(x))


def test_a_dense_weight_used_twice_takes_both_steps() -> None:
    trainer = sgd(epochs=1)
    model = Model(factory=f"{__name__}:twice", arguments={})
    one, other = (trained(trainer, kernels, model, Signature((256,), 3)).values for kernels in (PLAIN, BEST))
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch", [4, 20, 300])
def test_a_weight_whose_steps_are_put_off_ends_where_it_should(batch: int) -> None:
    trainer = sgd(epochs=9, batch_size=batch)
    model = Model(factory=f"{__name__}:wide", arguments={})
    one, other = (trained(trainer, kernels, model, Signature((256,), 3)).values for kernels in (PLAIN, BEST))
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 3))


def test_a_weight_that_something_else_looks_at_is_what_it_should_be() -> None:
    layer, products = nn.Linear(256, 256, bias=False), Products()
    now = layer.weight.detach().clone()
    for step in range(3):
        x = torch.randn(2, 256)
        with layers(BEST, products):
            outputs = layer(x)
            seen = layer.weight.detach().clone() if step == 1 else now
        torch.testing.assert_close(outputs.detach(), x @ now.t())
        torch.testing.assert_close(seen, now)
        outputs.sum().backward()
        products.descend(0.1)
        now -= 0.1 * x.sum(dim=0)
    products.reveal([layer.weight])
    torch.testing.assert_close(layer.weight.detach(), now)


def test_what_steps_put_off_goes_with_them() -> None:
    """No cycle may hold it until the collector comes by: it is a share of the weight for every client."""
    layer, products = nn.Linear(256, 256), Products()
    gone = weakref.ref(products)
    gc.disable()
    try:
        with layers(BEST, products):
            outputs = layer(torch.randn(2, 256))
        outputs.sum().backward()
        products.descend(0.1)
        del products, outputs
        assert gone() is None
    finally:
        gc.enable()


class twice(nn.Module):  # noqa: N801 - a factory
    """One dense layer applied twice, and its weight once more in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.last = nn.Linear(256, 256), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        bent: Tensor = self.last(torch.tanh(self.same(torch.tanh(self.same(x)))) + 0.1 * x @ self.same.weight)
        return bent


def test_weights_that_share_memory_take_each_other_s_steps() -> None:
    model = Model(factory=f"{__name__}:tied", arguments={})
    one, other = (trained(sgd(epochs=1), kernels, model, Signature((256,), 3)).values for kernels in (PLAIN, BEST))
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


def tied() -> nn.Module:
    first, second = nn.Linear(256, 256), nn.Linear(256, 256)
    second.weight = nn.Parameter(first.weight.data)
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(256, 3))


def test_measuring_leaves_out_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernels, "_MARGIN", 0.0)  # nothing is left out for being slow
    assert measure(CNN, IMAGES, 16) == BEST
    right = torch_dense.product
    monkeypatch.setattr(torch_dense, "product", lambda *given: right(*given) * 1.01)
    assert measure(CNN, IMAGES, 16) == Kernels(channels_last=True, fourier=True)

    def fail(*_: object) -> Tensor:
        raise RuntimeError

    monkeypatch.setattr(torch_kernels, "channels_last", fail)
    assert measure(CNN, IMAGES, 16) == Kernels(fourier=True)


def test_measuring_changes_nothing_for_a_model_without_such_layers() -> None:
    assert (
        measure(
            Model(factory="torch.nn:Linear", arguments={"in_features": 5, "out_features": 3}), Signature((5,), 3), 4
        )
        == PLAIN
    )


def test_measuring_takes_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernels, "_MARGIN", 0.0)  # nothing is left out for being slow
    model = Model(factory="hansa.training.networks:char_lstm", arguments={"vocabulary": 90, "hidden": 256, "layers": 1})
    assert measure(model, Signature((6,), 90, integer_inputs=True, vocabulary=90), 4) == Kernels(dense="onednn")


def test_a_choice_ends_with_its_block_and_survives_json() -> None:
    with use(BEST):
        assert chosen() == Kernels(**json.loads(json.dumps(BEST.record())))
    assert chosen() == PLAIN
    assert PLAIN.plain
    assert not BEST.plain


def test_importing_kernels_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import hansa.training.kernels"
    subprocess.run([sys.executable, "-c", code], check=True)
