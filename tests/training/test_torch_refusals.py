"""Models that the torch trainer refuses or remarks on, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hansa.core.errors import ModelError
from hansa.core.nouns import InitialModel, Signature
from hansa.core.sections import Model
from hansa.core.streams import Stream
from hansa.training.optimizers import Sgd
from hansa.training.torch_trainer import TorchTrainer

SIGNATURE = Signature((4,), 3)
TRAINER = TorchTrainer(optimizer=Sgd(learning_rate=0.1), steps=1, batch_size="all")


def model_of(factory: Callable[..., Any], buffers: Any = "keep-local", **arguments: Any) -> Model:
    return Model(factory=f"{__name__}:{factory.__name__}", arguments=arguments, buffers=buffers)


def first(model: Model, signature: Signature = SIGNATURE, trainer: TorchTrainer = TRAINER) -> InitialModel:
    return trainer.initial(model, signature, Stream(1))


def no_module() -> object:
    return {"weights": 3}


def failing() -> nn.Module:
    raise RuntimeError("no such checkpoint")


def pair() -> nn.Module:
    return nn.LSTM(4, 3)


def detached() -> nn.Module:
    return _Detached(4, 3)


class _Detached(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def fixed() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(requires_grad=False)


def complex_numbers() -> nn.Module:
    return _Complex()


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


def transposed() -> nn.Module:
    """Return two layers whose weights share memory as different views."""
    up, down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    down.weight = nn.Parameter(up.weight.detach().T)
    return nn.Sequential(up, down)


_ONE = nn.Linear(4, 3)


def singleton() -> nn.Module:
    return _ONE


def sized(outputs: int) -> nn.Module:
    return nn.Linear(4, outputs)


def wide() -> nn.Module:
    return nn.Linear(9, 3)


def embedded() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 1), nn.Flatten(), nn.Linear(7, 3))


@pytest.mark.parametrize(
    ("factory", "arguments", "words"),
    [
        (no_module, {}, r"returned dict"),
        (failing, {}, r"failing' raised RuntimeError: no such checkpoint"),
        (pair, {}, r"returned a tuple for two examples"),
        (detached, {}, r"have no gradient"),
        (fixed, {}, r"none that requires a gradient"),
        (complex_numbers, {}, r"'weight' .* is torch\.complex64"),
        (transposed, {}, r"'[01]\.weight' and '[01]\.weight' .* different views"),
        (sized, {"output": 3}, r"no argument 'output' \(did you mean 'outputs'\?\)"),
        (sized, {}, r"missing a required argument: 'outputs'"),
        (sized, {"outputs": 2}, r"an output for each.*3 classes.*returns \[2\]"),
        (sized, {"outputs": 1}, r"an output for each.*3 classes.*returns \[1\]"),
        (wide, {}, r"a batch \[b, 4\] of torch\.float32 \(b = 2\), raised RuntimeError: mat1 and mat2"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(
    factory: Callable[..., Any], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        first(model_of(factory, **arguments))
    assert caught.value.code == "HANSA-MODEL-UNSUITABLE"


def test_a_factory_must_be_callable() -> None:
    with pytest.raises(ModelError, match="is a dict"):
        first(Model(factory=f"{__name__}:_TABLE"))


_TABLE = {"linear": 3}


def test_a_factory_that_hands_out_one_module_again_and_again_is_refused() -> None:
    first(model_of(singleton))
    with pytest.raises(ModelError, match="returned the same module twice"):
        first(model_of(singleton))


def test_an_embedding_too_small_for_the_vocabulary_is_refused() -> None:
    signature = Signature((7,), 3, integer_inputs=True, vocabulary=12)
    with pytest.raises(ModelError, match=r"a batch \[b, 7\] of int64 tokens below 12 .* index out of range"):
        first(model_of(embedded), signature)


@pytest.mark.parametrize(
    ("loss", "classes", "outputs", "fits"),
    [
        ("auto", 3, 3, True),
        ("auto", 3, 5, True),
        ("auto", 2, 2, True),
        ("auto", 2, 1, True),
        ("auto", 0, 1, True),
        ("auto", 0, 2, False),
        ("auto", 1, 1, False),
        ("squared-error", 2, 1, True),
        ("squared-error", 3, 1, False),
        ("binary-cross-entropy", 2, 2, False),
        ("cross-entropy", 0, 3, False),
        ("cross-entropy", 2, 1, False),
    ],
)
def test_the_loss_fits_the_label_and_the_outputs(loss: Any, classes: int, outputs: int, fits: bool) -> None:
    trainer = TorchTrainer(optimizer=Sgd(learning_rate=0.1), steps=1, loss=loss)
    signature, model = Signature((4,), classes), model_of(sized, outputs=outputs)
    if fits:
        assert first(model, signature, trainer).values.size == 5 * outputs
        return
    with pytest.raises(ModelError, match=r"trainer\.loss"):
        first(model, signature, trainer)


def normed() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))


def sharp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))


def buffered() -> nn.Module:
    module = nn.Linear(4, 3)
    module.register_buffer("mean", torch.zeros(4))
    return module


def test_batchnorm_with_steps_of_one_example_only_is_refused() -> None:
    trainer = TorchTrainer(optimizer=Sgd(learning_rate=0.1), epochs=1, batch_size=1)
    with pytest.raises(ModelError, match=r"trainer\.batch_size is 1.*GroupNorm"):
        first(model_of(normed), trainer=trainer)


def test_notes_explain_batchnorm_and_recommend_groupnorm() -> None:
    (local,) = TRAINER.notes(model_of(normed), SIGNATURE)
    (averaged,) = TRAINER.notes(model_of(normed, buffers="average"), SIGNATURE)
    assert "stay with each client" in local
    assert "the server sees" in averaged
    assert all("GroupNorm" in note for note in (local, averaged))


def test_notes_name_other_buffers_and_outputs_that_are_no_logits() -> None:
    assert TRAINER.notes(model_of(sized, outputs=3), SIGNATURE) == ()
    assert "(mean)" in TRAINER.notes(model_of(buffered), SIGNATURE)[0]
    assert TRAINER.notes(model_of(buffered, buffers="average"), SIGNATURE) == ()
    assert "logits" in TRAINER.notes(model_of(sharp), SIGNATURE)[0]


def leaving() -> nn.Module:
    raise SystemExit(0)


class _Leaving(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(0)


def leaving_later() -> nn.Module:
    return _Leaving(4, 3)


@pytest.mark.parametrize("factory", [leaving, leaving_later])
def test_a_model_that_ends_the_process_is_refused(factory: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="raised SystemExit: 0"):
        first(model_of(factory))


def interrupted() -> nn.Module:
    raise KeyboardInterrupt


def test_an_interrupt_within_a_factory_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        first(model_of(interrupted))


class _Growing(nn.Linear):
    """Makes a layer, or a parameter, when it first runs; or a new one each time."""

    def __init__(self, what: str) -> None:
        super().__init__(4, 3)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "layer" and not hasattr(self, "more"):
            self.more = nn.Linear(3, 3)
        if self.what == "weight" or (self.what == "in training" and self.training):
            self.weight = nn.Parameter(torch.ones(3, 4))
        if self.what == "data":
            self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1.0)
        return super().forward(x)


def growing(what: str) -> nn.Module:
    return _Growing(what)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("layer", r"made, replaced or removed the parameter 'more\.weight'.*in __init__"),
        ("weight", r"made, replaced or removed the parameter 'weight'"),
        ("data", r"moved 'weight'.*in place"),
    ],
)
def test_parameters_made_or_moved_in_forward_are_refused(what: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        first(model_of(growing, what=what))


def spoilt(value: str) -> nn.Module:
    module = nn.Linear(4, 3)
    nn.init.constant_(module.bias, float(value))
    return module


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match=r"'bias' .* holds NaN or infinity"):
        first(model_of(spoilt, value=str(value)))


def shapes_only() -> nn.Module:
    return nn.Linear(4, 3, device="meta")


def test_a_model_on_the_device_meta_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'weight' .* on the device 'meta'"):
        first(model_of(shapes_only))
