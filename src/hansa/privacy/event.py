"""What a mechanism did, as data, and what one such event costs under Renyi differential privacy.

The only module that imports dp-accounting, and only when a sampled event is priced. Multipliers of noise are relative
to the clip norm: the distance that adding or removing one privacy unit, or zeroing it out, moves the sum by at most.
Replacing one moves it by twice that, which every event here accounts for itself.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError
from hansa.core.privacy import Adjacency

Floats = NDArray[np.float64]
HIGHEST_SAMPLED: Final = 1024
ORDERS: Final[Floats] = np.array(
    [
        *(1 + step / 10 for step in range(1, 100)),
        *range(11, 64),
        *(80, 96, 112, 128, 160, 192, 224, 256, 384, 512, 768, HIGHEST_SAMPLED),
        *(float(round(HIGHEST_SAMPLED * 1.2**step)) for step in range(1, 40)),
    ]
)
"""Orders of Renyi divergence that are tried: any of them gives a bound that holds. Sampled events have none beyond
1024, where sums of that many terms cost more than the bound gains."""


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A sum with Gaussian noise, continuous or discrete, in which every unit may take part.

    Both satisfy rho-zCDP with rho = distance^2 / (2 sigma^2) (Bun and Steinke 2016, proposition 6; Canonne, Kamath,
    Steinke 2020, theorem 4 and corollary for many dimensions).
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_multiplier(self.noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class PoissonGaussian:
    """A sum with Gaussian noise over units of which each is in it by its own secret coin, of this probability.

    Also where nobody is drawn, noise is released. RDP of integer noise is that of the continuous Gaussian at integer
    orders, term by term of Mironov, Talwar, Zhang 2019, section 3.3, because a shift by an integer leaves the sum of
    all weights as it is; between them the two differ by less than floats resolve (a test computes both).
    """

    probability: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_multiplier(self.noise_multiplier)
        _check_probability(self.probability)


@dataclass(frozen=True, kw_only=True)
class FixedSizeGaussian:
    """A sum with Gaussian noise over a fixed share of the units, drawn in secret without replacement; replace-one only.

    ``probability`` is the share: the fixed size by the population.
    """

    probability: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_multiplier(self.noise_multiplier)
        _check_probability(self.probability)


@dataclass(frozen=True, kw_only=True)
class MatrixGaussian:
    """A whole training run with correlated noise: one release, in which a unit takes part ``participations`` times.

    ``noise_multiplier`` is of the rows' independent noise, for a matrix whose columns have norm 1 and are orthogonal
    wherever one unit takes part (bands no more than its minimum separation): the distance is sqrt(participations)
    (Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization", theorem 2).
    """

    noise_multiplier: float
    participations: int

    def __post_init__(self) -> None:
        _check_multiplier(self.noise_multiplier)
        if self.participations < 1:
            raise _invalid("A unit takes part at least once.", f"participations is {self.participations}.")


@dataclass(frozen=True, kw_only=True)
class DistributedGaussian:
    """A secure sum in which each of ``parties`` honest parties added discrete Gaussian noise of ``local_variance``.

    ``distance`` bounds the norm of one unit's integers after rounding; variance and distance are in integer units. The
    event is of all sums in which one unit takes part, ``participations`` of them. The
    sum of discrete Gaussians is not one itself, which costs the terms with tau = 10 sum over k < parties of
    exp(-2 pi^2 local_variance k / (k + 1)) (Kairouz, Liu, Steinke 2021, theorem 1, for a local variance of at least
    1/2).
    """

    distance: float
    local_variance: float
    parties: int
    dimension: int
    participations: int = 1

    def __post_init__(self) -> None:
        if not self.local_variance >= 0.5:
            rule = "The noise of each party in a distributed sum has a variance of at least 1/2 integer units."
            raise _invalid(rule, f"It is {self.local_variance:g}.")
        if not (self.distance > 0 and min(self.parties, self.dimension, self.participations) >= 1):
            found = f"distance {self.distance:g}, parties {self.parties}, dimension {self.dimension}."
            raise _invalid("A distributed sum has parties, a dimension and a distance above 0.", found)

    @property
    def noise_multiplier(self) -> float:
        """Return the standard deviation of the summed noise, in distances."""
        return math.sqrt(self.parties * self.local_variance) / self.distance


Event = Gaussian | PoissonGaussian | FixedSizeGaussian | MatrixGaussian | DistributedGaussian
Sampled = (PoissonGaussian, FixedSizeGaussian)


def unamplified(event: Event) -> Event:
    """Return the event without what secret sampling would gain."""
    return Gaussian(noise_multiplier=event.noise_multiplier) if isinstance(event, Sampled) else event


def distance(adjacency: Adjacency) -> float:
    """Return how far neighbours are apart, in clip norms."""
    if adjacency not in get_args(Adjacency):
        raise _invalid(f"Adjacency is one of {', '.join(get_args(Adjacency))}.", f"It is {adjacency!r}.")
    return 2.0 if adjacency == "replace-one" else 1.0


def mean_squared(event: Event, adjacency: Adjacency) -> float:
    """Return mu^2 = (distance / sigma)^2 of an unsampled event as if its noise were one continuous Gaussian."""
    times = event.participations if isinstance(event, (MatrixGaussian, DistributedGaussian)) else 1
    return times * (distance(adjacency) / event.noise_multiplier) ** 2


def rho(event: Event, adjacency: Adjacency) -> float:
    """Return the rho of zero-concentrated differential privacy of an unsampled event, valid for integer noise."""
    if not isinstance(event, DistributedGaussian):
        return mean_squared(event, adjacency) / 2
    plain = distance(adjacency) / event.noise_multiplier
    variance, parties = event.local_variance, event.parties
    shares = np.arange(1, parties, dtype=np.float64)
    tau = 10 * float(np.exp(-2 * math.pi**2 * variance * shares / (shares + 1)).sum())
    rooted = math.sqrt(event.dimension)
    once = min(plain**2 + tau * event.dimension / 2, (plain + tau * rooted) ** 2) / 2
    return event.participations * once


def renyi(event: Event, adjacency: Adjacency) -> Floats:
    """Return the Renyi divergence between neighbours, at most, for each of :data:`ORDERS`.

    A sample never costs more than if all were in it, as the divergence is quasi-convex.
    """
    plain: Floats = rho(unamplified(event), adjacency) * ORDERS
    if isinstance(event, PoissonGaussian):
        return np.minimum(plain, _poisson(event.probability, event.noise_multiplier, adjacency))
    if isinstance(event, FixedSizeGaussian):
        return np.minimum(plain, _fixed_size(event.probability, event.noise_multiplier, adjacency))
    return plain


@lru_cache(maxsize=4096)
def _poisson(probability: float, noise_multiplier: float, adjacency: Adjacency) -> Floats:
    if adjacency != "replace-one":
        return _sampled_at(probability, noise_multiplier, ORDERS)
    # Through the data set without the unit, by the triangle inequality of Mironov 2017, corollary 4.
    there = _sampled_at(probability, noise_multiplier, 2 * ORDERS)
    back = _sampled_at(probability, noise_multiplier, 2 * ORDERS - 1)
    return (ORDERS - 0.5) / (ORDERS - 1) * there + back


def _sampled_at(probability: float, noise_multiplier: float, orders: Floats) -> Floats:
    if probability == 1:
        return orders / (2 * noise_multiplier**2)
    found = np.full(len(orders), math.inf)
    tried = orders <= HIGHEST_SAMPLED
    found[tried] = _renyi_of(
        lambda library: library.PoissonSampledDpEvent(probability, library.GaussianDpEvent(noise_multiplier)),
        orders[tried],
        "ADD_OR_REMOVE_ONE",
    )
    return found


@lru_cache(maxsize=4096)
def _fixed_size(probability: float, noise_multiplier: float, adjacency: Adjacency) -> Floats:
    """Return the bound of Wang, Balle, Kasiviswanathan 2019, theorem 27, for neighbours of distance 2."""
    if adjacency != "replace-one":
        rule = "A sample of fixed size is amplified for neighbours that differ by replacing one unit."
        raise _invalid(rule, f"The adjacency is {adjacency!r}.", "Choose replace-one, or claim no amplification.")
    found = np.full(len(ORDERS), math.inf)
    tried = ORDERS <= HIGHEST_SAMPLED / 8  # the sums are quadratic in the order
    found[tried] = _renyi_of(
        lambda library: library.SampledWithoutReplacementDpEvent(
            1, probability, library.GaussianDpEvent(noise_multiplier / 2)
        ),
        ORDERS[tried],
        "REPLACE_ONE",
    )
    return found


def _renyi_of(build: Any, orders: Floats, neighbours: str) -> Floats:
    library = _dp_accounting()
    from dp_accounting import rdp  # noqa: PLC0415 - as below

    accountant = rdp.RdpAccountant(list(orders), library.NeighboringRelation[neighbours])
    accountant.compose(build(library))
    return np.maximum(np.asarray(accountant.rdp, dtype=np.float64), 0.0)


def loss_distribution(probability: float, noise_multiplier: float, adjacency: Adjacency, grid: float) -> Any:
    """Return dp-accounting's privacy loss distribution of a Poisson-sampled Gaussian, rounded up to the grid."""
    library = _dp_accounting()
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415 - as below

    neighbours = "REPLACE_ONE" if adjacency == "replace-one" else "ADD_OR_REMOVE_ONE"
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=probability,
        value_discretization_interval=grid,
        neighboring_relation=library.NeighboringRelation[neighbours],
    )


def _dp_accounting() -> Any:
    require_extra()
    import dp_accounting  # noqa: PLC0415 - an extra, and a second of importing

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of each order whose series does not converge: unused
    return dp_accounting


def require_extra() -> None:
    """Raise HansaError unless the libraries of the extra ``dp`` are installed."""
    missing = [name for name in ("dp_accounting", "scipy") if find_spec(name) is None]
    if missing:
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule="What privacy costs is computed with dp-accounting and scipy.",
            found=f"Not installed: {', '.join(missing)}.",
            action="Install the extra: pip install 'hansa[dp]'.",
        )


def _check_multiplier(noise_multiplier: float) -> None:
    if not (0 < noise_multiplier < math.inf):
        raise _invalid("A noise multiplier is above 0.", f"It is {noise_multiplier:g}.", "Without noise nothing holds.")


def _check_probability(probability: float) -> None:
    if not 0 < probability <= 1:
        raise _invalid("A sampling probability is above 0 and at most 1.", f"It is {probability:g}.")


def _invalid(rule: str, found: str, action: str = "Correct it.") -> HansaError:
    return HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action=action)
