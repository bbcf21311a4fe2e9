"""The report: what it says, what it never says, and that no run can break it."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from sample_runs import bare_run, heart_run, many_run

from hansa.reporting import disclosure
from hansa.reporting.charts import Series, axis, line_chart
from hansa.reporting.charts_clients import histogram
from hansa.reporting.disclosure import server_sees
from hansa.reporting.figures import Figures, bytes_text, metric_text, number, read_plan, seconds_text
from hansa.reporting.findings import compare, findings, lede
from hansa.reporting.report import render_report

METRICS = ("auc", "accuracy", "loss")
LOADING = {"src", "srcset", "href", "xlink:href", "poster", "data", "action", "background"}


class Page(HTMLParser):
    """The visible words of a page, its tags, and everything that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self._hidden = 0
        self.feed(html)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden += tag in ("style", "script")
        self.loads += [value or "" for name, value in attrs if name in LOADING]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def figures(run: dict[str, Any]) -> Figures:
    return Figures(run["summary"], tuple(run["events"]))


def said(run: dict[str, Any]) -> str:
    return " ".join([lede(figures(run)), *findings(figures(run))])


def with_own(run: dict[str, Any], federated: float, alone: float) -> dict[str, Any]:
    """Return the run with one AUC for every client's own examples."""
    changed = copy.deepcopy(run)
    for row in changed["summary"]["metrics"]["per_client"]:
        row["auc"] = federated
    for row in changed["summary"]["baselines"]["local_only"]["clients"]:
        row["own"]["auc"] = alone
    return changed


def test_the_headline_compares_with_both_baselines() -> None:
    sentence = lede(figures(heart_run()))
    assert "Across 4 clients, federated training reached an AUC of 0.899" in sentence
    assert "0.060 better than the 4 models trained alone, on average (0.839)" in sentence
    assert "about the same as training on pooled data (0.901)" in sentence


def test_a_worse_federated_model_is_called_worse() -> None:
    run = heart_run()
    run["summary"]["metrics"]["federated"]["auc"]["overall"] = 0.7
    assert "0.139 worse than the 4 models trained alone" in lede(figures(run))
    assert "0.201 worse than training on pooled data" in lede(figures(run))


@pytest.mark.parametrize(
    ("federated", "alone", "words"),
    [
        (0.803, 0.800, "federation gains little or nothing on average"),
        (0.797, 0.800, "federation gains little or nothing on average"),
        (0.815, 0.800, "federation gains little on average"),
        (0.785, 0.800, "federation loses a little on average"),
        (0.900, 0.800, "federation gains on average"),
        (0.700, 0.800, "federation loses on average"),
    ],
)
def test_gains_on_own_examples_are_said_by_their_size(federated: float, alone: float, words: str) -> None:
    assert words in said(with_own(heart_run(), federated, alone))


def test_a_lower_loss_is_better_and_a_lower_auc_is_worse() -> None:
    assert compare("loss", 0.3, 0.4).against("it") == "0.100 better than it"
    assert compare("auc", 0.3, 0.4).against("it") == "0.100 worse than it"
    assert compare("rmse", 1000.0, 1001.0).kind == "same"
    assert compare("made-up", 1.0, 2.0).against("it") == "1.000 away from it"


def test_the_clients_that_gain_and_lose_most_are_named() -> None:
    words = said(heart_run())
    assert "Largest gain: Switzerland (0.024)." in words
    assert "Largest loss: VA Long Beach (0.009)." in words
    assert "better for 2, worse for 2 of 4 clients" in words


def test_a_client_whose_name_is_a_number_is_called_a_client() -> None:
    run = heart_run()
    local = run["summary"]["baselines"]["local_only"]["clients"]
    for position, rows in enumerate(zip(run["summary"]["metrics"]["per_client"], local, strict=True)):
        for row in rows:
            row["client"] = str(position)
    assert "Largest gain: client 2 (0.024)." in said(run)


def test_own_examples_are_compared_over_the_same_clients_only() -> None:
    run = with_own(heart_run(), 0.9, 0.8)
    run["summary"]["baselines"]["local_only"]["clients"] = run["summary"]["baselines"]["local_only"]["clients"][:2]
    assert "over the 2 clients with both" in said(run)


def test_an_undefined_metric_is_said_to_be_so_and_never_zero() -> None:
    run = heart_run()
    run["summary"]["metrics"]["per_client"][2]["auc"] = None
    run["summary"]["metrics"]["federated"]["auc"]["undefined"] = 1
    assert "AUC is not defined for 1 of 4 clients (its held-out examples are of one class only" in said(run)
    page = Page(render_report(**run))
    assert "not defined" in page.text
    assert "Not defined for 1 of 4 clients." in page.text
    assert not re.search(r"\b0\.000\b", page.text)


def test_without_evaluation_the_report_says_that_it_cannot_judge() -> None:
    words = said(bare_run())
    assert "It was not evaluated, so nothing here says how good it is: nothing is held out" in words
    assert "--set data.test_fraction=0.25." in words
    assert "The training loss went from 0.651 to 0.587." in words


def test_figures_that_look_alike_by_the_numbers_shown_are_about_the_same() -> None:
    assert compare("auc", 0.90549, 0.89951).against("it") == "about the same as it"
    assert compare("auc", 0.90551, 0.89949).against("it") == "0.007 better than it"
    assert compare("accuracy", 0.9, 0.895).kind == "same"


def test_the_table_shows_every_model_overall_and_on_own_examples() -> None:
    text = Page(render_report(**heart_run())).text
    assert "Federated one model for all 0.899 0.808 0.712" in text
    assert re.search(r"Each alone a model per client 0.839 ?0.741 to 0.887 0.804 0.688", text)
    assert "Pooled all data in one place 0.901 0.809 0.705" in text


def test_a_sample_of_local_models_stands_beside_the_federated_one_on_the_same_clients() -> None:
    text = Page(render_report(**many_run(clients=200, rounds=20))).text
    assert "16 of 200 clients" in text
    assert "Federated on those 16 clients" in text


def test_a_run_with_the_servers_examples_only_is_judged_on_them() -> None:
    run = heart_run()
    run["events"] = []
    run["summary"]["metrics"] = {"central": {"accuracy": 0.971, "loss": 0.1}, "federated": None}
    run["summary"]["baselines"] = {"centralised": {"overall": {}, "central": {"accuracy": 0.98}, "per_client": []}}
    text = Page(render_report(**run)).text
    assert "reached an accuracy of 0.971 on the server's own examples: 0.009 worse than training on pooled data" in text
    assert "Accuracy the server's own examples 0.971 0.980" in text
    assert "not defined" not in text


def test_the_privacy_note_is_exact() -> None:
    run = heart_run()
    text = Page(render_report(**run)).text
    assert "This was a simulation: all data were on one machine" in text
    assert "neither secure aggregation nor differential privacy" in text
    assert "update reaches the server in the clear" in text
    assert "they are here for comparison only" in text
    assert "summed score histograms of 1,000 bins; its error is at most 0.0007" in text
    run["plan_text"] += '\n[secure_aggregation]\nprotocol = "secagg-full"\n'
    text = Page(render_report(**run)).text
    assert "neither secure aggregation" not in text
    assert "The plan has secure aggregation. This report does not verify what it guarantees" in text
    run["plan_text"] = "not [ toml"
    assert "neither secure aggregation" not in Page(render_report(**run)).text


def test_the_privacy_note_lists_what_the_server_sees_as_check_does() -> None:
    run = heart_run()
    seen = server_sees(Figures({}, (), read_plan(run["plan_text"])).plan, metrics=METRICS, on_clients=True)
    assert len(seen) == 5
    text = Page(render_report(**run)).text
    assert [phrase for phrase in seen if phrase not in text] == []
    assert "could compute them from the sums" in text
    text = Page(render_report(**bare_run())).text
    assert disclosure.ATTENDANCE in text
    assert "for evaluation" not in text
    assert "score histograms" not in text


def test_values_from_files_are_escaped() -> None:
    run = heart_run()
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    for rows in (run["summary"]["metrics"]["per_client"], run["events"][0]["clients"]):
        rows[0]["client"] = attack
    run["summary"]["name"] = attack
    run["summary"]["notes"] = [attack]
    run["summary"]["stopped_because"] = attack
    run["summary"]["data"] |= {"names": [attack] * 4, "class_names": [attack, attack], "source": attack}
    run["summary"]["metrics"]["federated"][attack] = {"overall": 0.5}
    run["events"][-2]["federated"][attack] = {"overall": 0.5}
    run["plan_text"] += "# " + attack
    html = render_report(**run | {"environment": {attack: attack}})
    page = Page(html)
    assert "<script>alert" not in html
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert attack in page.text


@pytest.mark.parametrize("run", [heart_run(), many_run(clients=100, rounds=20), bare_run()], ids=str)
def test_nothing_is_loaded_from_anywhere(run: dict[str, Any]) -> None:
    html = render_report(**run)
    page = Page(html)
    assert [load for load in page.loads if not load.startswith(("#", "data:,"))] == []
    assert not re.search(r"https?://|//[a-z]|url\(|@import", html.split("<pre", maxsplit=1)[0].split("<script>")[0])
    assert "default-src 'none'" in html


def all_null(value: Any) -> Any:
    """Return the same structure with every number gone."""
    if isinstance(value, dict):
        return {key: inner if key in ("event", "round") else all_null(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [all_null(inner) for inner in value]
    return None if isinstance(value, int | float) else value


def huge(value: Any) -> Any:
    """Return the same structure with the largest finite numbers in both directions."""
    if isinstance(value, dict):
        return {key: inner if key in ("event", "round") else huge(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [huge(inner) if position % 2 else all_null(inner) for position, inner in enumerate(value)]
    if isinstance(value, float):
        return 1.7e308 if value > 0.5 else -1.7e308
    return 10**400 if isinstance(value, int) and value > 100 else value


def one_round(run: dict[str, Any]) -> dict[str, Any]:
    return run | {"events": [event for event in run["events"] if event["round"] == 1]}


def one_client(run: dict[str, Any]) -> dict[str, Any]:
    run = with_own(run, 0.8, 0.7)
    run["summary"]["metrics"]["per_client"] = run["summary"]["metrics"]["per_client"][:1]
    run["summary"]["data"] = {"clients": 1, "sizes": [5], "names": ["one"], "label_counts": [[5, 0]]}
    return run


@pytest.mark.parametrize(
    "run",
    [
        pytest.param({"summary": {}, "events": [], "plan_text": "", "environment": {}}, id="nothing"),
        pytest.param(bare_run(), id="no evaluation"),
        pytest.param(heart_run() | {"events": []}, id="no events"),
        pytest.param({**heart_run(), "summary": heart_run()["summary"] | {"baselines": None}}, id="no baselines"),
        pytest.param({**heart_run(), "summary": heart_run()["summary"] | {"baselines": {}}}, id="empty baselines"),
        pytest.param({**heart_run(), "summary": heart_run()["summary"] | {"data": None}}, id="no data"),
        pytest.param(all_null(heart_run()), id="all null"),
        pytest.param(all_null(many_run(clients=60, rounds=5)), id="all null, many clients"),
        pytest.param(huge(heart_run()), id="huge"),
        pytest.param(huge(many_run(clients=60, rounds=5)), id="huge, many clients"),
        pytest.param(one_round(heart_run()), id="one round"),
        pytest.param(one_client(heart_run()), id="one client"),
        pytest.param(many_run(clients=5000, rounds=3000), id="5,000 clients, 3,000 rounds"),
    ],
)
def test_no_run_breaks_the_report(run: dict[str, Any]) -> None:
    html = render_report(**run)
    assert html.endswith("</html>")
    assert len(html) < 2_000_000
    assert not re.search(r"\b(nan|inf|None(?! of)|Undefined)\b", Page(html).text)
    drawn = "".join(re.findall(r' d="([^"]*)"', html))
    assert not re.search(r"nan|inf|None", drawn)


def test_many_clients_are_a_histogram_and_the_worst_are_listed() -> None:
    text = Page(render_report(**many_run(clients=500, rounds=10))).text
    assert "Number of clients by AUC. Not defined for 10 of 500 clients." in text
    assert "The 25 clients with the worst AUC" in text


def test_numbers_are_read_and_written_with_care() -> None:
    assert [number(value) for value in (1, True, "1", None, float("nan"), float("inf"), 10**400)] == [1.0] + [None] * 6
    assert [metric_text(value) for value in (None, 0.0, 0.8994, 1e-9, 1e9)] == [
        "not defined",
        "0.000",
        "0.899",
        "1e-09",
        "1e+09",
    ]
    assert [bytes_text(value) for value in (0, 999, 1000, 19200, 2.5e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "19.2 kB",
        "2.5 GB",
    ]
    assert [seconds_text(value) for value in (0.0121, 3.2, 200, 7300)] == [
        "12.1 ms",
        "3.2 s",
        "3 min 20 s",
        "2 h 1 min",
    ]


def test_axes_have_round_ticks_around_the_values() -> None:
    assert axis([0.51, 0.88]).ticks == pytest.approx((0.5, 0.6, 0.7, 0.8, 0.9))
    assert axis([3.0, 3.0]).low <= 3.0 <= axis([3.0, 3.0]).high
    assert axis([1.0, 40.0], tight=True).ticks == (10.0, 20.0, 30.0, 40.0)
    spread = axis([0.01, 5000.0], log=True)
    assert spread.log
    assert spread.at(0.01) == 0
    assert spread.at(10.0) == pytest.approx(50)


def test_a_line_skips_missing_values_and_a_chart_without_values_is_none() -> None:
    chart = line_chart("Loss", [1, 2, 3], [Series("loss", "fed", [1.0, None, 3.0])])
    assert chart is not None
    assert chart.table.rows == (("1", "1.000"), ("2", ""), ("3", "3.000"))
    assert line_chart("Loss", [1, 2], [Series("loss", "fed", [None, None])]) is None
    assert histogram("Loss", [Series("loss", "fed", [None])]) is None


def test_a_histogram_counts_every_value_once() -> None:
    chart = histogram("AUC", [Series("after", "fed", [0.1 * i for i in range(11)] + [None])])
    assert chart is not None
    assert sum(int(row[1]) for row in chart.table.rows) == 11
