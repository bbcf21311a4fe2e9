"""Sections from tables and back: key paths, bounds, help, and what cannot be said."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest
from annotated_types import Ge

from hansa.algorithms.plan import Plan
from hansa.core import pieces
from hansa.core.errors import CATALOGUE, HansaError, PlanError, Problem
from hansa.core.registry import PIECES, import_named, kind_of, nearest, resolve
from hansa.core.schema import Doc, Family, Unsound, build, build_piece, fields_of, from_mapping, given_only, to_mapping
from hansa.core.sections import Column, Data, Evaluation, Features, Model, Stopping

SECTIONS = [Plan, Data, Column, Features, Model, Evaluation, Stopping]
FAMILIES = [
    "sampler",
    "hook",
    "transform",
    "aggregator",
    "server_optimizer",
    "client_optimizer",
    "trainer",
    "partition",
]
EXTRAS = {"torch": "torch", "sklearn": "digits", "pyarrow": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A section within sections."""

    size: Annotated[int, Ge(1), Doc("a size")]
    names: Annotated[tuple[str, ...], Doc("names")] = ()

    def __post_init__(self) -> None:
        if self.size == 13:
            raise Unsound("size must not be 13.")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Every shape that a field can have."""

    one: Annotated[Inner, Doc("a section")]
    maybe: Annotated[Inner | None, Doc("a section or nothing")] = None
    many: Annotated[tuple[Inner, ...], Doc("sections")] = ()
    piece: Annotated[pieces.Aggregator | None, Family("aggregator"), Doc("a piece")] = None
    pieces: Annotated[tuple[pieces.Transform, ...], Family("transform"), Doc("pieces")] = ()
    named: Annotated[Mapping[str, pieces.ServerOptimizer], Family("server_optimizer"), Doc("named pieces")] = field(
        default_factory=dict
    )
    numbers: Annotated[tuple[tuple[int, ...], ...], Doc("nested arrays")] = ()
    anything: Annotated[Mapping[str, Any], Doc("anything")] = field(default_factory=dict)


def found(mapping, path=""):
    return {problem.path: problem.message for problem in from_mapping(Outer, mapping, path)[1]}


def test_problems_of_sections_within_arrays_and_tables_have_their_whole_path():
    assert set(
        found(
            {
                "one": {"size": 0},
                "maybe": {"size": 1, "names": ["a", 2, "b", 3]},
                "many": [{"size": 1}, {"size": "x"}, {}, {"size": 1, "sise": 2}, 7],
                "piece": {"kind": "fixed-mean", "divisor": -1},
                "pieces": ["clip", {"kind": "clip", "clip_norm": 1, "branches": ["a", 1]}, {"clip_norm": 1}],
                "named": {"a.b": {"kind": "sgd", "learning_rate": -1}, "c": "nosuch", "d": {"kind": "sgd", "x": 1}},
                "numbers": [[1, 2], [3, "x"]],
            },
        )
    ) == {
        "one.size",
        "maybe.names.1",
        "maybe.names.3",
        "many.1.size",
        "many.2.size",
        "many.3.sise",
        "many.4",
        "piece.divisor",
        "pieces.0.clip_norm",
        "pieces.1.branches.1",
        "pieces.2",
        "named.a.b",
        "named.c.kind",
        "named.d.x",
        "numbers.1.1",
    }


def test_paths_go_on_from_the_path_that_is_given():
    assert set(found({"one": {"size": 0}}, "plan.part")) == {"plan.part.one.size"}


def test_a_sections_own_check_is_a_problem_at_the_section():
    assert found({"one": {"size": 13}}) == {"one": "size must not be 13."}
    assert found({"one": {"size": 1}, "many": [{"size": 1}, {"size": 13}]}) == {"many.1": "size must not be 13."}


@pytest.mark.parametrize("value", [None, 3, "x", [1], True])
def test_what_is_no_table_is_refused_where_a_section_stands(value):
    assert "must be a table" in found({"one": value})["one"]


def test_a_required_field_is_named_with_its_help():
    assert found({}) == {"one": "is required: a section"}


def test_what_was_built_survives_beside_what_was_not():
    values, problems = from_mapping(Outer, {"one": {"size": 0}, "numbers": [[1]]})
    assert [problem.path for problem in problems] == ["one.size"]
    assert values == {"numbers": ((1,),)}


def test_tables_and_sections_go_round():
    mapping = {
        "one": {"size": 1},
        "many": [{"size": 2, "names": ["x"]}],
        "piece": "median",
        "pieces": ["weigh-by-size", {"kind": "clip", "clip_norm": 1}],
        "named": {"control": {"kind": "adam"}},
        "numbers": [[1, 2], []],
        "anything": {"a": [1, {"b": True}]},
    }
    outer, problems = build(Outer, mapping)
    assert problems == []
    assert build(Outer, to_mapping(outer)) == (outer, [])
    assert "maybe" not in to_mapping(outer)
    assert to_mapping(outer)["pieces"][0] == {"kind": "weigh-by-size"}


def test_given_only_leaves_defaults_out_at_every_depth():
    outer, _ = build(Outer, {"one": {"size": 1}, "named": {"a": {"kind": "adam", "tau": 0.5}}})
    assert given_only(outer) == {
        "one": {"size": 1},
        "named": {"a": {"kind": "adam", "learning_rate": 1.0, "branches": {}, "beta1": 0.9, "tau": 0.5, "beta2": 0.99}},
    }


@pytest.mark.parametrize("unfit", [float("nan"), float("inf"), None, 2**53, b"x"])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, v], lambda v: {"b": [v]}])
def test_values_that_files_and_hashes_cannot_hold_are_refused_at_any_depth(unfit, wrap):
    assert set(found({"one": {"size": 1}, "anything": {"a": wrap(unfit)}})) == {"anything"}


def test_a_piece_needs_a_kind():
    for mapping in ({}, {"kind": 3}, 5, None, ["clip"]):
        piece, (problem,) = build_piece("transform", mapping, "here")
        assert piece is None
        assert problem.path == "here"
        assert "'kind'" in problem.message


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Its annotation names what is nowhere."""

    size: NoSuchName  # noqa: F821 - that is the point


@dataclass(frozen=True, kw_only=True)
class Untypable:
    """Its annotation is a type that no plan can hold."""

    size: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Raising:
    """It raises what it is told to."""

    what: str

    def __post_init__(self) -> None:
        raise {"key": KeyError("rate"), "exit": SystemExit(0), "zero": ZeroDivisionError("by zero")}[self.what]


@pytest.mark.parametrize(
    ("mapping", "path", "words"),
    [
        ({"kind": f"{__name__}:Unreadable", "size": 1}, "here", "NameError.*NoSuchName.*HANSA-CODE-IMPORT"),
        ({"kind": f"{__name__}:Untypable", "size": 1}, "here.size", "no plan can hold"),
        ({"kind": f"{__name__}:Raising", "what": "key"}, "here", "Raising raised KeyError: 'rate'"),
        ({"kind": f"{__name__}:Raising", "what": "zero"}, "here", "raised ZeroDivisionError"),
        ({"kind": f"{__name__}:Raising", "what": "exit"}, "here", "raised SystemExit"),
    ],
)
def test_a_piece_of_ones_own_that_fails_is_a_problem_with_its_key_path(mapping, path, words):
    piece, (problem,) = build_piece("transform", mapping, "here")
    assert piece is None
    assert problem.path == path
    assert re.search(words, problem.message)


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "import sys; sys.exit()"])
def test_a_module_that_ends_the_process_on_import_is_told(tmp_path, monkeypatch, body):
    (tmp_path / "leaving_module.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HansaError, match="SystemExit") as error:
        import_named("leaving_module:anything")
    assert error.value.code == "HANSA-CODE-IMPORT"


def test_an_interrupt_during_an_import_passes(tmp_path, monkeypatch):
    (tmp_path / "interrupted_module.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        import_named("interrupted_module:anything")


# The registry


def rows():
    return [pytest.param(family, kind, id=f"{family}-{kind}") for family, kinds in PIECES.items() for kind in kinds]


@pytest.mark.parametrize(("family", "kind"), rows())
def test_every_row_of_the_registry_resolves(family, kind):
    try:
        assert resolve(family, kind) is not None
    except HansaError as error:
        missing = next((extra for module, extra in EXTRAS.items() if f"No module named {module!r}" in str(error)), None)
        if missing is None or os.environ.get("CI"):
            raise
        pytest.skip(f"needs the extra {missing}")


def sections():
    return [*SECTIONS, *(resolve(family, kind) for family in FAMILIES for kind in PIECES[family] if kind != "torch")]


@pytest.mark.parametrize("section", sections(), ids=lambda section: f"{section.__module__}.{section.__name__}")
class TestEverySection:
    def test_is_frozen_and_documented(self, section):
        assert section.__dataclass_params__.frozen
        assert (section.__doc__ or "").strip().split("\n")[0].endswith((".", ":"))
        for name, declared in fields_of(section).items():
            assert declared.help, f"{section.__name__}.{name} has no help text"

    def test_has_valid_defaults(self, section):
        for name, declared in fields_of(section).items():
            if declared.required or declared.default is None:
                continue
            wanted = {name: to_mapping_of(declared)}
            problems = [p for p in from_mapping(section, wanted)[1] if p.path.split(".")[0] == name]
            assert not [p for p in problems if "is required" not in p.message], name

    def test_is_none_only_where_none_is_the_default(self, section):
        """None is left out of a file, so it must be what an absent key means."""
        for name, declared in fields_of(section).items():
            if type(None) in getattr(declared.inner, "__args__", ()):
                assert declared.default is None, name


def to_mapping_of(declared):
    from hansa.core.schema import to_plain

    return to_plain(declared.default, declared.family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_registered_piece_has_all_of_its_familys_protocol(family):
    for kind in PIECES[family]:
        if kind == "torch":
            continue
        cls = resolve(family, kind)
        needed = {
            "size": 2, "rounds": 2, "rate": 0.5, "mu": 0.1, "clip_norm": 1.0, "divisor": 2.0, "fraction": 0.1,
            "learning_rate": 0.1, "epochs": 1, "clients": 3, "alpha": 0.5, "sigma": 1.0, "per_client": 2,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        }  # fmt: skip
        given = {name: value for name, value in needed.items() if name in fields_of(cls)}
        piece, problems = build_piece(family, {"kind": kind, **given}, "x")
        assert problems == []
        assert pieces.lacking(family, piece) == ()
        assert kind_of(family, piece) == kind


def test_nearest_names_the_one_meant_or_lists_all():
    assert nearest("unifrom", ["uniform", "full"]) == "did you mean 'uniform'?"
    assert nearest("x", ["b", "a"]) == "known: a, b."
    assert nearest("x", []) == "known: none."


def test_a_module_of_the_working_directory_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "own_piece_of_a_test.py").write_text("VALUE = 5\n")
    (tmp_path / "own_broken_piece_of_a_test.py").write_text("raise RuntimeError('broken inside')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    assert import_named("own_piece_of_a_test:VALUE") == 5
    with pytest.raises(HansaError, match="has no 'OTHER'"):
        import_named("own_piece_of_a_test:OTHER")
    with pytest.raises(HansaError, match="RuntimeError: broken inside"):
        import_named("own_broken_piece_of_a_test:x")


def test_an_unknown_row_is_a_lookup_error_with_the_nearest_name():
    with pytest.raises(LookupError, match="did you mean 'uniform'"):
        resolve("sampler", "uniforn")


# Errors


def test_an_error_has_a_code_of_the_catalogue_and_three_parts():
    error = HansaError("HANSA-DATA-MISSING", rule="A rule.", found="What was met.", action="What to do.")
    assert str(error) == "A rule. What was met. What to do."
    assert error.exit_status == 3
    with pytest.raises(LookupError):
        HansaError("HANSA-NO-SUCH", rule="", found="", action="")


def test_codes_are_named_alike_and_never_end_a_command_with_success():
    for code, entry in CATALOGUE.items():
        assert code.startswith("HANSA-")
        assert entry.exit_status > 0
        assert 400 <= entry.http < 600
        assert entry.meaning


def test_a_plan_error_lists_each_problem_once():
    error = PlanError([Problem("a", "x."), Problem("b", "y."), Problem("a", "x.")])
    assert [str(problem) for problem in error.problems] == ["a: x.", "b: y."]
    assert "2 problems" in str(error)
    assert "1 problem:" in str(PlanError([Problem("a", "x.")]))


def test_sections_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Model(factory="a:b").factory = "c:d"
