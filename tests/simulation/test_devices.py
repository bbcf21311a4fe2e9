"""Devices: how long, when, and whether at all; and files of them, checked line by line."""

from __future__ import annotations

import math
import time
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa import Plan
from hansa.algorithms.schedule import Buffered, Sync
from hansa.core.errors import DataError, PlanError
from hansa.core.sections import DeviceClass, Devices
from hansa.simulation.devices import PRESETS, fleet_of, needs_times
from hansa.testing import QuadraticTrainer
from hansa.training.optimizers import Sgd

HOUR = 3600.0
NAMES = ("a", "b", "c")


def fleet(devices, names=NAMES, seed=0):
    sections = {"name": "x", "rounds": 1, "model": {"factory": "any:thing"}, "seed": seed}
    trainer = QuadraticTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
    return fleet_of(Plan(**sections, trainer=trainer, devices=devices), names)


def of(**settings):
    plain = {"name": "one", "down_mbit": 8.0, "up_mbit": 4.0} | settings
    return fleet(Devices(classes=(DeviceClass(**plain),), examples_per_second=50.0))


# How long


def test_seconds_are_download_training_and_upload_with_a_latency_each_way():
    found = of(speed=2.0, latency=0.5).seconds(np.arange(2), np.array([100.0, 200.0]), down_bytes=2e6, up_bytes=1e6)
    assert found.tolist() == pytest.approx([0.5 + 2 + 1 + 0.5 + 2, 0.5 + 2 + 2 + 0.5 + 2])


def test_a_client_is_the_same_whoever_is_asked_about_beside_it_and_however_often():
    phones = fleet(Devices(preset="phones"))
    many = np.arange(1000)
    some = np.array([999, 7, 500])
    ask = {"examples": 10.0, "down_bytes": 1e6, "up_bytes": 1e6}
    assert phones.seconds(some, **ask).tolist() == phones.seconds(many, **ask)[some].tolist()
    assert phones.reachable_for(some, 1e4).tolist() == phones.reachable_for(many, 1e4)[some].tolist()
    assert phones.lost_after(some, some).tolist() == phones.lost_after(many, many)[some].tolist()
    assert phones.lost_after(some, some).tolist() != phones.lost_after(some, some + 1).tolist()
    assert fleet(Devices(preset="phones"), seed=1).seconds(some, **ask).tolist() != phones.seconds(some, **ask).tolist()


def test_speeds_are_log_normal_around_the_median_of_the_class():
    drawn = of(speed=3.0, speed_spread=0.5).seconds(np.arange(20000), 1.0, down_bytes=0, up_bytes=0)
    logs = np.log(1 / (50 * drawn))
    assert np.median(logs) == pytest.approx(math.log(3.0), abs=0.02)
    assert np.std(logs) == pytest.approx(0.5, abs=0.02)


def test_classes_are_drawn_by_their_shares():
    classes = (DeviceClass(name="few", share=1), DeviceClass(name="many", share=3))
    drawn = fleet(Devices(classes=classes)).class_of(np.arange(20000))
    assert np.bincount(drawn).tolist() == pytest.approx([5000, 15000], rel=0.05)


def test_a_million_clients_cost_nothing_until_they_are_drawn():
    began = time.perf_counter()
    phones = fleet(Devices(preset="phones"), names=range(10**6))
    phones.seconds(np.array([10**6 - 1]), 1.0, down_bytes=1, up_bytes=1)
    assert time.perf_counter() - began < 0.5


# When


def test_availability_repeats_and_runs_over_the_end_of_the_period():
    night = of(available="22-30")
    at = [night.reachable_for(np.array([0]), hour * HOUR)[0] / HOUR for hour in (21, 22, 23.5, 24, 29, 30, 46)]
    assert at == pytest.approx([0, 8, 6.5, 6, 1, 0, 8])


@pytest.mark.parametrize(
    ("hours", "at", "left"),
    [("0-6 22-24", 23, 7), ("5-8 22-30", 23, 9), ("8-12 10-14", 9, 5), ("0-12 12-24", 3, math.inf), ("", 3, math.inf)],
)
def test_hours_that_meet_are_one(hours, at, left):
    assert of(available=hours).reachable_for(np.array([0]), at * HOUR)[0] / HOUR == pytest.approx(left)


def test_each_client_has_its_own_shift_within_the_limit():
    shifted = of(available="8-20", shift_hours=2.0)
    everyone = np.arange(2000)
    assert (shifted.reachable_for(everyone, 10.01 * HOUR) > 0).all()
    assert (shifted.reachable_for(everyone, 5.99 * HOUR) == 0).all()
    assert (shifted.reachable_for(everyone, 8 * HOUR) > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_the_run_begins_at_the_hour_that_is_given():
    classes = (DeviceClass(name="one", available="9-17"),)
    begun = fleet(Devices(classes=classes, start_hour=16.0))
    assert begun.reachable_for(np.array([0]), 0.0).tolist() == [HOUR]
    assert not begun.always
    assert fleet(Devices(preset="hospitals")).always


@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(1, 24)), min_size=1, max_size=4),
    st.floats(0, 100, allow_nan=False),
)
def test_reachable_means_that_some_interval_holds_the_hour(intervals, hour):
    text = " ".join(f"{start}-{start + length}" for start, length in intervals)
    left = of(available=text).reachable_for(np.array([0]), hour * HOUR)[0]
    hour = hour * HOUR / HOUR % 24
    inside = any(start <= now < start + length for start, length in intervals for now in (hour, hour + 24))
    assert (left > 0) == inside


# Whether at all


def test_losses_come_at_the_rate_that_is_given():
    drawn = of(losses_per_hour=2.0).lost_after(np.arange(20000), np.arange(20000))
    assert drawn.mean() / HOUR == pytest.approx(0.5, rel=0.03)
    assert np.isinf(of().lost_after(np.arange(3), np.arange(3))).all()


# Settings


def test_every_preset_is_named_in_the_section_and_builds():
    named = get_args(get_args(get_args(get_type_hints(Devices, include_extras=True)["preset"])[0])[0])
    assert set(named) == set(PRESETS)
    for preset in PRESETS:
        assert np.isfinite(fleet(Devices(preset=preset)).seconds(np.arange(9), 1.0, down_bytes=1, up_bytes=1)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "exactly one of preset, path and classes"),
        ({"preset": "phones", "path": "x.csv"}, "exactly one of preset, path and classes"),
        ({"classes": [{"name": "x"}, {"name": "x"}]}, "names a class twice"),
        ({"classes": [{"name": "x", "available": "8-"}]}, "write intervals in hours"),
        ({"classes": [{"name": "x", "available": "9-8"}]}, "write intervals in hours"),
        ({"classes": [{"name": "x", "available": "20-30"}], "period_hours": 12.0}, "raise it, or mend the hours"),
    ],
)
def test_devices_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(PlanError, match=said):
        fleet(settings)


def test_a_schedule_that_needs_times_is_refused_without_devices():
    assert [needs_times(each) for each in (Sync(), Sync(report_goal=3))] == [False, False]
    for schedule, said in (
        (Buffered(buffer_size=1, concurrency=1), "depends on when clients report"),
        (Sync(round_deadline=9.0), "depends on who is late or lost"),
    ):
        sections = {"name": "x", "rounds": 1, "model": {"factory": "any:thing"}, "schedule": schedule}
        trainer = QuadraticTrainer(optimizer=Sgd(learning_rate=0.1), steps=1)
        with pytest.raises(PlanError, match=said):
            fleet_of(Plan(**sections, trainer=trainer), NAMES)


# Files


def from_file(tmp_path, text, names=NAMES):
    path = tmp_path / "devices.csv"
    path.write_text(text)
    return fleet(Devices(path=str(path)), names)


def test_a_file_of_classes_is_read(tmp_path):
    found = from_file(tmp_path, "class,share,speed,available\nfast,1,2.5,\nslow,3,0.5,22-30\n")
    assert found.classes == (
        DeviceClass(name="fast", share=1.0, speed=2.5),
        DeviceClass(name="slow", share=3.0, speed=0.5, available="22-30"),
    )


def test_a_file_of_clients_is_matched_by_name_whatever_its_order(tmp_path):
    found = from_file(tmp_path, "client,speed\nc,3\nelsewhere,9\na,1\n\nb,2\n")
    seconds = found.seconds(np.array([0, 1, 2]), 600.0, down_bytes=0, up_bytes=0)
    assert seconds.tolist() == pytest.approx([6.0, 3.0, 2.0])


def test_every_wrong_line_is_told(tmp_path):
    text = "client,speed,available\na,fast,\nb,-1,\nb,1\nc,1,8to9\n,1,\na2,1,\na2,1,\n"
    with pytest.raises(DataError) as caught:
        from_file(tmp_path, text)
    assert caught.value.code == "HANSA-DATA-INVALID"
    for said in (
        "line 2, speed: must be a valid number",
        "line 3, speed: must be greater than 0",
        "line 4: it has 2 cells, and the header 3",
        "line 5: available holds '8to9'",
        "line 6: the client has no name",
        "line 8: client 'a2' comes twice",
    ):
        assert said in caught.value.found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'its first column must be "class" or "client"'),
        ("name,speed\n", 'its first column must be "class" or "client"'),
        ("class,sped\nx,1\n", "unknown column 'sped'; did you mean 'speed'"),
        ("client,share\na,1\n", 'has no "share"'),
        ("class,speed,speed\nx,1,2\n", "'speed' comes twice"),
        ("class,speed\n", "no row below its header"),
        ("client,speed\na,1\nb,1\n", "no row for client 'c'"),
    ],
)
def test_a_file_that_is_no_table_of_devices_is_refused(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        from_file(tmp_path, text)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="relative to the folder"):
        fleet(Devices(path="nowhere.csv"))
