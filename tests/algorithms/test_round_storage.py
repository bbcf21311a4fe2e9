"""What a server stores of an open round is told before there is one."""

from __future__ import annotations

from tests.algorithms.test_privacy_checks import BASE, SECURE, private

from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.round_storage import folded_early, round_storage
from hansa.algorithms.travelling import travelling_lanes
from hansa.core.layout import Branch, Layout, Parameter

LAYOUT = Layout(
    (Branch("params", (Parameter("w", (1000,)),)),), travelling_lanes(["params"], [], integers=True, adaptive=False)
)
PLAIN = {key: table for key, table in BASE.items() if key != "privacy"} | {"cohort": {"kind": "uniform", "size": 100}}


def stored(tables, clients=1000, fold_every=32):
    return round_storage(plan_from_mapping({**PLAIN, **tables}), LAYOUT, clients, fold_every)


def test_updates_of_floats_are_all_kept():
    found = stored({})
    assert (found.picked, found.waiting, found.sums) == (100, 100, 0)
    assert found.update == 4 * 1000 + 8 * len(LAYOUT.lanes)
    assert found.total == 100 * found.update


def test_of_integers_a_few_updates_are_kept_and_a_sum_whatever_the_cohort():
    found = stored(private())
    assert (found.waiting, found.total) == (32, 34 * found.update)
    large = {"cohort": {"kind": "uniform", "size": 1000}, "aggregator": {"kind": "fixed-mean", "divisor": 1000}}
    assert stored(private() | large).total == found.total


def test_small_cohorts_have_no_sum_before_the_end():
    assert stored(private(), fold_every=100).sums == 0
    assert stored({}, clients=7).waiting == 7


def test_clients_on_top_count_and_a_secure_sum_keeps_its_vectors():
    over = {"kind": "sync", "over_selection": 0.3, "report_goal": 100}
    assert stored({"schedule": over}).waiting == 130
    secure = plan_from_mapping(PLAIN | private() | {"secure_aggregation": SECURE})
    assert not folded_early(secure)


def test_nobody_knows_how_long_a_buffered_plan_keeps_an_update():
    assert (
        stored({"schedule": {"kind": "buffered", "buffer_size": 10, "concurrency": 20}, "cohort": {"kind": "full"}})
        is None
    )
