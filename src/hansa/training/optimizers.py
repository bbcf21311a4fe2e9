"""Client optimizers, in place and elementwise, so that the same code steps numpy arrays and torch tensors.

Every array has a leading client axis. Optimizers start afresh with each assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Lt

from hansa.core.layout import Array, Int64s
from hansa.core.schema import Doc


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with (heavy-ball) momentum and weight decay added to the gradient."""

    learning_rate: Annotated[float, Gt(0), Doc("step size")]
    momentum: Annotated[float, Ge(0), Lt(1), Doc("share of the last velocity that is kept")] = 0.0
    weight_decay: Annotated[float, Ge(0), Doc("L2 penalty: this times the parameter is added to its gradient")] = 0.0

    @property
    def plain_sgd(self) -> bool:
        """Return True without momentum."""
        return self.momentum == 0

    @property
    def gradient_rate(self) -> float | None:
        """Return eta where a step is w <- w - eta g and nothing else, so that a trainer may take it by itself."""
        return None if self.momentum or self.weight_decay else self.learning_rate

    def start(self, parameter: Any) -> dict[str, Any]:
        """Return a velocity of zeros where there is momentum."""
        return {"velocity": parameter * 0} if self.momentum else {}

    def step(self, parameter: Any, gradient: Any, buffers: Mapping[str, Any], number: int) -> None:  # noqa: ARG002 - the optimizer protocol
        """Apply v <- momentum v + g; w <- w - eta v, in place (and over the gradient)."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        if self.momentum:
            velocity = buffers["velocity"]
            velocity *= self.momentum
            velocity += gradient
            parameter -= self.learning_rate * velocity
            return
        gradient *= self.learning_rate
        parameter -= gradient

    def effective_steps(self, steps: Int64s) -> Array:
        """Return the weights that an update of so many steps gives its gradients, summed: float64 [n].

        Source: Wang, Liu, Liang, Joshi, Poor 2020 (FedNova), section 4, the case of local momentum:
        (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho); without momentum it is the number of steps.
        """
        tau = steps.astype(np.float64)
        rho = self.momentum
        return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma, Ba 2015, algorithm 1, https://arxiv.org/abs/1412.6980), L2 penalty in the gradient."""

    learning_rate: Annotated[float, Gt(0), Doc("step size")] = 1e-3
    beta1: Annotated[float, Ge(0), Lt(1), Doc("share of the last first moment that is kept")] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), Doc("share of the last second moment that is kept")] = 0.999
    epsilon: Annotated[float, Gt(0), Doc("what is added to the root of the second moment")] = 1e-8
    weight_decay: Annotated[float, Ge(0), Doc("L2 penalty: this times the parameter is added to its gradient")] = 0.0

    @property
    def plain_sgd(self) -> bool:
        """Return False."""
        return False

    @property
    def gradient_rate(self) -> float | None:
        """Return None."""
        return None

    def start(self, parameter: Any) -> dict[str, Any]:
        """Return moments of zeros."""
        return {"first": parameter * 0, "second": parameter * 0}

    def step(self, parameter: Any, gradient: Any, buffers: Mapping[str, Any], number: int) -> None:
        """Apply one bias-corrected step in place."""
        parameter -= self._move(self._penalised(parameter, gradient), buffers, number)

    def _penalised(self, parameter: Any, gradient: Any) -> Any:
        return gradient + self.weight_decay * parameter if self.weight_decay else gradient

    def _move(self, gradient: Any, buffers: Mapping[str, Any], number: int) -> Any:
        first, second = buffers["first"], buffers["second"]
        first *= self.beta1
        first += (1 - self.beta1) * gradient
        second *= self.beta2
        second += (1 - self.beta2) * gradient * gradient
        root = (second / (1 - self.beta2**number)) ** 0.5
        return (self.learning_rate / (1 - self.beta1**number)) * first / (root + self.epsilon)

    def effective_steps(self, steps: Int64s) -> Array:
        """Return NaN: an Adam update is no weighted sum of gradients."""
        return np.full(len(steps), np.nan)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019, https://arxiv.org/abs/1711.05101)."""

    weight_decay: Annotated[float, Ge(0), Doc("share of the parameter, times the step size, taken off each step")] = (
        0.01
    )

    def step(self, parameter: Any, gradient: Any, buffers: Mapping[str, Any], number: int) -> None:
        """Apply one step in place: the parameter shrinks, then moves."""
        move = self._move(gradient, buffers, number)
        parameter *= 1 - self.learning_rate * self.weight_decay
        parameter -= move
