"""The section ``[privacy]``: whose contribution is hidden in what is released, by how much noise, and added by whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from hansa.core.schema import Doc, Unsound

Adjacency = Literal["add-or-remove-one", "zero-out", "replace-one"]
"""Which data sets are neighbours: one privacy unit is there or not; its update is or is not replaced by zeros; its
update is any other."""

MechanismName = Literal["gaussian", "banded-matrix", "tree"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """A clip norm that follows a quantile of the updates' norms, from one noised bit of each client.

    Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping",
    https://arxiv.org/abs/1905.03871.
    """

    quantile: Annotated[float, Ge(0), Le(1), Doc("share of updates that are to be shorter than the clip norm")] = 0.5
    learning_rate: Annotated[float, Gt(0), Le(1), Doc("how far the clip norm moves in a round, as an exponent")] = 0.2
    lowest: Annotated[float, Gt(0), Doc("smallest clip norm")]
    highest: Annotated[float, Gt(0), Le(1e9), Doc("largest clip norm")]

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise Unsound("lowest is above highest.")


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Differential privacy of clients: clipped updates, as integers, and integer noise on their sum.

    Sources: McMahan, Ramage, Talwar, Zhang 2018, https://arxiv.org/abs/1710.06963 (DP-FedAvg); Kairouz, Liu, Steinke
    2021, https://arxiv.org/abs/2102.06387 (noise by clients); Choquette-Choo et al. 2023,
    https://arxiv.org/abs/2306.08153 (banded-matrix); Kairouz et al. 2021, https://arxiv.org/abs/2103.00039 (tree).
    """

    unit: Annotated[
        Literal["client"], Doc("what is protected: everything that one client contributes, over all rounds")
    ] = "client"
    adjacency: Annotated[
        Adjacency,
        Doc(
            "which contributions cannot be told apart: a client's and none (add-or-remove-one), its update and zeros "
            "(zero-out), its update and any other (replace-one, at half the noise for the same number)"
        ),
    ] = "zero-out"
    mechanism: Annotated[
        MechanismName,
        Doc(
            "gaussian: independent noise each round; banded-matrix and tree (DP-FTRL): noise that later rounds take "
            "back, for clients that rest between two participations"
        ),
    ] = "gaussian"
    noise_by: Annotated[
        Literal["server", "clients"],
        Doc(
            "who adds the noise: the server, which must be trusted with the noiseless sum, or every client a share of "
            "it inside a secure sum"
        ),
    ] = "server"
    clip_norm: Annotated[
        float, Gt(0), Le(1e9), Doc("largest L2 norm of a client's update; with adaptive_clip that of the first round")
    ]
    adaptive_clip: Annotated[AdaptiveClip | None, Doc("let the clip norm follow the updates; absent: it stays")] = None
    delta: Annotated[float, Gt(0), Lt(1), Doc("the delta of (epsilon, delta): below one over the number of clients")]
    epsilon: Annotated[
        float | None, Gt(0), Doc("the charged epsilon that the whole run may cost; the noise is found from it")
    ] = None
    noise_multiplier: Annotated[
        float | None,
        Gt(0),
        Doc("standard deviation of the noise on a round's sum, by the clip norm; absent: the least for epsilon"),
    ] = None
    bands: Annotated[
        int | None, Ge(1), Doc("banded-matrix and tree: rounds over which noise is correlated; absent: cohort.rounds")
    ] = None
    trusted_sampling: Annotated[
        bool,
        Doc(
            "claim amplification: who was drawn is secret from everybody who sees a model, drawn by independent coins "
            "(poisson), or as a fixed number (uniform, with replace-one and population)"
        ),
    ] = False
    population: Annotated[
        int | None, Ge(1), Doc("with trusted_sampling and uniform: the fewest clients from whom cohorts are drawn")
    ] = None

    def __post_init__(self) -> None:
        if self.epsilon is None and self.noise_multiplier is None:
            raise Unsound("give epsilon, for which the noise is found, or noise_multiplier.")
        adaptive = self.adaptive_clip
        if adaptive is not None and not adaptive.lowest <= self.clip_norm <= adaptive.highest:
            raise Unsound("clip_norm, where the clip norm begins, is outside adaptive_clip's lowest and highest.")
