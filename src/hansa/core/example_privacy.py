"""The setting ``trainer.example_privacy``: single examples of a client are hidden in the update that it gives away.

Its privacy unit is one example of one client. That of ``[privacy]`` is a client, with all of its examples: the two are
different promises, with noise of their own, and a plan may have both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from annotated_types import Ge, Gt, Le, Lt

from hansa.core.privacy import Adjacency
from hansa.core.schema import Doc, Unsound

EXAMPLE: Final = "example of one client"
"""The privacy unit."""
NEIGHBOURS: Final[Adjacency] = "add-or-remove-one"
"""Which data sets of a client are neighbours: one example is among them or not."""


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
    """Local DP-SGD: every step of a client adds noise to a sum of clipped gradients, one for each example.

    In every step each example takes part by a coin of its own, of probability batch_size / expected_examples. The sum
    is divided by batch_size. Neither number is the client's own, so that how many examples it has stays hidden, too.

    Source: Abadi et al. 2016, "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133.
    """

    clip_norm: Annotated[float, Gt(0), Le(1e9), Doc("largest L2 norm of the gradient of one example")]
    delta: Annotated[float, Gt(0), Lt(1), Doc("the delta of (epsilon, delta): below one over a client's examples")]
    expected_examples: Annotated[
        int,
        Ge(1),
        Doc(
            "for clients of this size a step has batch_size examples on average; the same number for every client, as "
            "its true size is hidden"
        ),
    ]
    epsilon: Annotated[
        float | None, Gt(0), Doc("the charged epsilon that the whole run may cost each client; the noise is found")
    ] = None
    noise_multiplier: Annotated[
        float | None,
        Gt(0),
        Doc("standard deviation of the noise on a step's sum, by the clip norm; absent: the least for epsilon"),
    ] = None
    max_participations: Annotated[
        int | None,
        Ge(1),
        Doc(
            "how often a client trains at most, rounds that are tried again included; its agent counts, and declines "
            "beyond; absent: as often as the cohort's sampler can ask it"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.epsilon is None and self.noise_multiplier is None:
            raise Unsound("give epsilon, for which the noise is found, or noise_multiplier.")
