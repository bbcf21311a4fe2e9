"""What the server sees is said in one place, and everywhere alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa.reporting import disclosure
from hansa.reporting.disclosure import server_sees

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "features": {"scaling": "federated"},
    "model": {"buffers": "average"},
    "evaluation": {"federated": True},
}


def seen(plan: dict[str, object], *metrics: str, on_clients: bool = True) -> str:
    return "; ".join(server_sees(plan, metrics=metrics, on_clients=on_clients))


def test_under_a_secure_sum_everything_is_a_sum() -> None:
    secure = EVERYTHING | {"secure_aggregation": {"group_size": 5}}
    found = seen(secure, "auc", "loss")
    assert "in the clear" not in found
    assert "each client's" not in found
    assert found.startswith("of the updates the sum of a cohort only")
    assert disclosure.GROUPED in found
    assert disclosure.GROUPED not in seen(EVERYTHING | {"secure_aggregation": {}})


def test_updates_and_attendance_are_always_seen() -> None:
    assert server_sees({}, metrics=(), on_clients=False) == (disclosure.UPDATES, disclosure.ATTENDANCE)


def test_sums_and_histograms_are_those_of_the_metrics_that_are_measured() -> None:
    assert "counts and sums (accuracy, loss)" in seen({}, "auc", "accuracy", "loss")
    assert "score histograms of every class (AUC)" in seen({}, "auc", "accuracy", "loss")
    assert "histograms" not in seen({}, "accuracy", "loss")
    assert "sums" not in seen({}, "auc")


@pytest.mark.parametrize(("plan", "on_clients"), [({}, False), ({"evaluation": {"federated": False}}, True)])
def test_nothing_is_sent_for_evaluation_where_no_client_evaluates(plan: dict[str, object], on_clients: bool) -> None:
    assert "evaluation" not in seen(plan, "auc", "loss", on_clients=on_clients)


def test_scaling_and_averaged_buffers_are_seen_where_the_plan_has_them() -> None:
    assert disclosure.SCALING in server_sees(EVERYTHING, metrics=(), on_clients=False)
    assert disclosure.BUFFERS in server_sees(EVERYTHING, metrics=(), on_clients=False)


@pytest.mark.parametrize("page", ["README.md", "docs/explanation/protection.md"])
def test_the_pages_say_the_same_words(page: str) -> None:
    text = " ".join((ROOT / page).read_text().replace("**", "").replace("`", "").split())
    phrases = (disclosure.UPDATES, disclosure.ATTENDANCE, disclosure.SCALING, disclosure.BUFFERS,
               disclosure.SUMS, disclosure.HISTOGRAMS)  # fmt: skip
    assert [phrase for phrase in phrases if phrase not in text] == []


def test_the_page_about_protection_says_the_words_about_sums_too() -> None:
    text = " ".join((ROOT / "docs/explanation/protection.md").read_text().replace("**", "").replace("`", "").split())
    phrases = (disclosure.SUM, disclosure.GROUPED, disclosure.PHASES, disclosure.SUMMED_SCALING,
               disclosure.SUMMED_BUFFERS, disclosure.SUMMED_SUMS, disclosure.SUMMED_HISTOGRAMS)  # fmt: skip
    assert [phrase for phrase in phrases if phrase not in text] == []
