"""Sources are listed with what a user should know, and refuse settings that mean nothing to them."""

from __future__ import annotations

import pytest

from hansa import data as room
from hansa.core.errors import PlanError
from hansa.core.registry import PIECES
from hansa.core.sections import Data, Features


def problems(features=None, **settings):
    with pytest.raises(PlanError) as caught:
        room.load(Data(**settings), features, 0)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_every_registered_source_is_listed_by_its_own_name():
    listed = room.listing()
    assert {each.name for each in listed} == set(PIECES["source"])
    assert all(each.summary and each.licence and each.origin for each in listed)
    assert {each.name for each in listed if "path" in each.needs} == {"mnist", "npz", "csv", "parquet", "folder"}


def test_all_unwanted_settings_are_found_at_once():
    found = problems(source="shakespeare", path="x", client="y", memory_map="always", features=Features(label="z"))
    assert set(found) == {"data.path", "data.client", "data.memory_map", "features"}
    assert "'shakespeare' does not take it" in found["data.path"]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"source": "heart", "path": "x"}, "data.path"),
        ({"source": "npz", "path": "x", "client": "c"}, "data.client"),
        ({"source": "mnist"}, "data.path"),
        ({"source": "csv", "path": "x"}, "features.label"),
        ({"source": "fashion-mnist-small", "central_path": "x"}, "data.central_path"),
    ],
)
def test_each_setting_is_a_problem_at_its_key(settings, path):
    assert path in problems(**settings)


def test_an_unknown_source_gets_a_hint():
    assert "did you mean 'heart'" in problems(source="hart")["data.source"]


def test_a_source_of_the_users_own_is_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_source.py").write_text(
        "from hansa.data.shipped import wsn\n"
        "def readings(data, features):\n    return wsn.read(data, features)\n"
        "def nothing(data, features):\n    return None\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(room.load(Data(source="my_source:readings"), None, 0).train.names) == 8
    for name in ("my_source:nothing", "my_source:number", "my_source:other", "no_such_module:x"):
        assert "data.source" in problems(source=name)
