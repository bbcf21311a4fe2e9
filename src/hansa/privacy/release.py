"""What a release under differential privacy is, as data: the event that is charged, and all that it was built from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from hansa.core.errors import HansaError
from hansa.core.privacy import Adjacency
from hansa.privacy.event import DistributedGaussian, Event, MatrixGaussian, Sampled, distance
from hansa.privacy.event_json import event_to_mapping

NoiseParty = Literal["server", "clients"]
"""Who adds the noise: the server to the sum, or each client a share of it inside a secure sum."""
Sampling = Literal["none", "poisson", "fixed-size"]

_SLACK: Final = 1 + 1e-9
"""What the multiplier of an event may differ by from the root of exact integers."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The matrix of correlated noise, and the participations (k, b) that its sensitivity assumes.

    ``sha256`` is of the matrix's taps. A unit takes part at most ``participations`` times in the run, any two of them
    at least ``separation`` rounds apart; the columns of the matrix have ``bands`` entries.
    """

    sha256: str
    bands: int
    participations: int
    separation: int
    rounds: int

    def __post_init__(self) -> None:
        if not 1 <= self.bands <= self.separation:
            found = f"It has {self.bands} bands, for a separation of {self.separation}."
            raise _invalid(
                "A matrix has at least one band, and no more than rounds that separate participations.", found
            )


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release, or with a ``matrix`` all the releases of a run.

    ``sensitivity`` is how far one unit that is added, removed or zeroed out moves the sum of integers; ``variance`` is
    that of the noise, of each client's share where ``noise_party`` is "clients"; both exact, in integer units.
    ``modulus`` and ``bits`` are of the ring of a secure sum. ``sampling_evidence`` says who answers for its
    secrecy.

    Raises HansaError where the event claims more noise than there is, or amplification that nobody answers for.
    """

    event: Event
    unit: str
    adjacency: Adjacency
    delta: float
    mechanism: str
    clip_norm: float
    sensitivity: Fraction
    variance: Fraction
    noise_party: NoiseParty
    cohort_expected: float
    cohort_minimum: int
    sampling: Sampling = "none"
    sampling_evidence: str = ""
    modulus: int | None = None
    bits: int | None = None
    matrix: Matrix | None = None

    def __post_init__(self) -> None:
        distance(self.adjacency)  # refuses an unknown word
        if not self.unit.strip() or not self.mechanism.strip():
            raise _invalid("A release names its privacy unit and its mechanism.", "One of them is empty.")
        if not 0 < self.delta < 1:
            raise _invalid("Delta is above 0 and below 1.", f"It is {self.delta:g}.")
        if self.sensitivity <= 0 or self.variance <= 0:
            raise _invalid("Sensitivity and variance are above 0.", "One of them is not.")
        self._check_noise()
        self._check_claims()

    def _check_noise(self) -> None:
        event = self.event
        if isinstance(event, DistributedGaussian):
            enough = event.local_variance <= self.variance * _SLACK and event.distance * _SLACK >= self.sensitivity
        else:
            enough = event.noise_multiplier * self.sensitivity <= math.sqrt(self.variance) * _SLACK
        if not enough:
            rule = "The event that is charged has no more noise, and no less sensitivity, than the integers have."
            raise _invalid(
                rule, "The noise multiplier that it claims is larger.", "Build it from the plan's own parts."
            )

    def _check_claims(self) -> None:
        event, matrix = self.event, self.matrix
        distributed = isinstance(event, DistributedGaussian)
        if distributed != (self.noise_party == "clients"):
            raise _invalid("Noise that clients add is priced as a sum of their shares.", f"It is {self.mechanism!r}.")
        if isinstance(event, Sampled) and (self.sampling == "none" or not self.sampling_evidence.strip()):
            rule = "Sampling amplifies where somebody answers for its secrecy, and nowhere else."
            raise _invalid(rule, "The event is sampled, and there is no evidence.")
        if isinstance(event, Sampled) and self.cohort_minimum:
            rule = "Sampling amplifies where noise is released however few were drawn: a minimum tells who was not."
            raise _invalid(rule, f"The minimum is {self.cohort_minimum}.", "Set it to 0, or claim no sampling.")
        several = event.participations if isinstance(event, DistributedGaussian) else 0
        if (isinstance(event, MatrixGaussian) or several > 1) and matrix is None:
            raise _invalid("A whole run is released with the matrix of its noise.", "It is missing.")
        if matrix is not None and not isinstance(event, (MatrixGaussian, DistributedGaussian)):
            raise _invalid("A matrix is of a whole run, which is one event.", f"The event is {type(event).__name__}.")
        if (
            matrix is not None
            and isinstance(event, (MatrixGaussian, DistributedGaussian))
            and (event.participations < matrix.participations)
        ):
            found = f"It charges {event.participations} of {matrix.participations}."
            raise _invalid("A run is charged for every participation that its matrix allows.", found)


def release_to_mapping(release: Release) -> dict[str, Any]:
    """Return a release as a row of the ledger holds it: exact numbers as texts ("3/2")."""
    matrix = release.matrix
    return {
        "event": event_to_mapping(release.event),
        "mechanism": release.mechanism,
        "clip_norm": release.clip_norm,
        "sensitivity": str(release.sensitivity),
        "sigma_squared": str(release.variance),
        "noise_party": release.noise_party,
        "sampling": release.sampling,
        "sampling_evidence": release.sampling_evidence,
        "cohort_expected": release.cohort_expected,
        "cohort_minimum": release.cohort_minimum,
        "modulus": None if release.modulus is None else str(release.modulus),
        "bits": release.bits,
        "matrix": None
        if matrix is None
        else {
            "sha256": matrix.sha256,
            "bands": matrix.bands,
            "participations": matrix.participations,
            "separation": matrix.separation,
            "rounds": matrix.rounds,
        },
    }


def _invalid(rule: str, found: str, action: str = "Correct it.") -> HansaError:
    return HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action=action)
