"""Dense layers by oneDNN, and plain descents of their weights that form no gradient and are put off.

The gradient of a weight W [o, i] is the product of gradients G [b, o], transposed, with inputs X [b, i]. A large weight
does not fit a processor's cache, and changing it costs a pass over it. So the factors of some steps are collected,
x W^T is computed as x W_0^T - (x X^T) G, and one product pays for all these steps. It is the same sum in
another order. Source of the idea: Bischof, Van Loan 1987, "The WY representation for products of Householder
matrices", https://doi.org/10.1137/0908009, which collects changes of low rank in this way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

_SHARE: Final = 4
"""What is put off may take a product with the weight so many times less arithmetic than the weight itself."""


class Debt:
    """The steps of one weight [o, i] that are put off: ``steps`` [rows, o], transposed, times ``inputs`` [rows, i].

    ``untouched``: the weight is what it was at first, and all of its change is put off.
    """

    def __init__(self, weight: Tensor) -> None:
        outputs, inputs = weight.shape
        self.values = weight.data  # without the weight's version: what is paid changes nothing that a graph counts on
        self.most = weight.numel() // (_SHARE * (outputs + inputs))
        self.rows, self.untouched = 0, True
        self.new: list[tuple[Tensor, Tensor]] = []
        """Factors of the step under way, which do not count yet."""

    def correct(self, result: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
        """Add to a result, x times the weight (or ``transposed``), in place, what is put off; return it."""
        if self.rows:
            steps, inputs = self.steps[: self.rows], self.inputs[: self.rows]
            one, other = (inputs, steps) if transposed else (steps, inputs)
            result.addmm_(x @ one.t(), other)
        return result

    def descend(self, rate: float) -> None:
        """Let the step under way count, times ``rate``."""
        for gradient, x in self.new:
            if self.rows + len(x) > self.most:
                self.pay()
            if len(x) > self.most:
                self.values.addmm_(gradient.t(), x, alpha=-rate)
                self.untouched = False
            else:
                self._put_off(gradient, x, rate)
        self.new.clear()

    def _put_off(self, gradient: Tensor, x: Tensor, rate: float) -> None:
        if not hasattr(self, "inputs"):
            outputs, inputs = self.values.shape
            self.steps, self.inputs = x.new_empty((self.most, outputs)), x.new_empty((self.most, inputs))
        place = slice(self.rows, self.rows + len(x))
        torch.mul(gradient, -rate, out=self.steps[place])
        self.inputs[place] = x
        self.rows = place.stop

    def pay(self) -> None:
        """Change the weight by all that was put off."""
        if self.rows:
            self.values.addmm_(self.steps[: self.rows].t(), self.inputs[: self.rows])
        self.rows, self.untouched = 0, False


@dataclass(frozen=True)
class Products:
    """Gradients that stay products, where every step is w <- w - rate g: a debt for each weight, by its id.

    ``tied`` are the ids of weights whose memory is another's too, which have none.
    """

    tied: frozenset[int] = frozenset()
    debts: dict[int, Debt] = field(default_factory=dict)

    def of(self, weight: Tensor) -> Debt | None:
        """Return the debt of a weight, or None if its gradient must be formed."""
        if id(weight) in self.tied:
            return None
        if id(weight) not in self.debts:
            self.debts[id(weight)] = Debt(weight)
        return self.debts[id(weight)]

    def descend(self, rate: float) -> None:
        """Apply w <- w - rate g to each weight, now or later."""
        with torch.no_grad():
            for debt in self.debts.values():
                debt.descend(rate)

    def moved(self, weight: Tensor, change: Tensor) -> bool:
        """Write how far a weight moved, if all of it is put off; otherwise pay for it and return False.

        This saves two passes over the weight and two over its change.
        """
        debt = self.debts.get(id(weight))
        if debt is None:
            return False
        if not debt.untouched:
            debt.pay()
        elif debt.rows:
            torch.mm(debt.steps[: debt.rows].t(), debt.inputs[: debt.rows], out=change)
        else:
            change.zero_()
        return debt.untouched

    def reveal(self, values: Iterable[Any]) -> None:
        """Pay for those of the values that are weights: something else than a dense layer looks at them."""
        for value in values:
            if isinstance(value, (list, tuple)):
                self.reveal(value)
            elif (debt := self.debts.get(id(value))) is not None and debt.most:
                with torch.no_grad():
                    debt.pay()
                debt.most = 0  # it will look again


class Dense(torch.autograd.Function):
    """x [b, i] times weight [o, i] plus bias by oneDNN. With a ``debt``, the weight's gradient goes there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, debt: Debt | None) -> Tensor:
        """Return [b, o]."""
        ctx.save_for_backward(x, weight)
        ctx.debt = debt
        result = product(x, weight, bias)
        return result if debt is None else debt.correct(result, x, transposed=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias, where they are wanted."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        into_x = into_weight = into_bias = None
        if ctx.needs_input_grad[0]:
            into_x = product(gradient, weight.t(), None)
            into_x = into_x if ctx.debt is None else ctx.debt.correct(into_x, gradient, transposed=False)
        if ctx.needs_input_grad[1] and ctx.debt is not None:
            ctx.debt.new.append((gradient, x))
        elif ctx.needs_input_grad[1]:
            into_weight = product(gradient.t(), x.t(), None)
        if ctx.needs_input_grad[2]:
            into_bias = gradient.sum(dim=0)
        return into_x, into_weight, into_bias, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [b, i] times weight [o, i], transposed, plus bias [o], by oneDNN: [b, o]."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 - torch has no public name for it
    return result
