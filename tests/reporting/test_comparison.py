"""The comparison of runs: its rows for a terminal and its page."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from sample_runs import bare_run, heart_run

from hansa.reporting.comparison import comparison_rows, differences, overview, render_comparison, unlike_note


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
    assert "were tested on different examples" in html
    assert "were tested on different examples" not in render_comparison(two_runs())


def test_no_set_of_runs_breaks_the_page() -> None:
    for runs in ([], [bare_run()], [{}], [heart_run()] * 40):
        assert render_comparison(runs).endswith("</html>")


def unlike(**changes: str) -> list[dict[str, Any]]:
    """Return the heart run, and one of other examples whose plan has some texts replaced."""
    other = copy.deepcopy(heart_run())
    other["summary"]["data_sha256"] = "0" * 64
    for old, new in changes.values():
        assert old in other["plan_text"]
        other["plan_text"] = other["plan_text"].replace(old, new)
    return [heart_run(), other]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("seed = 7", "seed = 8"), "seed"),
        (('source = "heart"', 'source = "wsn"'), "data"),
        (('label = "num"', 'label = "age"'), "label"),
        (("test_fraction = 0.25", "test_fraction = 0.5"), "test_fraction"),
        (('kind = "natural"', 'kind = "iid"'), "partition"),
        (("rounds = 40", "rounds = 41"), "data"),
    ],
)
def test_runs_that_were_tested_on_different_examples_are_said_not_to_compare(
    change: tuple[str, str], named: str
) -> None:
    runs = unlike(change=change)
    assert unlike_note(runs) == (
        f"The runs were tested on different examples ({named} differ{'' if named == 'data' else 's'}): "
        "their figures do not compare."
    )
    assert "their figures do not compare" in render_comparison(runs)


def test_runs_of_the_same_examples_need_no_note() -> None:
    assert unlike_note(two_runs()) == ""
    assert unlike_note(unlike(change=("test_fraction = 0.25", "test_fraction = 0.25\nvalidation_fraction = 0.1"))) == ""
    assert "do not compare" not in render_comparison(two_runs())


def test_columns_of_different_data_are_not_compared() -> None:
    column = '\n[[features.columns]]\nname = "age"\nlow = 0\nhigh = 120\n'
    runs = unlike(change=('label = "num"', 'label = "sex"'))
    runs[1]["plan_text"] += column
    assert not any(name.startswith("features.columns") for name in rows_by_name(runs))
    runs[1]["summary"]["data_sha256"] = runs[0]["summary"]["data_sha256"]
    assert any(name.startswith("features.columns") for name in rows_by_name(runs))


def test_an_empty_list_is_not_set_against_its_first_entry() -> None:
    runs = two_runs()
    runs[0]["plan_text"] += "\n[trainer2]\nhooks = []\narguments = {}\n"
    runs[1]["plan_text"] += '\n[trainer2]\nhooks = [{ kind = "prox" }]\narguments = { width = 3 }\n'
    rows = rows_by_name(runs)
    assert rows["trainer2.hooks[0].kind"] == ["absent", '"prox"']
    assert not {"trainer2.hooks", "trainer2.arguments"} & set(rows)


def eight_runs() -> list[dict[str, Any]]:
    """Return runs that differ in the server optimizer, the metrics and the time."""
    runs = []
    for number in range(8):
        run = copy.deepcopy(heart_run()) | {"label": f"a-method-with-a-long-name-{number}"}
        kind = "adam" if number % 2 else "sgd"
        run["plan_text"] += f'\n[server_optimizer]\nkind = "{kind}"\nlearning_rate = {0.1 + number % 4}\n'
        run["summary"]["metrics"]["federated"]["auc"]["overall"] = 0.8 + number / 100
        run["summary"]["metrics"]["federated"]["loss"]["overall"] = 0.5 - number / 100
        runs.append(run)
    return runs


def test_many_runs_are_rows_with_the_figures_that_differ() -> None:
    header, *rows = overview(eight_runs(), targets={"federated.auc": 0.88})
    assert len(rows) == 8
    assert header[:2] == ["", "AUC, all examples"]
    assert header[2:] == ["loss, all examples"]
    assert "bytes up, total" not in header, "equal in all"
    assert rows[3][:2] == ["a-method-with-a-long-name-3", "0.830"]


def test_many_plans_are_compared_by_value_with_the_runs_that_have_it() -> None:
    found = dict(differences(eight_runs()))
    names = [f"a-method-with-a-long-name-{number}" for number in range(8)]
    assert found["server_optimizer.kind"] == [('"sgd"', names[::2]), ('"adam"', names[1::2])]
    assert list(found) == ["server_optimizer.kind", "server_optimizer.learning_rate"]


def test_the_page_of_many_runs_has_a_row_for_each() -> None:
    html = render_comparison(eight_runs())
    assert html.count('<th scope="row">a-method-with-a-long-name-3') == 1
    assert "All figures" in html


def test_several_kinds_of_pieces_that_differ_are_one_method() -> None:
    runs = eight_runs()
    for run in runs[:2]:
        run["plan_text"] = run["plan_text"].replace("[cohort]", "[[trainer.hooks]]\nkind = 'prox'\n\n[cohort]")
    found = dict(differences(runs))
    names = [f"a-method-with-a-long-name-{number}" for number in range(8)]
    assert found["method"][0] == ("hooks prox, server optimizer sgd", names[:1])
    assert not any(key.endswith(".kind") for key in found)
