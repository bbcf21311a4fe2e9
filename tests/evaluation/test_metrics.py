"""Metrics against exact ones, over any split into clients and parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.datasets import Examples
from hansa.core.errors import PlanError
from hansa.core.nouns import ClientBatch, Signature
from hansa.evaluation import federated
from hansa.evaluation.federated import Tallied, evaluate_centrally, per_client, summarise, tally_clients
from hansa.evaluation.metrics import (
    ACCURACY,
    AUC,
    LOSS,
    MAE,
    RMSE,
    auc_error,
    choose,
    example_losses,
    known,
    probabilities,
)
from hansa.testing import MemoryClients

CLASSIFICATION, REGRESSION = (LOSS, ACCURACY, AUC), (LOSS, RMSE, MAE)


def exact_auc(scores, y):
    """The share of pairs in order, ties counting half: the definition, pair by pair."""
    positive, negative = scores[y == 1][:, None], scores[y == 0][None, :]
    return float(((positive > negative) + (positive == negative) / 2).mean())


def one_tally(metric, outputs, y):
    return metric.tally(outputs, y, np.zeros(len(y), dtype=np.int64), 1)[0]


def binary(count, seed, spread):
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, count)
    return (random.standard_normal((count, 1)) * spread + y[:, None]).astype(np.float32), y


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**32 - 1), st.sampled_from([1e-4, 0.01, 1.0, 30.0, 1000.0]))
def test_auc_of_histograms_is_the_exact_auc_within_the_error_it_states(count, seed, spread):
    outputs, y = binary(count, seed, spread)
    tally = one_tally(AUC, outputs, y)
    if len(set(y.tolist())) < 2:
        assert AUC.value(tally) is None
        assert auc_error(tally) is None
        return
    exact = exact_auc(probabilities(outputs)[:, 1], y)
    assert abs(AUC.value(tally) - exact) <= auc_error(tally) + 1e-12
    assert 0 <= auc_error(tally) <= 0.5


def test_auc_is_that_of_scikit_learn_and_its_error_is_small():
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    outputs, y = binary(5000, 1, 1.0)
    tally = one_tally(AUC, outputs, y)
    assert AUC.value(tally) == pytest.approx(roc_auc_score(y, outputs[:, 0]), abs=auc_error(tally))
    assert auc_error(tally) < 0.001


@pytest.mark.parametrize(("outputs", "expected"), [([-1, 1], 1.0), ([1, -1], 0.0), ([0, 0], 0.5)])
def test_auc_of_two_examples(outputs, expected):
    assert AUC.value(one_tally(AUC, np.array(outputs, dtype=float)[:, None], np.array([0, 1]))) == expected


def test_auc_of_two_logits_is_that_of_their_difference():
    outputs, y = binary(300, 2, 1.0)
    other = np.random.default_rng(0).standard_normal((300, 1)).astype(np.float32)
    both = np.hstack([other, other + outputs])
    assert AUC.value(one_tally(AUC, both, y)) == pytest.approx(AUC.value(one_tally(AUC, outputs, y)), abs=0.002)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.int8, np.uint64])
def test_labels_of_any_integer_kind_are_counted(dtype):
    outputs, y = binary(50, 3, 1.0)
    for metric in CLASSIFICATION:
        assert metric.value(one_tally(metric, outputs, y.astype(dtype))) == metric.value(one_tally(metric, outputs, y))


def test_one_class_or_no_example_leaves_metrics_undefined():
    outputs, none = np.zeros((3, 1)), np.zeros((0, 1))
    assert AUC.value(one_tally(AUC, outputs, np.ones(3, dtype=int))) is None
    assert ACCURACY.value(one_tally(ACCURACY, outputs, np.ones(3, dtype=int))) == 0.0
    for metric in CLASSIFICATION:
        assert metric.value(one_tally(metric, none, np.zeros(0, dtype=int))) is None
    for metric in REGRESSION:
        assert metric.value(one_tally(metric, none, np.zeros(0))) is None


def test_losses_are_those_of_their_definitions():
    scores, y = np.array([[2.0], [-1.0]]), np.array([1, 1])
    np.testing.assert_allclose(example_losses(scores, y), np.log1p(np.exp(-scores[:, 0])))
    logits, labels = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), np.array([2, 0])
    expected = [-np.log(np.exp(3) / np.exp([1, 2, 3]).sum()), np.log(3)]
    np.testing.assert_allclose(example_losses(logits, labels), expected)
    np.testing.assert_allclose(example_losses(np.array([[1.5]]), np.array([1.0])), [0.25])


def test_scores_far_from_zero_do_not_overflow():
    far = np.array([[1e30], [-1e30]], dtype=np.float32)
    for outputs in (far, np.hstack([-far, far])):
        np.testing.assert_allclose(probabilities(outputs), [[0, 1], [1, 0]], atol=1e-12)
        assert np.isfinite(example_losses(outputs, np.array([0, 1]))).all()
        assert AUC.value(one_tally(AUC, outputs, np.array([1, 0]))) == 1.0


def test_accuracy_counts_the_likelier_class():
    assert ACCURACY.value(one_tally(ACCURACY, np.array([[1.0], [-1.0], [2.0]]), np.array([1, 0, 0]))) == 2 / 3
    assert ACCURACY.value(one_tally(ACCURACY, np.eye(3), np.array([0, 1, 0]))) == 2 / 3


def test_regression_metrics_are_those_of_their_definitions():
    outputs, y = np.array([[1.0], [2.0], [5.0]]), np.array([1.0, 4.0, 1.0])
    values = {metric.name: metric.value(one_tally(metric, outputs, y)) for metric in REGRESSION}
    assert values == pytest.approx({"loss": 20 / 3, "rmse": np.sqrt(20 / 3), "mae": 2.0})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.booleans())
def test_tallies_of_any_split_into_clients_add_up(sizes, seed, numbers):
    random = np.random.default_rng(seed)
    total, owners = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    outputs = random.standard_normal((total, 1))
    y = random.standard_normal(total) if numbers else random.integers(0, 2, total)
    order = random.permutation(total)
    for metric in REGRESSION if numbers else CLASSIFICATION:
        rows = metric.tally(outputs[order], y[order], owners[order], len(sizes))
        assert rows.shape[0] == len(sizes)
        assert rows.dtype == np.float64
        np.testing.assert_allclose(rows.sum(axis=0), one_tally(metric, outputs, y), rtol=1e-9, atol=1e-9)
        for client in range(len(sizes)):
            mine = owners == client
            np.testing.assert_allclose(rows[client], one_tally(metric, outputs[mine], y[mine]), rtol=1e-9, atol=1e-9)


# Choosing


def test_metrics_that_fit_the_label_are_chosen():
    def names(classes):
        return {metric.name for metric in choose((), Signature((2,), classes))}

    assert names(0) == {"rmse", "mae"}
    assert names(2) == {"accuracy", "loss", "auc"}
    assert names(5) == {"accuracy", "loss"}


def test_metrics_that_do_not_fit_the_label_are_refused_with_their_key_path():
    with pytest.raises(PlanError) as error:
        choose(("loss", "auc", "rmse"), Signature((2,), 5))
    found = {problem.path: problem.message for problem in error.value.problems}
    assert set(found) == {"evaluation.metrics.1", "evaluation.metrics.2"}
    assert "auc needs two classes" in found["evaluation.metrics.1"]
    with pytest.raises(PlanError, match="accuracy needs classes"):
        choose(("accuracy",), Signature((2,), 0))


def test_all_metrics_are_known():
    assert set(known()) == {"loss", "accuracy", "auc", "rmse", "mae"}


# Over clients


def data_of(sizes, seed=0):
    random = np.random.default_rng(seed)
    x = [random.standard_normal((max(size, 1), 2)).astype(np.float32)[:size] for size in sizes]
    return MemoryClients(x, [random.integers(0, 2, size) for size in sizes])


def predict(x, _):
    return x[:, :1] * 2 - x[:, 1:]


def tallied(data, metrics=CLASSIFICATION, **options):
    ordinals = np.arange(len(data.x))
    clients = ClientBatch(ordinals, data, Signature((2,), 2))
    return tally_clients(metrics, predict, clients, **{"one_by_one": False} | options)


@pytest.mark.parametrize("rows_at_once", [1, 7, 8192])
def test_clients_are_tallied_alike_in_chunks_and_one_by_one(monkeypatch, rows_at_once):
    monkeypatch.setattr(federated, "_ROWS_AT_ONCE", rows_at_once)
    data = data_of([3, 1, 12, 5, 5])
    together, alone = tallied(data), tallied(data, one_by_one=True)
    for metric in CLASSIFICATION:
        np.testing.assert_allclose(together.values[metric.name], alone.values[metric.name])
        np.testing.assert_allclose(together.totals[metric.name], alone.totals[metric.name])
        each = [one_tally(metric, predict(data.x[i], None), data.y[i]) for i in range(5)]
        np.testing.assert_allclose(together.totals[metric.name], sum(each), rtol=1e-6)
        expected = np.array([metric.value(tally) for tally in each], dtype=float)
        np.testing.assert_allclose(together.values[metric.name], expected, rtol=1e-6)


def test_one_by_one_each_client_is_predicted_with_its_own_ordinal():
    asked = []

    def predicting(x, ordinal):
        asked.append((ordinal, len(x)))
        return predict(x, None)

    clients = ClientBatch(np.array([2, 0]), data_of([3, 4, 5]), Signature((2,), 2))
    tally_clients((LOSS,), predicting, clients, one_by_one=True)
    assert asked == [(2, 5), (0, 3)]


def test_central_evaluation_is_the_same_in_parts(monkeypatch):
    data = data_of([23])
    whole = evaluate_centrally(CLASSIFICATION, predict, Examples(data.x[0], data.y[0]))
    monkeypatch.setattr(federated, "_ROWS_AT_ONCE", 5)
    parts = evaluate_centrally(CLASSIFICATION, predict, Examples(data.x[0], data.y[0]))
    assert parts == pytest.approx(whole)
    assert whole["auc"] == pytest.approx(exact_auc(predict(data.x[0], None)[:, 0], data.y[0]), abs=0.01)


def test_the_overall_row_is_that_of_all_examples_in_one_place():
    data = data_of([3, 1, 12, 5, 5])
    summary = summarise(CLASSIFICATION, tallied(data))
    central = evaluate_centrally(CLASSIFICATION, predict, Examples(np.concatenate(data.x), np.concatenate(data.y)))
    for name, value in central.items():
        assert summary[name]["overall"] == pytest.approx(value)
    assert summary["auc"]["auc_error"] >= 0
    assert "auc_error" not in summary["loss"]


@pytest.mark.parametrize(("clients", "tenth"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
@pytest.mark.parametrize("metric", [LOSS, ACCURACY])
def test_the_worst_tenth_is_of_the_clients_that_fare_worst(clients, tenth, metric):
    values = np.random.default_rng(0).permutation(clients).astype(float)
    tally = np.stack([values * 4, np.full(clients, 4.0)], axis=1)
    tallied = Tallied({metric.name: values}, {metric.name: tally.sum(axis=0)})
    summary = summarise((metric,), tallied)[metric.name]
    worst = sorted(values, reverse=not metric.higher_is_better)
    assert summary["worst_client"] == worst[0]
    assert summary["worst_10_percent"] == pytest.approx(np.mean(worst[:tenth]))
    assert summary["mean"] == pytest.approx(values.mean())
    assert summary["clients"] == clients
    assert summary["undefined"] == 0


def test_clients_without_a_defined_metric_are_counted_and_enter_no_mean():
    x = [np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32), np.ones((2, 2), np.float32)]
    data = MemoryClients(x, [np.array([1, 0]), np.array([1, 1])])
    summary = summarise((AUC,), tallied(data))["auc"]
    assert (summary["mean"], summary["clients"], summary["undefined"]) == (1.0, 1, 1)
    rows = per_client((AUC, LOSS), tallied(data), list(data.names), np.array([2, 2]))
    assert [row["auc"] for row in rows] == [1.0, None]
    assert rows[1]["client"] == "client-1"
    assert rows[1]["examples"] == 2
    assert isinstance(rows[0]["loss"], float)


def test_a_metric_that_nobody_defines_is_none_everywhere():
    data = MemoryClients([np.ones((2, 2), np.float32)], [np.array([1, 1])])
    summary = summarise((AUC,), tallied(data))["auc"]
    assert summary == {
        "overall": None,
        "mean": None,
        "worst_client": None,
        "worst_10_percent": None,
        "clients": 0,
        "undefined": 1,
        "auc_error": None,
    }


def test_a_model_that_diverged_has_no_metric_rather_than_an_infinite_one():
    outputs = np.array([[np.inf], [1.0]], np.float32)
    owners = np.array([0, 1])
    for metric, y in ((RMSE, np.zeros(2)), (LOSS, np.zeros(2, dtype=int)), (AUC, np.array([0, 1]))):
        tallies = metric.tallies(outputs, y, owners, 2)
        assert metric.of(tallies[0]) is None
        assert metric.of(tallies.sum(axis=0)) is None
    assert RMSE.of(RMSE.tallies(outputs, np.zeros(2), owners, 2)[1]) == 1.0


def test_many_clients_are_measured_without_keeping_their_score_histograms():
    data = MemoryClients([np.ones((1, 2), np.float32)] * 1500, [np.array([i % 2]) for i in range(1500)])
    found = tallied(data, (AUC,))
    assert found.values["auc"].shape == (1500,)
    assert found.totals["auc"].shape == (2000,)
