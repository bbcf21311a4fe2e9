"""Tallies as lanes: counts exact, sums to the metric's resolution, and what is not finite told as such."""

from __future__ import annotations

import numpy as np
import pytest

from hansa.algorithms.ring_plan import ring_code
from hansa.core.secure_aggregation import SecureAggregation
from hansa.evaluation.lanes import tallies_of, tally_lanes, tally_layout
from hansa.evaluation.metrics import ACCURACY, AUC, LOSS, MAE, RMSE

CLASSES = (AUC, ACCURACY, LOSS)
NUMBERS = (RMSE, MAE)


def tallies(metrics, clients=5, seed=0):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, 2, (60, 1))
    y = rng.integers(0, 2, 60) if metrics is CLASSES else rng.normal(0, 2, 60)
    owners = np.sort(rng.integers(0, clients, 60))
    return {metric.name: metric.tallies(outputs, y, owners, clients) for metric in metrics}


@pytest.mark.parametrize("metrics", [CLASSES, NUMBERS])
def test_the_sum_of_lanes_is_that_of_the_tallies_to_the_resolution_of_each(metrics):
    layout, rows = tally_layout(metrics), tallies(metrics)
    found = tallies_of(layout, tally_lanes(layout, rows).sum(axis=0))
    for metric in metrics:
        total = rows[metric.name].sum(axis=0)
        assert np.abs(found[metric.name] - total).max() <= 5 * metric.resolution / 2
        assert metric.of(found[metric.name]) == pytest.approx(metric.of(total), rel=0.02)
    if metrics is CLASSES:
        assert AUC.of(found["auc"]) == AUC.of(rows["auc"].sum(axis=0)), "counts are exact"


def test_one_client_whose_outputs_are_not_finite_makes_the_metric_undefined_as_in_the_clear():
    layout, rows = tally_layout(CLASSES), tallies(CLASSES)
    rows["loss"][2] = np.nan
    found = tallies_of(layout, tally_lanes(layout, rows).sum(axis=0))
    assert np.isnan(found["loss"]).all()
    assert LOSS.of(found["loss"]) is None
    assert ACCURACY.of(found["accuracy"]) == ACCURACY.of(rows["accuracy"].sum(axis=0))


@pytest.mark.parametrize("metrics", [CLASSES, NUMBERS])
def test_a_million_clients_fit(metrics):
    code = ring_code(SecureAggregation(), tally_layout(metrics), clients=10**6)
    assert max(segment.bits for segment in code.ring.segments) <= 64


def test_what_is_beyond_a_lane_is_cut_to_it():
    layout = tally_layout((LOSS,))
    lanes = tally_lanes(layout, {"loss": np.array([[1e30, 3.0]])})
    assert tallies_of(layout, lanes[0])["loss"].tolist() == [LOSS.most, 3.0]
