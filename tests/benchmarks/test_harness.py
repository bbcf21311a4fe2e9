"""The harness's own arithmetic; no peer is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from math import prod

import numpy as np
import pytest
from benchmarks import results
from benchmarks.learning import loss
from benchmarks.process_tree import descendants, proportional, resident
from benchmarks.profiling import owner
from benchmarks.running import _Times
from benchmarks.start import in_order
from benchmarks.suite import rotated
from benchmarks.tasks import TASKS


@pytest.mark.parametrize(("name", "count"), [("A", 1_690_046), ("B", 9_610), ("C", 1_010)])
def test_models_have_the_stated_sizes(name, count):
    assert sum(map(prod, TASKS[name].parameters.values())) == count


def test_operations_of_a_round_of_task_a_are_about_344_gflop():
    task = TASKS["A"]
    assert task.flops_of_an_example * 94 * task.cohort / 1e9 == pytest.approx(344, rel=0.02)


def test_each_repetition_begins_with_another_system():
    orders = [rotated("abc", number) for number in range(4)]
    assert ["".join(order) for order in orders] == ["abc", "bca", "cab", "abc"]


def test_parameters_come_into_the_tasks_order_from_torch_and_from_linear_models():
    weight, bias = np.arange(1000.0).reshape(10, 100), np.arange(10.0)
    torch_like = in_order({"1.bias": bias, "1.weight": weight}, TASKS["C"])
    linear = in_order({"weight": weight.T, "intercept": bias}, TASKS["C"])
    for ordered in (torch_like, linear):
        assert list(ordered) == ["0.weight", "0.bias"]
        np.testing.assert_array_equal(ordered["0.weight"], weight)
    with pytest.raises(ValueError, match="shape"):
        in_order({"1.bias": bias, "1.weight": weight.T}, TASKS["C"])


def test_a_model_of_zeros_has_the_loss_of_guessing(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.learning.DATA", tmp_path)
    (tmp_path / "B").mkdir()
    np.savez(tmp_path / "B" / "sample.npz", x=np.ones((5, 64), np.float32), y=np.arange(5))
    zeros = {name: np.zeros(shape, np.float32) for name, shape in TASKS["B"].parameters.items()}
    assert loss(TASKS["B"], zeros) == pytest.approx(np.log(10))


def test_ratios_are_against_the_fastest_peer_and_no_reference():
    def system(speed, *, hansa=False, reference=False):
        figures = {"updates_per_second": speed, "peak_rss": 100, "peak_pss": 50, "first_round": 2.0}
        return figures | {"hansa": hansa, "reference": reference}

    systems = {
        "hansa": system(800.0, hansa=True),
        "slow": system(50.0),
        "fast": system(100.0),
        "loop": system(500.0, reference=True),
        "broken": {"failure": "no wheel", "hansa": False, "reference": False},
    }
    assert results.fastest_peer({"systems": systems}) == "fast"
    assert results.ratios(systems["hansa"], systems["fast"]) == {
        "speed": 8.0,
        "rss": 1.0,
        "pss": 1.0,
        "first_round": 1.0,
    }


def test_rounds_are_seen_as_their_lines_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    times = _Times(path)
    times.look()
    assert times.ended == []
    line = '{"event": "round", "round": 1}\n'
    path.write_text(line + line[:10])
    times.look()
    assert len(times.ended) == 1
    path.write_text(line + line + '{"event": "summary"}\n')
    times.look()
    assert len(times.ended) == 2


def test_children_are_found_and_weighed():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        until = time.monotonic() + 10
        while resident(child.pid) < 5e6 and time.monotonic() < until:
            time.sleep(0.01)
        assert child.pid in descendants(os.getpid())
        assert 0 < proportional(child.pid) <= resident(child.pid) * 1.5
        child.communicate(b"\n")
    assert resident(child.pid) == 0


def test_time_belongs_to_modules_and_libraries():
    assert owner("/x/src/hansa/core/streams.py", "mix") == "hansa.core.streams"
    assert owner("/x/lib/python3.11/site-packages/torch/nn/functional.py", "linear") == "torch"
    assert owner("~", "<built-in method torch._C._nn.linear>") == "torch"
