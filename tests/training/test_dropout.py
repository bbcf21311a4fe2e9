"""Dropout masks are a published function: the same for a client in every path, chunk and padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hansa.training.dropout import Draws, batched_masks, masks

WORD = 2**64


def mixed(value: int) -> int:
    """SplitMix64's finaliser in Python's integers, from the paper."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % WORD
    return value ^ (value >> 31)


def published(seed: int, step: int, call: int, element: int, p: float) -> bool:
    """Return whether an element is kept, from the module's docstring alone."""
    gamma = 0x9E3779B97F4A7C15
    key = mixed((mixed((seed + step * gamma) % WORD) + (call + 1) * gamma) % WORD)
    word = mixed((key + (element // 4 + 1) * gamma) % WORD)
    lane = word >> 16 * (element % 4) & 0xFFFF
    return (lane - 0x10000 if lane & 0x8000 else lane) >= round(65536 * p) - 32768


seeds = st.integers(0, 2**63 - 1)
shares = st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0])


@given(seed=seeds, step=st.integers(1, 2**40), call=st.integers(0, 50), count=st.integers(1, 30), p=shares)
def test_masks_are_the_published_hash(seed: int, step: int, call: int, count: int, p: float) -> None:
    found = masks(np.array([seed]), step, call, count, p)
    kept = np.array([published(seed, step, call, i, p) for i in range(count)])
    np.testing.assert_array_equal(found[0], kept * np.float32(1 / (1 - p) if p < 1 else 0))


@given(some=st.lists(seeds, min_size=1, max_size=5), count=st.integers(1, 40), p=shares)
def test_a_clients_masks_are_the_same_in_any_chunk_and_under_any_padding(some: list[int], count: int, p: float) -> None:
    together = masks(np.array(some), 3, 1, count, p)
    padded = masks(np.array(some), 3, 1, count + 7, p)
    for row, seed in enumerate(some):
        np.testing.assert_array_equal(masks(np.array([seed]), 3, 1, count, p)[0], together[row])
    np.testing.assert_array_equal(padded[:, :count], together)


def test_torchs_masks_are_numpys_alone_and_under_vmap() -> None:
    some = np.random.default_rng(0).integers(0, 2**63 - 1, 6)
    wanted = masks(some, 9, 2, 101, 0.3)
    drawn = torch.vmap(lambda seed: batched_masks(seed, 9, 2, 101, 0.3))(torch.tensor(some))
    np.testing.assert_array_equal(drawn.numpy(), wanted)
    np.testing.assert_array_equal(batched_masks(torch.tensor(some[0]), 9, 2, 101, 0.3).numpy(), wanted[0])


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.8])
def test_masks_have_mean_one_and_lanes_steps_calls_and_clients_are_unrelated(p: float) -> None:
    drawn = [masks(np.array([seed]), step, call, 40_000, p)[0] for seed in (1, 2) for step in (1, 2) for call in (0, 1)]
    deviation = math.sqrt(p / (1 - p))
    for mask in drawn:
        assert abs(mask.mean() - 1) < 5 * deviation / math.sqrt(mask.size)
    streams = np.stack([*drawn, *drawn[0].reshape(-1, 8).T.repeat(8, axis=1)[:, : drawn[0].size]])
    lanes = np.corrcoef(drawn[0].reshape(-1, 4).T)
    assert np.abs(np.corrcoef(streams[:8]) - np.eye(8)).max() < 0.03
    assert np.abs(lanes - np.eye(4)).max() < 0.05


def drawn(draws: Draws, module: Any, *inputs: Tensor, seed: int = 5, step: int = 2) -> Tensor:
    draws.set(seed, step)
    with draws:
        out: Tensor = module(*inputs)
    return out


def test_dropout_keeps_what_the_mask_keeps() -> None:
    x = torch.randn(3, 4)
    wanted = x * torch.from_numpy(masks(np.array([5]), 2, 0, 12, 0.25)).view(3, 4)
    torch.testing.assert_close(drawn(Draws(), nn.Dropout(0.25), x), wanted, rtol=0, atol=0)
    torch.testing.assert_close(drawn(Draws(), lambda x: torch.dropout(x, 0.25, True), x), wanted, rtol=0, atol=0)
    copy = x.clone()
    drawn(Draws(), nn.Dropout(0.25, inplace=True), copy)
    torch.testing.assert_close(copy, wanted, rtol=0, atol=0)


def test_calls_that_drop_nothing_are_left_alone_and_have_no_number() -> None:
    draws, x = Draws(), torch.randn(2, 3)
    assert drawn(draws, nn.Dropout(0.0), x) is not None
    assert drawn(draws, nn.Dropout(0.5).eval(), x) is not None
    assert draws.shapes == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        drawn(draws, lambda x: functional.dropout(x, 1.5), x)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Dropout1d, (4, 6, 5)), (nn.Dropout2d, (4, 6, 5, 2)), (nn.Dropout3d, (4, 6, 2, 2, 3))]
)
def test_channels_are_dropped_whole(layer: Any, shape: tuple[int, ...]) -> None:
    out = drawn(Draws(), layer(0.5), torch.ones(shape)).flatten(2)
    assert (out == out[:, :, :1]).all()
    np.testing.assert_array_equal(out[:, :, 0].numpy().ravel(), masks(np.array([5]), 2, 0, 24, 0.5)[0])


@pytest.mark.parametrize("layer", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_keeps_mean_and_variance(layer: Any) -> None:
    x = torch.randn(2000, 40, 1, generator=torch.Generator().manual_seed(1))
    out = drawn(Draws(), layer(0.2), x)
    assert abs(float(out.mean())) < 0.02
    assert abs(float(out.var()) - 1) < 0.03


def test_attention_drops_weights_inside_torchs_own_function() -> None:
    layer = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
    x = torch.randn(3, 5, 8)
    for need in (True, False):
        draws = Draws()
        dropped = drawn(draws, lambda x, need=need: layer(x, x, x, need_weights=need)[0], x)
        assert draws.shapes == [(6, 5, 5) if need else (3, 2, 5, 5)]
        mask = torch.from_numpy(masks(np.array([5]), 2, 0, 150, 0.4)).view(3, 2, 5, 5)
        q, k, v = (part.view(3, 5, 2, 4).transpose(1, 2) for part in _projected(layer, x))
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1) * mask
        wanted = layer.out_proj((weights @ v).transpose(1, 2).reshape(3, 5, 8))
        torch.testing.assert_close(dropped, wanted)


def _projected(layer: nn.MultiheadAttention, x: Tensor) -> Any:
    return functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)


@pytest.mark.parametrize("masked", ["none", "causal", "bool", "float", "grouped"])
def test_explicit_attention_is_torchs_where_almost_nothing_drops(masked: str) -> None:
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    more: dict[str, Any] = {}
    if masked == "causal":
        more = {"is_causal": True}
    elif masked == "bool":
        more = {"attn_mask": torch.rand(5, 5) > 0.4}
        more["attn_mask"][0] = False  # a row with nothing to see
    elif masked == "float":
        more = {"attn_mask": torch.randn(5, 5), "scale": 0.3}
    elif masked == "grouped":
        k, v, more = k[:, :2], v[:, :2], {"enable_gqa": True}
    attend = functional.scaled_dot_product_attention
    found = drawn(Draws(), lambda q: attend(q, k, v, dropout_p=1e-9, **more), q)
    torch.testing.assert_close(found, attend(q, k, v, **more))


def test_a_mask_follows_the_axis_of_the_examples() -> None:
    x = torch.ones(5, 3, 4)  # [length, b, width]
    out = drawn(Draws((1,)), nn.Dropout(0.5), x)
    fewer = drawn(Draws((1,)), nn.Dropout(0.5), x[:, :2])
    torch.testing.assert_close(out[:, :2], fewer, rtol=0, atol=0)
    first = drawn(Draws(), nn.Dropout(0.5), x.transpose(0, 1))
    torch.testing.assert_close(out, first.transpose(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_drop_between_layers_and_leave_torchs_generator(kind: Any) -> None:
    layer, x, draws = kind(4, 6, num_layers=3, dropout=0.5), torch.randn(7, 2, 4), Draws((1, 1))
    before = torch.get_rng_state()
    once, again = (drawn(draws, lambda x: layer(x)[0], x) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert draws.shapes == [(7, 2, 6), (7, 2, 6)]
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert not torch.allclose(once, drawn(draws, lambda x: layer(x)[0], x, step=3))


CELLS: list[tuple[Any, dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    (nn.LSTM, {"bias": False}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    (nn.GRU, {"bias": False}),
    (nn.RNN, {"num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
]


@pytest.mark.parametrize(("kind", "settings"), CELLS)
def test_replaced_recurrent_layers_equal_torchs_and_so_do_their_gradients(kind: Any, settings: dict[str, Any]) -> None:
    layer = kind(5, 4, **settings).double()
    x = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    wanted, found = layer(x), None
    with Draws(batched=True):
        found = layer(x)
    weights = torch.randn_like(wanted[0])
    variables = [x, *layer.parameters()]
    gradients = [torch.autograd.grad(_loss(result, weights), variables) for result in (wanted, found)]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients[1], gradients[0])


def _loss(result: Any, weights: Tensor) -> Tensor:
    outputs, ends = result
    ends = ends if isinstance(ends, tuple) else (ends,)
    total: Tensor = (outputs * weights).sum() + sum((i + 1) * end.square().sum() for i, end in enumerate(ends))
    return total
