"""The comparison of runs: its rows for a terminal and its page."""

from __future__ import annotations

import copy
from typing import Any

from sample_runs import bare_run, heart_run

from hansa.reporting.comparison import comparison_rows, render_comparison


def two_runs() -> list[dict[str, Any]]:
    """Return the heart run and another with Adam that rose and fell."""
    other = copy.deepcopy(heart_run())
    other["plan_text"] = other["plan_text"].replace('"sgd", learning_rate = 0.1', '"adam", learning_rate = 0.01')
    other["plan_text"] = other["plan_text"].replace('name = "Heart', 'name = "Another heart')
    for event in other["events"]:
        if event["event"] == "evaluation" and event["round"] == 15:
            event["federated"]["auc"]["overall"] = 0.95
    return [heart_run(), other]


def rows_by_name(runs: list[dict[str, Any]], **options: Any) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in comparison_rows(runs, **options)}


def test_rows_hold_final_and_best_metrics_bytes_and_seconds() -> None:
    rows = rows_by_name(two_runs())
    assert rows[""] == ["Heart disease across four hospitals (1)", "Heart disease across four hospitals (2)"]
    assert rows["AUC, all examples"] == ["0.899", "0.899"]
    assert rows["best AUC, all examples"] == ["0.899 (round 40)", "0.950 (round 15)"]
    assert rows["bytes up, total"] == ["19.2 kB", "19.2 kB"]
    assert rows["seconds, total"] == ["480 ms", "480 ms"]


def test_plans_are_compared_by_key_without_their_names() -> None:
    rows = rows_by_name(two_runs())
    assert rows["trainer.optimizer.kind"] == ['"sgd"', '"adam"']
    assert rows["trainer.optimizer.learning_rate"] == ["0.1", "0.01"]
    assert not {"name", "trainer.epochs", "cohort.kind"} & set(rows)


def test_a_key_that_one_plan_lacks_is_absent() -> None:
    rows = rows_by_name([heart_run(), bare_run()])
    assert rows["transforms[0].kind"] == ['"weigh-by-size"', "absent"]
    assert rows["AUC, all examples"] == ["0.899", "not measured"]


def test_rounds_to_a_target_count_for_higher_and_for_lower_metrics() -> None:
    targets = {"federated.auc": 0.88, "federated.loss": 0.41, "central.accuracy": 0.5}
    rows = rows_by_name(two_runs(), targets=targets)
    assert rows["rounds to federated.auc 0.880"] == ["20", "15"]
    assert rows["rounds to federated.loss 0.410"] == ["20", "20"]
    assert rows["rounds to central.accuracy 0.500"] == ["not reached", "not reached"]


def test_every_row_has_a_cell_per_run() -> None:
    runs = [*two_runs(), bare_run(), {"summary": {}, "events": [], "plan_text": ""}]
    assert {len(row) for row in comparison_rows(runs)} == {5}


def test_the_page_escapes_labels_and_warns_of_different_data() -> None:
    runs = [heart_run() | {"label": "<script>alert(1)</script>"}, bare_run()]
    html = render_comparison(runs)
    assert "<script>alert" not in html
    assert "These runs have different data" in html
    assert "These runs have different data" not in render_comparison(two_runs())


def test_no_set_of_runs_breaks_the_page() -> None:
    for runs in ([], [bare_run()], [{}], [heart_run()] * 40):
        assert render_comparison(runs).endswith("</html>")
