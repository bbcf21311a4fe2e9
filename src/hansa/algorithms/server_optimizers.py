"""Server optimizers: the combined update, taken as a negative gradient, turns into the next model.

Source of the adaptive ones: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan 2021,
"Adaptive federated optimization", algorithm 2, https://arxiv.org/abs/2003.00295. As there, moments are not
corrected for bias and v starts at tau^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from hansa.core.layout import Array
from hansa.core.pieces import ServerOptimizer
from hansa.core.schema import Doc, Family, Unsound

Rate = float | Literal["included/population"]
Slot = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """The model moves by the learning rate times the combined update; 1 takes the mean as it is."""

    elementwise: ClassVar[bool] = True

    learning_rate: Annotated[
        Rate, Doc('step size; "included/population" is the share of the population that the round included')
    ] = 1.0
    branches: Annotated[
        Mapping[str, ServerOptimizer], Family("server_optimizer"), Doc("optimizers of branches other than params")
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.learning_rate, int | float) and self.learning_rate <= 0:
            raise Unsound("learning_rate must be greater than 0.")
        if any(inner.branches for inner in self.branches.values()):
            raise Unsound("an optimizer of a branch cannot have branches itself.")

    def rate(self, included_share: float) -> float:
        """Return the step size of a round."""
        return included_share if isinstance(self.learning_rate, str) else self.learning_rate

    def start(self, size: int) -> dict[str, Array]:  # noqa: ARG002 - the server optimizer protocol
        """Return an empty slot."""
        return {}

    def step(self, model: Array, update: Array, slot: Slot, included_share: float) -> tuple[Array, dict[str, Array]]:
        """Return x + eta * delta."""
        moved = self.rate(included_share) * update
        moved += model  # in place: a large model is in memory often enough
        return moved, dict(slot)


@dataclass(frozen=True, kw_only=True)
class Momentum(Sgd):
    """Momentum on the server (FedAvgM).

    Source: Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution for federated
    visual classification", section 3.1, https://arxiv.org/abs/1909.06335.
    """

    momentum: Annotated[float, Ge(0), Lt(1), Doc("share of the last velocity that is kept")] = 0.9

    def start(self, size: int) -> dict[str, Array]:
        """Return a velocity of zeros."""
        return {"velocity": np.zeros(size)}

    def step(self, model: Array, update: Array, slot: Slot, included_share: float) -> tuple[Array, dict[str, Array]]:
        """Return v <- beta v + delta; x + eta v."""
        velocity = self.momentum * slot["velocity"] + update
        return model + self.rate(included_share) * velocity, {"velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class Adagrad(Sgd):
    """Adagrad on the server (FedAdagrad)."""

    beta1: Annotated[float, Ge(0), Lt(1), Doc("share of the last first moment that is kept")] = 0.0
    tau: Annotated[float, Gt(0), Doc("adaptivity: what is added to the root of the second moment")] = 1e-3

    def start(self, size: int) -> dict[str, Array]:
        """Return moments m = 0 and v = tau^2."""
        return {"first": np.zeros(size), "second": np.full(size, self.tau**2)}

    def second_moment(self, second: Array, update: Array) -> Array:
        """Return v + delta^2."""
        return np.asarray(second + update**2)

    def step(self, model: Array, update: Array, slot: Slot, included_share: float) -> tuple[Array, dict[str, Array]]:
        """Return m <- beta1 m + (1 - beta1) delta; v by the rule; x + eta m / (sqrt(v) + tau)."""
        first = self.beta1 * slot["first"] + (1 - self.beta1) * update
        second = self.second_moment(slot["second"], update)
        moved = model + self.rate(included_share) * first / (np.sqrt(second) + self.tau)
        return moved, {"first": first, "second": second}


@dataclass(frozen=True, kw_only=True)
class Adam(Adagrad):
    """Adam on the server (FedAdam)."""

    beta1: Annotated[float, Ge(0), Lt(1), Doc("share of the last first moment that is kept")] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), Doc("share of the last second moment that is kept")] = 0.99

    def second_moment(self, second: Array, update: Array) -> Array:
        """Return beta2 v + (1 - beta2) delta^2."""
        return np.asarray(self.beta2 * second + (1 - self.beta2) * update**2)


@dataclass(frozen=True, kw_only=True)
class Yogi(Adagrad):
    """Yogi on the server (FedYogi): the second moment moves by no more than the square of the update."""

    beta1: Annotated[float, Ge(0), Lt(1), Doc("share of the last first moment that is kept")] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), Doc("share of the last second moment that is kept")] = 0.99

    def second_moment(self, second: Array, update: Array) -> Array:
        """Return v - (1 - beta2) delta^2 sign(v - delta^2)."""
        square = update**2
        return np.asarray(second - (1 - self.beta2) * square * np.sign(second - square))
