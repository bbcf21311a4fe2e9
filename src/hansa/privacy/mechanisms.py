"""What a plan's mechanism adds, in whole numbers, and the events that an account is kept of.

An event is folded from the plan's own parts: its sampler, the participations that it allows, its multiplier, its
matrix. A multiplier is relative to the norm of one client's integers *after* rounding.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Final

from hansa.algorithms.adaptive_clip import bit_deviation, update_multiplier
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import honest_parties, lanes_of_noise
from hansa.algorithms.ring_plan import RingCode
from hansa.algorithms.samplers import MinSeparation, Poisson, Uniform
from hansa.algorithms.schedule import picking
from hansa.algorithms.travelling import BELOW_CLIP
from hansa.core.layout import Int64s
from hansa.core.privacy import Privacy
from hansa.privacy.accounting import Composition
from hansa.privacy.event import (
    DistributedGaussian,
    Event,
    FixedSizeGaussian,
    Gaussian,
    MatrixGaussian,
    PoissonGaussian,
)
from hansa.privacy.keystream import row_key
from hansa.privacy.matrices import BandedMatrix, TreeMatrix, check_width, independent, participations
from hansa.privacy.noise import discrete_gaussian, reach
from hansa.privacy.release import Matrix

VALUES: Final = "values"


@dataclass(frozen=True)
class Independent:
    """Independent discrete Gaussian noise in every round, by the server or by the clients together."""

    def noise(self, plan: Plan, code: RingCode, number: int, key: bytes) -> tuple[Int64s, Int64s]:
        """Return the noise of a round's sum: values int64 [width], and lanes int64 [lanes]."""
        columns, deviation = {}, bit_noise(plan)
        if deviation is not None:
            variance = Fraction(math.ceil((deviation / BELOW_CLIP.resolution) ** 2))
            columns[BELOW_CLIP.name] = int(discrete_gaussian(variance, 1, key=row_key(key, number, BELOW_CLIP.name))[0])
        variance = Fraction(self.variance(plan, code))
        values = discrete_gaussian(variance, code.width, key=row_key(key, number, VALUES))
        return values, lanes_of_noise(code, columns)

    def client_variance(self, plan: Plan, norm: float) -> int:
        """Return the variance of each client's share, in squared steps: enough where only the honest ones add any."""
        privacy, section = _private(plan), plan.secure_aggregation
        if section is None:
            raise LookupError("noise by clients needs a secure sum")
        return math.ceil((float(privacy.noise_multiplier or 0) * norm) ** 2 / honest_parties(section))

    def reach(self, variance: int) -> int:
        """Return the largest absolute sample of a variance."""
        return reach(Fraction(variance))

    def variance(self, plan: Plan, code: RingCode) -> int:
        """Return the variance of the noise on a sum, or of each client's share, in squared steps."""
        if code.client_variance:
            return code.client_variance
        multiplier, deviation = float(_private(plan).noise_multiplier or 0), bit_noise(plan)
        return variance_of(multiplier if deviation is None else update_multiplier(multiplier, deviation), code)

    def matrix_of_run(self, plan: Plan) -> Matrix | None:
        """Return what makes a whole run one release: that clients rest, so that each is in few of its rounds."""
        if times(plan) == plan.rounds or _private(plan).trusted_sampling:
            return None
        return _matrix(plan, independent(plan.rounds))

    def event(self, plan: Plan, multiplier: float, code: RingCode) -> Event:
        """Return what is released at once with a noise multiplier: a round, or a run in which clients rest."""
        once = self._round(plan, multiplier, code)
        if self.matrix_of_run(plan) is None:
            return once
        if isinstance(once, DistributedGaussian):
            return replace(once, participations=times(plan))
        return MatrixGaussian(noise_multiplier=multiplier, participations=times(plan))

    def _round(self, plan: Plan, multiplier: float, code: RingCode | None) -> Event:
        """Return one round of a noise multiplier; with the integers of a plan whose clients add the noise, theirs."""
        schedule: Any = plan.schedule  # buffers are refused
        privacy, cohort = _private(plan), picking(schedule, plan.cohort)
        if privacy.trusted_sampling and isinstance(cohort, Poisson):
            return PoissonGaussian(probability=cohort.rate, noise_multiplier=multiplier)
        if privacy.trusted_sampling and isinstance(cohort, Uniform):
            share = cohort.size / (privacy.population or cohort.size)
            return FixedSizeGaussian(probability=share, noise_multiplier=multiplier)
        if privacy.noise_by == "clients" and code is not None and plan.secure_aggregation is not None:
            return DistributedGaussian(
                distance=float(code.norm or 0),
                local_variance=float(code.client_variance),
                parties=honest_parties(plan.secure_aggregation),
                dimension=code.width,
            )
        return Gaussian(noise_multiplier=multiplier)

    def composition(self, plan: Plan, multiplier: float, code: RingCode | None = None) -> Composition:
        """Return what one client can take part in over the whole run."""
        return Composition.of((self._round(plan, multiplier, code), times(plan)))


@dataclass(frozen=True)
class Correlated:
    """Noise of a matrix (DP-FTRL): one release for the whole run. ``kind`` is "banded-matrix" or "tree"."""

    kind: str

    def matrix(self, plan: Plan) -> BandedMatrix | TreeMatrix:
        """Return the matrix of a plan: as many bands as it says, or as its clients rest rounds."""
        bands = min(plan.rounds, _private(plan).bands or separation(plan))
        return _banded(plan.rounds, bands) if self.kind == "banded-matrix" else TreeMatrix.within(plan.rounds, bands)

    def matrix_of_run(self, plan: Plan) -> Matrix:
        """Return what makes a run one release."""
        return _matrix(plan, self.matrix(plan))

    def variance(self, plan: Plan, code: RingCode) -> int:
        """Return the variance of the independent noise under the matrix, in squared steps.

        Raises HansaError for one that no row holds, before anything is charged for it.
        """
        variance = variance_of(float(_private(plan).noise_multiplier or 0), code)
        check_width(Fraction(variance))
        return variance

    def event(self, plan: Plan, multiplier: float, code: RingCode) -> Event:  # noqa: ARG002 - the mechanisms' protocol
        """Return the one release of the whole run."""
        return MatrixGaussian(noise_multiplier=multiplier, participations=times(plan))

    def noise(self, plan: Plan, code: RingCode, number: int, key: bytes) -> tuple[Int64s, Int64s]:
        """Return the noise of round ``number`` (from 1): values int64 [width], and no noise of lanes."""
        rows = _rows(self.matrix(plan), self.variance(plan, code), code.width, key)
        return rows.row(number - 1), lanes_of_noise(code, {})

    def composition(self, plan: Plan, multiplier: float, code: RingCode | None = None) -> Composition:  # noqa: ARG002 - the mechanisms' protocol
        """Return the one release of the whole run."""
        return Composition.of(MatrixGaussian(noise_multiplier=multiplier, participations=times(plan)))


def _matrix(plan: Plan, matrix: BandedMatrix | TreeMatrix) -> Matrix:
    """Return what the ledger keeps of a matrix; rows drawn under one key belong to one matrix."""
    digest = hashlib.sha256(repr(matrix).encode()).hexdigest()
    rests = separation(plan)
    return Matrix(sha256=digest, bands=matrix.bands, participations=times(plan), separation=rests, rounds=matrix.rounds)


class _Rows:
    """The rows of a run's noise in order; an earlier one than the next begins anew."""

    def __init__(self, matrix: BandedMatrix | TreeMatrix, variance: int, width: int, key: bytes) -> None:
        self._made = partial(matrix.noise, Fraction(variance), width, run_key=key, group=VALUES)
        self._rows, self._next = self._made(start=0), 0

    def row(self, index: int) -> Int64s:
        if index != self._next:
            self._rows = self._made(start=index)
        self._next = index + 1
        return next(self._rows)


@lru_cache(maxsize=2)
def _rows(matrix: BandedMatrix | TreeMatrix, variance: int, width: int, key: bytes) -> _Rows:
    return _Rows(matrix, variance, width, key)


@lru_cache(maxsize=16)
def _banded(rounds: int, bands: int) -> BandedMatrix:
    return BandedMatrix.optimal(rounds, bands)


def variance_of(multiplier: float, code: RingCode) -> int:
    """Return the variance of the noise on a sum, in squared steps: a whole number, rounded up."""
    if code.norm is None:
        raise LookupError("integers without a bound on their norm have no noise")
    return math.ceil((multiplier * code.norm) ** 2)


def bit_noise(plan: Plan) -> float | None:
    """Return the standard deviation of the noise on the sum of an adaptive clip's bits, or None without one."""
    if _private(plan).adaptive_clip is None:
        return None
    divisor: Any = plan.aggregator
    return bit_deviation(float(divisor.divisor))


def times(plan: Plan) -> int:
    """Return in how many rounds one client's data can be, at most."""
    cohort = plan.cohort
    if not isinstance(cohort, MinSeparation):
        return plan.rounds
    most = plan.rounds if cohort.max_participations is None else cohort.max_participations
    return participations(plan.rounds, min_separation=cohort.rounds, max_participations=most)


def separation(plan: Plan) -> int:
    """Return how many rounds apart two participations of one client are at least."""
    return plan.cohort.rounds if isinstance(plan.cohort, MinSeparation) else 1


def _private(plan: Plan) -> Privacy:
    if plan.privacy is None:
        raise LookupError("a plan without [privacy] has no mechanism")
    return plan.privacy


INDEPENDENT: Final = Independent()
BANDED_MATRIX: Final = Correlated("banded-matrix")
TREE: Final = Correlated("tree")
