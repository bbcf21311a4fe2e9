"""Canaries bound epsilon from below: under the claim where the mechanism works, above it where it is broken."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.algorithms.test_privacy_checks import BASE

from hansa.algorithms.fixed_point import encode
from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.private_sums import central_noise, private_code, protected, withheld
from hansa.algorithms.secure_sums import Groups, Opening, RingFold
from hansa.algorithms.travelling import travelling_lanes
from hansa.core.errors import HansaError
from hansa.core.layout import COUNT, Branch, Layout, Parameter
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.streams import Streams
from hansa.privacy.auditing import HIGHEST, audit, epsilon_lower_bound, p_value
from hansa.privacy.planned import cost_of
from hansa.testing import MemoryClients

KEY = bytes(range(32))
CANARIES, DIMENSION, CLIP, DELTA = 1500, 2000, 1.0, 1e-5


def released(plan, rows, *, noise, clip):
    """What a round under the plan releases of these updates, by the functions that rounds call; in the rows' unit."""
    layout = Layout(
        (Branch("params", (Parameter("w", (DIMENSION,)),)),), travelling_lanes(["params"], [], integers=True)
    )
    columns = {COUNT.name: np.ones(len(rows)), "weight.params": np.ones(len(rows))}
    batch = Batch(rows.astype(np.float32), layout.encode_lanes(columns, len(rows)), layout)
    data = MemoryClients([np.zeros((1, 1), np.float32)] * len(rows), [np.zeros(1)] * len(rows))
    everyone = np.arange(len(rows))
    assignment = Assignment(1, layout, np.zeros(DIMENSION, np.float32), everyone, population=len(rows))
    context = ClientContext(assignment, ClientBatch(everyone, data, Signature((1,), 0)), Streams(0))
    bound = CLIP if clip else 100 * CLIP
    sized = private_code(plan, layout, CLIP)
    code = sized if clip else replace(private_code(plan, layout, bound), norm=None)
    batch = withheld(encode(code, protected(plan, batch, bound), context))
    added = central_noise(plan, 1, KEY) if noise else None
    if added is not None and not clip:
        values, lanes = added(sized)  # sized to the clip that is claimed
        added = lambda _: ((values * (sized.branches[0].step / code.branches[0].step)).astype(np.int64), lanes)  # noqa: E731
    fold = RingFold(Opening(code, Groups(len(rows), 1), 1, Streams(0), added))
    fold.add(batch, 0)
    return fold.finish(plan.aggregator, len(rows)).values


def audited(claimed_multiplier, *, noise=True, clip=True):
    """Canaries of 30 clip norms, each along an axis of its own, among updates of others; (lower bound, claim)."""
    random = np.random.default_rng(3)
    included = random.random(CANARIES) < 0.5
    canaries = np.zeros((included.sum(), DIMENSION))
    canaries[np.arange(len(canaries)), np.flatnonzero(included)] = 30 * CLIP
    others = random.normal(size=(50, DIMENSION)) * 0.001
    privacy = {"clip_norm": CLIP, "delta": DELTA, "noise_multiplier": claimed_multiplier}
    plan = plan_from_mapping(
        BASE
        | {
            "rounds": 1,
            "cohort": {"kind": "poisson", "rate": 0.5},
            "privacy": privacy | {"adjacency": "add-or-remove-one"},
        }
    )
    total = released(plan, np.concatenate([canaries, others]), noise=noise, clip=clip)
    found = audit(total[:CANARIES], included, delta=DELTA, guesses=(100, 400, 1500))
    return found.epsilon_at_least, cost_of(plan).epsilon_charged


@pytest.mark.parametrize("noise_multiplier", [0.8, 1.5, 4.0])
def test_the_mechanism_leaks_no_more_than_it_claims(noise_multiplier):
    bound, claim = audited(noise_multiplier)
    assert bound <= claim
    if noise_multiplier < 1:
        assert bound > claim / 10  # the audit sees something, so that it could have seen more


@pytest.mark.parametrize("fault", [{"noise": False}, {"clip": False}])
def test_a_broken_mechanism_is_caught(fault):
    """Noise turned off, or the clip removed: each alone leaks more than is claimed."""
    bound, claim = audited(1.5, **fault)
    assert bound > 1.3 * claim


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_randomized_response_is_bounded_with_the_confidence_that_is_claimed(epsilon):
    """The mechanism that the theorem compares with: the bound is above the truth in at most 5% of many runs."""
    canaries, runs = 1000, 1000
    accuracy = 1 / (1 + math.exp(-epsilon))
    right = stats.binom.rvs(canaries, accuracy, size=runs, random_state=7)
    bounds = {each: epsilon_lower_bound(canaries, canaries, int(each), delta=0.0) for each in set(right)}
    above = sum(bounds[each] > epsilon for each in right) / runs
    assert above <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert epsilon == 0 or np.median([bounds[each] for each in right]) > 0.7 * epsilon


def test_the_tail_of_a_coin_is_exact_without_delta():
    assert p_value(10, 10, 10, epsilon=0.0, delta=0.0) == pytest.approx(2**-10)
    assert p_value(10, 10, 0, epsilon=3.0, delta=0.0) == 1.0


def test_delta_costs_as_the_theorem_says():
    """Ten right of ten: P(W >= 10 - i) - P(W = 10) over i is largest, by hand, at one of few i."""
    steepest = max((stats.binom.sf(9 - i, 10, 0.5) - 2**-10) / i for i in range(1, 11))
    assert p_value(40, 10, 10, epsilon=0.0, delta=1e-4) == pytest.approx(2**-10 + 2 * 40 * 1e-4 * steepest)


@given(st.integers(1, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_the_bound_is_where_the_probability_crosses_the_level(canaries, data):
    guesses = data.draw(st.integers(1, canaries))
    right = data.draw(st.integers(0, guesses))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-3]))
    bound = epsilon_lower_bound(canaries, guesses, right, delta=delta)
    if bound > 0:
        assert p_value(canaries, guesses, right, epsilon=bound, delta=delta) <= 0.05
    if bound < HIGHEST - 1e-5:
        assert p_value(canaries, guesses, right, epsilon=bound + 2e-6, delta=delta) >= 0.05 * (1 - 1e-3)


def test_more_right_guesses_never_bound_less():
    bounds = [epsilon_lower_bound(200, 100, right, delta=1e-5) for right in range(0, 101, 5)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0 < bounds[-1]


def test_several_numbers_of_guesses_share_the_confidence():
    scores, included = np.arange(100.0), np.arange(100) >= 50
    alone = audit(scores, included, delta=0.0, guesses=[100])
    shared = audit(scores, included, delta=0.0, guesses=[100, 2])
    assert alone.right == shared.right == 100
    assert alone.epsilon_at_least == pytest.approx(epsilon_lower_bound(100, 100, 100, delta=0.0))
    assert shared.epsilon_at_least == pytest.approx(
        epsilon_lower_bound(100, 100, 100, delta=0.0, confidence=0.975), abs=1e-5
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: audit(np.zeros(4), np.zeros(4, bool), delta=0.0, guesses=[]),
        lambda: audit(np.zeros(4), np.zeros(4, bool), delta=0.0, guesses=[3]),
        lambda: audit(np.zeros(4), np.zeros(4, bool), delta=0.0, guesses=[6]),
        lambda: epsilon_lower_bound(4, 5, 1, delta=0.0),
        lambda: epsilon_lower_bound(4, 4, 1, delta=1.0),
    ],
)
def test_audits_that_make_no_sense_are_refused(call):
    with pytest.raises(HansaError):
        call()
