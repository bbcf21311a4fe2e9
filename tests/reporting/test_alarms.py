"""A model that is worse than untrained is no success, whatever its accuracy."""

from __future__ import annotations

import copy
from typing import Any

from sample_runs import bare_run, heart_run

from hansa.reporting.alarms import alarms
from hansa.reporting.figures import Figures
from hansa.reporting.findings import lede
from hansa.reporting.report import render_report


def figures(run: dict[str, Any]) -> Figures:
    return Figures(run["summary"], tuple(run["events"]))


def with_loss(federated: float | None = None, pooled: float | None = None, own: float | None = None) -> dict[str, Any]:
    """Return the heart run, whose untrained loss is 0.690, with other final losses."""
    run = copy.deepcopy(heart_run())
    baselines = run["summary"]["baselines"]
    if federated is not None:
        run["summary"]["metrics"]["federated"]["loss"]["overall"] = federated
    if pooled is not None:
        baselines["centralised"]["overall"]["loss"] = pooled
    for row in baselines["local_only"]["clients"] if own is not None else ():
        row["own"]["loss"] = own
    return run


def test_a_run_that_learned_raises_no_alarm() -> None:
    assert alarms(figures(heart_run())) == []
    assert alarms(figures(bare_run())) == []


def test_a_loss_far_above_the_untrained_models_is_said_first_and_nothing_is_called_better() -> None:
    run = with_loss(federated=6.9)
    (said,) = alarms(figures(run))
    assert said == (
        "The federated model is worse than untrained: its loss on all clients' held-out examples is 10 times that of "
        "the untrained model (6.900 against 0.690). The step size is likely too large; comparisons mean little."
    )
    assert lede(figures(run)).endswith("reached an AUC of 0.899 on all clients' held-out examples.")
    html = render_report(**run)
    assert html.index("worse than untrained") < html.index("federated training reached")


def test_a_loss_a_little_above_is_said_with_its_numbers() -> None:
    (said,) = alarms(figures(with_loss(federated=0.75)))
    assert "is above that of the untrained model (0.750 against 0.690)" in said
    assert "step size" in said


def test_the_servers_examples_count_too() -> None:
    run = heart_run()
    for event in run["events"]:
        if event["event"] == "evaluation":
            event["central"] = {"loss": 0.7}
    run["summary"]["metrics"]["central"] = {"loss": 2.1}
    (said,) = alarms(figures(run))
    assert "on the server's own examples is 3 times" in said


def test_a_baseline_that_is_worse_than_untrained_is_named_and_not_compared_with() -> None:
    run = with_loss(pooled=2.76)
    (said,) = alarms(figures(run))
    assert said.startswith("Pooled training is worse than untrained: its loss")
    assert "4 times" in said
    assert "pooled" not in lede(figures(run))
    assert "trained alone" in lede(figures(run))


def test_clients_alone_are_judged_on_their_own_examples() -> None:
    run = with_loss(own=1.4)
    (said,) = alarms(figures(run))
    assert said.startswith(
        "The clients' own models are worse than untrained: their loss on their own held-out examples"
    )
    assert "2.02 times" in said or "2 times" in said
    assert "trained alone" not in lede(figures(run))
