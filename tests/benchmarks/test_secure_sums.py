"""What the benchmark of secure sums says of figures that were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks import secure_sums
from benchmarks.secure_sums import BESIDE, Measured, grids, met


def measured(system, client_ms, server_s):
    runs = [{"figures": {"client_ms": client_ms * times, "server_s": server_s * times}} for times in (1, 0.5, 9)]
    return Measured(system, BESIDE, runs)


@pytest.mark.parametrize(("peer", "enough"), [((201, 10.1), True), ((199, 10.1), False), ((201, 9.9), False)])
def test_a_peer_that_is_too_near_is_an_aim_missed(peer, enough):
    both = [measured("hansa", 20, 0.1), measured("flower", *peer)]
    assert met(both) is enough
    assert all(row[-1] == "met" for row in grids(both)[0].rows) is enough


def test_a_figure_above_its_aim_is_missed_and_its_floor_shown_apart():
    mine = measured("hansa", 34, 0.15)
    assert met([mine])
    rows = grids([mine])[0].rows
    assert [row[3:] for row in rows] == [("31.95", "35", "missed, met"), ("0.1905", "0.2", "met, met")]
    assert not met([measured("hansa", 36, 0.15)])


def test_what_failed_is_said_and_meets_nothing(monkeypatch):
    def fails(work):
        raise secure_sums.UnavailableError("no such command")

    monkeypatch.setattr(secure_sums, "_hansa", fails)
    said = []
    result = secure_sums.measure([replace(BESIDE, clients=7)], [], 1, said.append)
    assert [one.failure for one in result] == ["no such command"] * 2
    assert len(said) == 2
    assert not met(result)
    assert "failed" in grids(result)[-1].rows[0]
