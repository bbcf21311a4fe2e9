"""The steps in time of recurrent layers, batched over clients, and their gradients by hand.

Every cell takes what the inputs give to its gates [t, n, b, gates], its first hidden state and cell [n, b, h],
the weights [n, gates, h] and bias [n, gates] of the hidden state's product, and returns the outputs [t, n, b, h]
and the last cell [n, b, h]. The steps in time do what depends on the step before; the rest is done for all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def _states(first: Tensor, times: int) -> Tensor:
    """Return room for the states at all times [t + 1, n, b, h], of which the first is given."""
    states = first.new_empty((times + 1, *first.shape))
    states[0] = first
    return states


def _weight_gradient(steps: Tensor, states: Tensor) -> Tensor:
    """Return the sum over time and examples of steps [t, n, b, gates] times states [t, n, b, h]: [n, gates, h]."""
    return torch.matmul(_by_client(steps).transpose(1, 2), _by_client(states))


def _by_client(values: Tensor) -> Tensor:
    """Return [t, n, b, k] as [n, t b, k]."""
    return values.transpose(0, 1).flatten(1, 2)


def _split(gates: Tensor) -> Tensor:
    """Return a view of three gates [..., 3 h] as [..., 3, h]."""
    return gates.view(*gates.shape[:-1], 3, gates.shape[-1] // 3)


class Lstm(Function):
    """Gates in torch's order: input, forget, candidate, output."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - a cell's arguments, and autograd's context
        ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor
    ) -> Any:
        """Return the outputs and the last cell."""
        times, size = len(inputs), hidden.shape[-1]
        gates = (inputs + bias[:, None]).contiguous()
        hiddens, cells = _states(hidden, times), _states(cell, times)
        squashed = torch.empty_like(hiddens[1:])
        turned = weight.transpose(1, 2)
        for t in range(times):
            gate = gates[t].baddbmm_(hiddens[t], turned)
            gate[..., : 2 * size].sigmoid_()
            gate[..., 2 * size : 3 * size].tanh_()
            gate[..., 3 * size :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=-1)
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            torch.tanh(cells[t + 1], out=squashed[t])
            torch.mul(o, squashed[t], out=hiddens[t + 1])
        ctx.save_for_backward(weight, hiddens, cells, gates, squashed)
        return hiddens[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor, cell: Tensor) -> Any:
        """Return the gradients of all arguments."""
        weight, hiddens, cells, gates, squashed = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=-1)
        to_cell = o * (1 - squashed * squashed)
        to_output = squashed * o * (1 - o)
        inner = torch.stack([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g)], dim=-2)
        steps = torch.empty_like(gates)
        size = weight.shape[-1]
        hidden, cell = torch.zeros_like(hiddens[0]), cell.clone()
        for t in reversed(range(len(gates))):
            hidden = hidden + outputs[t]
            cell.addcmul_(hidden, to_cell[t])
            step = steps[t]
            torch.mul(cell.unsqueeze(-2), inner[t], out=_split(step[..., : 3 * size]))
            torch.mul(hidden, to_output[t], out=step[..., 3 * size :])
            cell.mul_(f[t])
            hidden = torch.bmm(step, weight)
        return steps, hidden, cell, _weight_gradient(steps, hiddens[:-1]), steps.sum(dim=(0, 2))


class Gru(Function):
    """Gates in torch's order: reset, update, new."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, _: Tensor, weight: Tensor, bias: Tensor) -> Any:
        """Return the outputs, and the last output again."""
        times, size = len(inputs), hidden.shape[-1]
        gates = inputs.clone(memory_format=torch.contiguous_format)
        hiddens, products = _states(hidden, times), torch.empty_like(gates)
        turned, own = weight.transpose(1, 2), bias[:, None]
        for t in range(times):
            gate = gates[t]
            product = torch.baddbmm(own, hiddens[t], turned, out=products[t])
            gate[..., : 2 * size].add_(product[..., : 2 * size]).sigmoid_()
            r, z, n = gate.chunk(3, dim=-1)
            n.addcmul_(r, product[..., 2 * size :]).tanh_()
            torch.lerp(n, hiddens[t], z, out=hiddens[t + 1])
        ctx.save_for_backward(weight, hiddens, gates, products[..., 2 * size :])
        return hiddens[1:], hiddens[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor, last: Tensor) -> Any:
        """Return the gradients of all arguments."""
        weight, hiddens, gates, products = ctx.saved_tensors
        r, z, n = gates.chunk(3, dim=-1)
        to_new = (1 - z) * (1 - n * n)
        to_update = (hiddens[:-1] - n) * z * (1 - z)
        to_reset = to_new * products * r * (1 - r)
        factors = _split(torch.cat([to_reset, to_update, to_new * r], dim=-1))
        steps = torch.empty_like(gates)  # of the hidden state's product
        hidden, totals = last.clone(), torch.empty_like(hiddens[1:])
        for t in reversed(range(len(gates))):
            total = torch.add(hidden, outputs[t], out=totals[t])
            torch.mul(total.unsqueeze(-2), factors[t], out=_split(steps[t]))
            hidden = torch.baddbmm(total * z[t], steps[t], weight)
        into = steps.clone()
        into[..., 2 * weight.shape[-1] :] = totals * to_new
        return into, hidden, None, _weight_gradient(steps, hiddens[:-1]), steps.sum(dim=(0, 2))


class Tanh(Function):
    """A simple recurrent layer: the hyperbolic tangent of the sum."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, _: Tensor, weight: Tensor, bias: Tensor) -> Any:
        """Return the outputs, and the last output again."""
        return _simple(ctx, torch.tanh_, (inputs, hidden, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor, last: Tensor) -> Any:
        """Return the gradients of all arguments."""
        return _simple_gradients(ctx, lambda states: 1 - states.square(), outputs, last)


class Relu(Function):
    """A simple recurrent layer: the positive part of the sum."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, _: Tensor, weight: Tensor, bias: Tensor) -> Any:
        """Return the outputs, and the last output again."""
        return _simple(ctx, torch.relu_, (inputs, hidden, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor, last: Tensor) -> Any:
        """Return the gradients of all arguments."""
        return _simple_gradients(ctx, lambda states: (states > 0).to(states.dtype), outputs, last)


def _simple(ctx: Any, squash: Any, arguments: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what a simple layer returns; keep what its gradients need."""
    inputs, hidden, weight, bias = arguments
    hiddens = _states(hidden, len(inputs))
    turned, sums = weight.transpose(1, 2), inputs + bias[:, None]
    for t in range(len(inputs)):
        squash(torch.baddbmm(sums[t], hiddens[t], turned, out=hiddens[t + 1]))
    ctx.save_for_backward(weight, hiddens)
    return hiddens[1:], hiddens[-1].clone()


def _simple_gradients(ctx: Any, slope: Callable[[Tensor], Tensor], outputs: Tensor, last: Tensor) -> Any:
    """Return the gradients of a simple layer's arguments; ``slope`` is that of what squashes, of its results."""
    weight, hiddens = ctx.saved_tensors
    slopes = slope(hiddens[1:])
    steps, hidden = torch.empty_like(slopes), last
    for t in reversed(range(len(slopes))):
        torch.mul(hidden + outputs[t], slopes[t], out=steps[t])
        hidden = torch.bmm(steps[t], weight)
    return steps, hidden, None, _weight_gradient(steps, hiddens[:-1]), steps.sum(dim=(0, 2))


CELLS: Final[dict[str, type[Function]]] = {"lstm": Lstm, "gru": Gru, "rnn_tanh": Tanh, "rnn_relu": Relu}
