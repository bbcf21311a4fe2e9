"""Local hooks: what bends a client's gradients, elementwise, so that they fit any model and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from hansa.core.layout import Array
from hansa.core.schema import Doc


@dataclass(frozen=True, kw_only=True)
class Prox:
    """Pulls local models towards the server's: adds mu (w - w_start) to every gradient.

    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, "Federated optimization in heterogeneous
    networks" (FedProx), section 3.2, https://arxiv.org/abs/1812.06127.
    """

    branches: ClassVar[tuple[str, ...]] = ()
    state: ClassVar[tuple[str, ...]] = ()
    needs_plain_sgd: ClassVar[bool] = False

    mu: Annotated[float, Ge(0), Doc("strength of the pull towards the round's start")]

    def gradient(self, parameter: Any, gradient: Any, start: Any, state: Mapping[str, Any]) -> Any:  # noqa: ARG002 - the hook protocol
        """Return the gradient of the loss plus mu/2 |w - w_start|^2."""
        return gradient + self.mu * (parameter - start)

    def finish(self, **_: Any) -> tuple[Mapping[str, Array], dict[str, Array]]:
        """Return nothing: the hook adds no branch and keeps no state."""
        return {}, {}


@dataclass(frozen=True, kw_only=True)
class ControlVariate:
    """Corrects client drift: adds the server's control variate and subtracts the client's own.

    Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: Stochastic controlled
    averaging for federated learning", algorithm 1 with option II, https://arxiv.org/abs/1910.06378.
    """

    branches: ClassVar[tuple[str, ...]] = ("control",)
    state: ClassVar[tuple[str, ...]] = ("client_control",)
    needs_plain_sgd: ClassVar[bool] = True

    def gradient(self, parameter: Any, gradient: Any, start: Any, state: Mapping[str, Any]) -> Any:  # noqa: ARG002 - the hook protocol
        """Return g - c_i + c."""
        return gradient + (state["control"] - state["client_control"])

    def finish(
        self, *, delta: Array, steps: Array, learning_rate: float, state: Mapping[str, Array]
    ) -> tuple[Mapping[str, Array], dict[str, Array]]:
        """Return the change of the control variate, and its next value c_i - c - (y_i - x) / (K eta)."""
        drift = delta / (steps[:, None] * learning_rate).astype(delta.dtype)
        following = state["client_control"] - state["control"] - drift
        return {"control": following - state["client_control"]}, {"client_control": following}
