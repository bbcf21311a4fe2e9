"""`hansa data`: the sources, and one source's clients, sizes and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hansa.core.registry import PIECES


def test_all_sources_are_listed_with_what_they_need(hansa):
    found = hansa("data", "--json")
    assert {source["name"] for source in found.json["sources"]} == set(PIECES["source"])
    assert all(name in found.err for name in PIECES["source"])
    assert "needs a path and a label column" in found.said


def test_a_source_is_shown_with_clients_sizes_and_labels(hansa):
    found = hansa("data", "heart", "--json")
    assert found.json["clients"] == 4
    assert found.json["examples"] == 920 == sum(map(sum, found.json["label_counts"]))
    for said in ("Cleveland", "304", "label skew", "█", "▓▓ disease"):
        assert said in found.err.replace("\N{NO-BREAK SPACE}", " ")


def test_a_plan_is_shown_with_its_parts(hansa, plan):
    found = hansa("data", plan, "--set", "data.held_out_clients=1", "--json")
    assert found.json["sizes"].keys() == {"train", "test", "held_out"}


def test_a_partition_can_be_tried_out(hansa):
    even = hansa("data", "heart", "--clients", 60, "--json")
    mixes = ["--set", "data.partition.kind=dirichlet", "--set", "data.partition.alpha=0.1"]
    skewed = hansa("data", "heart", "--clients", 60, *mixes, "--json")
    assert even.json["clients"] == skewed.json["clients"] == 60
    assert skewed.json["label_skew"] > 2 * even.json["label_skew"]
    assert "Clients by number of examples" in skewed.err
    assert "The first 10 of 60 clients" in skewed.err


def test_a_picture_is_a_page_of_its_own(hansa):
    assert hansa("data", "heart", "--picture", "few.html").status == 0
    assert "Switzerland" in Path("few.html").read_text()
    assert hansa("data", "heart", "--clients", 60, "--picture", "many.html").status == 0
    assert "<svg" in Path("many.html").read_text()
    assert hansa("data", "heart", "--picture", "few.html").status == 4
    assert hansa("data", "heart", "--picture", "few.bmp").status == 2


def test_files_of_ones_own_are_known_by_their_names(hansa, tmp_path):
    np.savez(tmp_path / "own.npz", X=np.zeros((30, 2)), y=np.arange(30) % 3, client=np.repeat(["a", "b", "c"], 10))
    found = hansa("data", "own.npz", "--json")
    assert found.json["names"] == ["a", "b", "c"]
    (tmp_path / "own.csv").write_text("who,x,y\n" + "".join(f"{i % 2},{i * 0.5},{i / 7}\n" for i in range(40)))
    found = hansa("data", "own.csv", "--client", "who", "--label", "y", "--json")
    assert found.err.startswith("own.csv\n")
    assert found.json["names"] == ["0", "1"]
    assert found.json["examples"] == 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hart"], "did you mean 'heart'?"),
        (["heart", "--set", "dta.partition=iid"], "dta: unknown key; did you mean 'data'?"),
        (["heart", "--set", "data.test_fracton=0.1"], "did you mean 'test_fraction'?"),
        (["heart", "--set", "seed=-1"], "seed: must be a whole number"),
        (["mnist"], "data.path: is required"),
        (["nowhere.csv", "--label", "y", "--client", "c"], "there is no such file"),
        (["nowhere.toml"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(hansa, arguments, said):
    found = hansa("data", *arguments)
    assert found.status in (2, 3)
    assert said in found.said
