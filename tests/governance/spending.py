"""Releases to spend, and a ledger with a budget to spend them from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hansa.core.ledger import Origin, Outcome, SpendKey
from hansa.governance.ledger import StoreLedger
from hansa.governance.limits import Limit
from hansa.privacy.event import Gaussian, MatrixGaussian, PoissonGaussian
from hansa.privacy.release import Matrix, Release

DELTA = 1e-5


@dataclass(frozen=True)
class Clock:
    at: float = 5.0

    def now(self):
        return self.at


def release_of(multiplier=2.0, *, event=None, **changes):
    event = event or Gaussian(noise_multiplier=multiplier)
    return Release(**{
        "event": event, "unit": "client", "adjacency": "zero-out", "delta": DELTA, "mechanism": "central-gaussian",
        "clip_norm": 0.5, "sensitivity": Fraction(1000), "variance": Fraction(event.noise_multiplier) ** 2 * 10**6,
        "noise_party": "server", "cohort_expected": 100.0, "cohort_minimum": 80, **changes,
    })  # fmt: skip


def sampled(multiplier=2.0, probability=0.01):
    event = PoissonGaussian(probability=probability, noise_multiplier=multiplier)
    return release_of(
        event=event, cohort_minimum=0, sampling="poisson", sampling_evidence="trusted_sampling: the operator's coins"
    )


def whole_run(multiplier=4.0, k=3, b=10, rounds=40):
    event = MatrixGaussian(noise_multiplier=multiplier, participations=k)
    matrix = Matrix(sha256="m" * 64, bands=b, participations=k, separation=b, rounds=rounds)
    return release_of(event=event, mechanism="central-matrix-gaussian", matrix=matrix)


def origin_of(seed):
    return Origin(population=seed.population.id, job=seed.job.id, plan_sha256="p" * 64, actor="ada (token-1)")


def limit_of(seed, epsilon=10.0, **changes):
    given = {"unit": "client", "adjacency": "zero-out", "delta": DELTA, "populations": [seed.population], **changes}
    return Limit(scope=given.pop("scope", "wards"), epsilon=epsilon, **given)


async def ledger_of(store, seed, epsilon=10.0):
    ledger = StoreLedger(store, seed.tenant.id, Clock())
    await ledger.set_limit(limit_of(seed, epsilon), actor="olga (token-0)")
    return ledger


def key_of(seed, number, attempt=1):
    return SpendKey(seed.run.id, number, attempt)


def outcome_of(cohort=90, noise_row=None, released="d" * 64):
    return Outcome(cohort=cohort, released=released, noise_row=noise_row)
