"""Simulated time in the report and in the comparison."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from sample_runs import heart_run

from hansa.reporting.clock_section import clock_section, unit_of
from hansa.reporting.comparison import comparison_rows, overview, render_comparison
from hansa.reporting.figures import Figures
from hansa.reporting.report import render_report


def timed_run(seconds: float = 90.0, name: str = "timed") -> dict[str, Any]:
    """Return the heart run with a clock: five are picked a round, four report, one is late."""
    run: dict[str, Any] = copy.deepcopy(heart_run())
    rounds = 0
    for event in run["events"]:
        if event["event"] == "round":
            rounds += 1
            event |= {"simulated_seconds": seconds * rounds, "selected": 5, "reported": 4, "late": 1, "dropped_out": 0}
            event |= {"bytes_up_total": 1000.0, "bytes_down_total": 2000.0, "participants": 4}
    run["summary"]["name"] = name
    run["summary"]["simulated"] = {
        "seconds": seconds * rounds, "selected": 5 * rounds, "reported": 4 * rounds, "late": rounds, "dropped_out": 0,
        "abandoned": 2, "participants": 4, "population": 9,
    }  # fmt: skip
    return run


def figures(run: dict[str, Any]) -> Figures:
    return Figures(run["summary"], tuple(run["events"]))


def test_a_run_without_a_clock_has_no_section() -> None:
    assert clock_section(figures(heart_run())) is None
    page = render_report(**{"environment": {}, **{k: v for k, v in heart_run().items() if k != "environment"}})
    assert "In simulated time" not in page


def test_the_section_tells_totals_and_draws_metrics_over_the_clock() -> None:
    section = clock_section(figures(timed_run()))
    assert section is not None
    assert dict(section["facts"]) == {
        "Simulated time": "1 h 0 min",
        "Picked": "200",
        "Reported in time": "160",
        "Late": "40",
        "Dropped out": "0",
        "Rounds tried again": "2",
        "Clients that took part": "4 of 9",
    }
    titles = [chart.title for chart in section["charts"]]
    assert titles[:2] == ["AUC", "Accuracy"]
    assert titles[-2:] == ["Picked clients", "Simulated length of a round"]
    auc = section["charts"][0]
    assert auc.x_label == "simulated minutes"
    assert auc.table.rows[0][0] == "0"
    assert auc.table.rows[-1][0] == "60"


def test_the_report_has_the_section_and_its_link() -> None:
    run = timed_run()
    page = render_report(**{"environment": {}, **{k: v for k, v in run.items() if k != "environment"}})
    assert 'id="clock"' in page
    assert 'href="#clock"' in page
    assert "40 kB" in page  # bytes up in total are those of all that were picked


def test_a_comparison_counts_the_simulated_time_to_a_target() -> None:
    runs = [timed_run(), timed_run(10.0, "faster"), heart_run()]
    targets = {"federated.auc": 0.88, "federated.accuracy": 2.0}
    rows = {row[0]: row[1:] for row in comparison_rows(runs, targets=targets)}
    assert rows["rounds to federated.auc 0.880"] == ["20", "20", "20"]
    assert rows["simulated time to federated.auc 0.880"] == ["30 min 0 s", "3 min 20 s", "not recorded"]
    assert rows["simulated time to federated.accuracy 2.000"] == ["not reached"] * 3
    assert rows["simulated time"] == ["1 h 0 min", "6 min 40 s", "not recorded"]
    assert rows["clients that took part"] == ["4 of 9", "4 of 9", "not recorded"]
    assert rows["clients late or too stale, total"] == ["40", "40", "not recorded"]
    assert "AUC over simulated time" in render_comparison(runs)
    header = overview([*runs, timed_run(1.0, "fastest")], targets=targets)[0]
    assert "simulated time to federated.auc 0.880" in header


def test_a_comparison_of_runs_without_a_clock_is_as_it_was() -> None:
    rows = [row[0] for row in comparison_rows([heart_run(), heart_run()], targets={"federated.auc": 0.88})]
    assert not [name for name in rows if "simulated" in name]
    assert "simulated time</h2>" not in render_comparison([heart_run()])


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [(3.0, "seconds"), (239.0, "seconds"), (240.0, "minutes"), (4 * 3600.0, "hours"), (4e5, "days")],
)
def test_time_is_shown_in_the_unit_that_fits(seconds: float, unit: str) -> None:
    assert unit_of(seconds)[0] == unit
