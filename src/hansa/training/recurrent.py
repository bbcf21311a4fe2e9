"""LSTM, GRU and simple recurrent layers of many clients at once, with hand-derived gradients.

torch has no batching rule for its own. These take torch's arguments and weights: what depends on the inputs
alone is one matrix product for all times; the steps in time are then batched over the clients.
Sources: Hochreiter, Schmidhuber 1997, "Long short-term memory"; Cho et al. 2014, https://arxiv.org/abs/1406.1078;
in the variants that torch.nn.LSTM, GRU and RNN document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from hansa.training.recurrent_cells import CELLS

_VMAP_AXES: Final = (1, 0, 0, 0, 0)
"""Where the clients' axis is in a cell's arguments: inputs [t, n, b, gates], then [n, ...]."""


def is_plain(args: Sequence[Any]) -> bool:
    """Return whether a call of torch.lstm, gru, rnn_tanh or rnn_relu is one that :func:`recur` can take.

    It takes no packed sequences and no projections (``proj_size``).
    """
    if len(args) < 9 or isinstance(args[2], Tensor):
        return False
    return bool(len(args[2]) == args[4] * (2 if args[7] else 1) * (4 if args[3] else 2))


def recur(name: str, args: Sequence[Any], drop: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Return what torch.lstm, gru, rnn_tanh or rnn_relu (``name``) returns for these arguments.

    They are (input, first states, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first).
    ``drop`` is called on what each layer but the last hands on: [t, b, width]. The call may be under vmap.
    """
    x, first, weights, biased, layers, _, _, bidirectional, batch_first = args
    directions, width = (2 if bidirectional else 1), (4 if biased else 2)
    hidden, cell = first if name == "lstm" else (first, first)
    x = x.transpose(0, 1) if batch_first else x
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * width : (number + 1) * width]
            output, *ends = _direction(name, x, (hidden[number], cell[number]), own, backwards=direction == 1)
            outputs.append(output)
            last.append((ends[0], ends[1]))
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        x = drop(x) if layer < layers - 1 else x
    ends = [torch.stack(states) for states in zip(*last, strict=True)]
    return (x.transpose(0, 1) if batch_first else x, *(ends if name == "lstm" else ends[:1]))


def _direction(
    name: str, x: Tensor, first: tuple[Tensor, Tensor], weights: Sequence[Tensor], *, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one layer's outputs [t, b, h] in one direction, and its last states [b, h] (twice)."""
    into, within, *biases = weights
    bias, own = biases or (None, within.new_zeros(len(within)))
    inputs = functional.linear(x.flip(0) if backwards else x, into, bias)
    apply: Any = _VMAPPED[name].apply if _is_batched(inputs) else _one(CELLS[name])
    outputs, cell = apply(inputs, *first, within, own)
    end = outputs[-1]
    return (outputs.flip(0) if backwards else outputs), end, cell


def _is_batched(value: Tensor) -> bool:
    return torch._C._functorch.is_batchedtensor(value)  # noqa: SLF001 - torch has no public name for the question


def _one(cell: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a cell for one client: its arguments and results lack the clients' axis."""

    def apply(*values: Tensor) -> tuple[Tensor, Tensor]:
        outputs, last = cell.apply(*(value.unsqueeze(axis) for value, axis in zip(values, _VMAP_AXES, strict=True)))
        return outputs.squeeze(1), last.squeeze(0)

    return apply


def _vmapped(cell: Any) -> Any:
    """Return a function that under vmap calls a cell on all clients, whose gradients are then plain autograd's."""

    class Vmapped(torch.autograd.Function):
        @staticmethod
        def forward(*values: Tensor) -> tuple[Tensor, Tensor]:
            return _one(cell)(*values)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            """Keep nothing: gradients are those of the cell."""

        @staticmethod
        def vmap(info: Any, in_dims: Any, *values: Tensor) -> tuple[Any, tuple[int, int]]:
            return cell.apply(
                *(
                    value.movedim(dim, axis)
                    if dim is not None
                    else value.unsqueeze(axis).expand(*value.shape[:axis], info.batch_size, *value.shape[axis:])
                    for value, dim, axis in zip(values, in_dims, _VMAP_AXES, strict=True)
                )
            ), (1, 0)

    return Vmapped


_VMAPPED: Final = {name: _vmapped(cell) for name, cell in CELLS.items()}
