"""Events as JSON, the running account in integers, and releases that claim no more than they have."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.governance.spending import DELTA, release_of, sampled, whole_run

from hansa.core.errors import HansaError
from hansa.privacy.accounting import Composition, charged
from hansa.privacy.event import DistributedGaussian, FixedSizeGaussian, Gaussian, MatrixGaussian, PoissonGaussian
from hansa.privacy.event_json import event_from_mapping, event_to_json, event_to_mapping
from hansa.privacy.release import release_to_mapping
from hansa.privacy.running import Running, nothing

MULTIPLIERS = st.floats(1e-6, 1e6)
SHARES = st.floats(1e-6, 1.0)
EVENTS = st.one_of(
    st.builds(Gaussian, noise_multiplier=MULTIPLIERS),
    st.builds(PoissonGaussian, probability=SHARES, noise_multiplier=MULTIPLIERS),
    st.builds(FixedSizeGaussian, probability=SHARES, noise_multiplier=MULTIPLIERS),
    st.builds(MatrixGaussian, noise_multiplier=MULTIPLIERS, participations=st.integers(1, 10**6)),
    st.builds(
        DistributedGaussian,
        distance=MULTIPLIERS,
        local_variance=st.floats(0.5, 1e12),
        parties=st.integers(1, 10**6),
        dimension=st.integers(1, 2**40),
    ),
)
UNSAMPLED = EVENTS.filter(lambda event: not hasattr(event, "probability"))


@given(event=EVENTS)
def test_an_event_comes_back_from_its_json_as_it_was(event):
    text = event_to_json(event)
    assert event_from_mapping(json.loads(text)) == event
    assert event_to_json(event_from_mapping(json.loads(text))) == text


@pytest.mark.parametrize(
    "told",
    [{}, {"kind": "laplace", "noise_multiplier": 1.0}, {"kind": "gaussian"},
     {"kind": "gaussian", "noise_multiplier": "1"}, {"kind": "gaussian", "noise_multiplier": True},
     {"kind": "gaussian", "noise_multiplier": 0.0},
     {"kind": "gaussian", "noise_multiplier": 1.0, "q": 1}, {"kind": ["gaussian"]},
     {"kind": "matrix-gaussian", "noise_multiplier": 1.0, "participations": 1.5}],
)  # fmt: skip
def test_what_is_no_event_is_refused(told):
    with pytest.raises(HansaError) as caught:
        event_from_mapping(told)
    assert caught.value.code == "HANSA-PRIVACY-INVALID"


@given(events=st.lists(st.tuples(UNSAMPLED, st.integers(1, 50)), min_size=1, max_size=5), delta=st.floats(1e-12, 0.5))
def test_the_running_account_charges_what_the_composition_does_and_never_less(events, delta):
    found = Running.of(events, "zero-out")
    exact, _ = charged(Composition.of(*events), delta=delta, adjacency="zero-out")
    assert found.epsilon(delta) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert Running.from_text(found.text) == found


@given(events=st.lists(UNSAMPLED, min_size=1, max_size=6), order=st.randoms())
def test_the_running_account_depends_on_no_order_and_gives_back_to_the_bit(events, order):
    account = nothing()
    for event in events:
        account = account.plus(event, "replace-one")
    shuffled = list(events)
    order.shuffle(shuffled)
    assert Running.of([(event, 1) for event in shuffled], "replace-one") == account
    for event in shuffled:
        account = account.plus(event, "replace-one", -1)
    assert account == nothing()
    assert account.epsilon(DELTA) == 0.0


def test_sampled_events_have_no_bound_at_high_orders_and_are_given_back_there_too():
    event = PoissonGaussian(probability=0.01, noise_multiplier=1.0)
    account = Running.of([(event, 1000)], "add-or-remove-one")
    assert account.epsilon(1e-5) == pytest.approx(2.10137, abs=1e-5)
    assert account.plus(event, "add-or-remove-one", -1000) == nothing()
    assert math.isinf(Running((1 << 400,) * len(nothing().units)).epsilon(1e-5))


@pytest.mark.parametrize(
    "change",
    [{"event": Gaussian(noise_multiplier=2.1)}, {"sensitivity": Fraction(1001)}, {"variance": Fraction(3999)},
     {"sensitivity": Fraction(0)}, {"unit": " "}, {"mechanism": ""}, {"delta": 0.0}, {"adjacency": "far"},
     {"noise_party": "clients"}, {"event": MatrixGaussian(noise_multiplier=2.0, participations=1)}],
)  # fmt: skip
def test_a_release_that_claims_more_than_its_integers_have_is_refused(change):
    with pytest.raises(HansaError) as caught:
        replace(release_of(2.0), **change)
    assert caught.value.code == "HANSA-PRIVACY-INVALID"


def test_amplification_needs_evidence_and_no_minimum():
    for change in ({"sampling_evidence": ""}, {"sampling": "none"}, {"cohort_minimum": 1}):
        with pytest.raises(HansaError):
            replace(sampled(), **change)


def test_a_matrix_charges_every_participation_and_fits_between_two():
    release = whole_run(k=3, b=10)
    with pytest.raises(HansaError):
        replace(release, event=MatrixGaussian(noise_multiplier=4.0, participations=2))
    with pytest.raises(HansaError):
        replace(release.matrix, bands=11)
    with pytest.raises(HansaError):
        replace(release, matrix=None)


def test_the_noise_of_clients_is_priced_as_their_shares():
    event = DistributedGaussian(distance=100.0, local_variance=50.0, parties=90, dimension=1000)
    shares = {"event": event, "sensitivity": Fraction(100), "variance": Fraction(50), "noise_party": "clients"}
    told = release_to_mapping(replace(release_of(2.0), **shares))
    assert (told["sigma_squared"], told["sensitivity"]) == ("50", "100")
    assert told["event"] == event_to_mapping(event)
    for change in ({"variance": Fraction(49)}, {"sensitivity": Fraction(101)}, {"noise_party": "server"}):
        with pytest.raises(HansaError):
            replace(release_of(2.0), **{**shares, **change})
