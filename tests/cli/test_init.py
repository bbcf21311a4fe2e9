"""`hansa init` writes a plan that runs as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def table(tmp_path) -> Path:
    """Rows of three clients: numbers with gaps, categories with quotes, a row number, three kinds of label."""
    draw = np.random.default_rng(5)
    rows = ["row id,site,age,city,pressure,constant,sick,grade,cost"]
    for row in range(300):
        site = ("north", '"the ""old"" south"', "west")[row % 3]
        age, pressure, city = draw.integers(20, 90), 120 + 10 * draw.standard_normal(), draw.integers(3)
        score = (age - 55) / 20 + (city == 1) + draw.standard_normal() * 0.3
        cells = [
            row + 1000,
            site,
            "" if row % 9 == 0 else age,
            "NA" if row % 20 == 0 else ("Ålborg", "b", "c")[city],
            "?" if row % 7 == 0 else round(pressure, 1),
            1,
            "yes" if score > 0.3 else "no",
            "low" if score < -0.5 else "middle" if score < 0.8 else "high",
            round(30_000 + 5_000 * score, 2),
        ]
        rows.append(",".join(map(str, cells)))
    path = tmp_path / "patients.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def without(table: Path, *columns: str) -> None:
    """Remove columns that would give the label away."""
    lines = table.read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    keep = [place for place, name in enumerate(header) if name not in columns]
    table.write_text("\n".join(",".join(line.split(",")[place] for place in keep) for line in lines), encoding="utf-8")


def test_two_classes_give_a_logistic_plan_that_runs_and_learns(hansa, table):
    without(table, "grade", "cost")
    found = hansa("init", table.name, "--client", "site", "--label", "sick", "--json")
    assert found.status == 0, found.err
    text = Path("patients.toml").read_text(encoding="utf-8")
    plan = tomllib.loads(text)
    assert plan["model"]["factory"].endswith(":logistic")
    assert plan["features"]["classes"] == ["no", "yes"]
    columns = {column["name"]: column for column in plan["features"]["columns"]}
    assert columns.keys() == {"age", "city", "pressure"}
    assert columns["city"]["categories"] == ["b", "c", "Ålborg"]
    assert columns["age"]["low"] <= 20
    assert columns["age"]["high"] >= 89
    for said in ("11% missing", "'row id' was left out", "'constant' was left out", "In a federation nobody can"):
        assert said in text
    done = hansa("run", "patients.toml", "--json")
    assert done.status == 0, done.err
    assert done.json["metrics"]["federated"]["auc"]["overall"] > 0.9
    assert done.json["plan_sha256"] == found.json["plan_sha256"]


def test_three_classes_give_a_softmax_plan_that_runs_and_learns(hansa, table):
    without(table, "sick", "cost")
    assert hansa("init", table.name, "--client", "site", "--label", "grade", "--out", "grade.toml").status == 0
    done = hansa("run", "grade.toml", "--json")
    assert done.status == 0, done.err
    assert done.json["metrics"]["federated"]["accuracy"]["overall"] > 0.65


def test_a_number_gives_a_regression_plan_that_runs_and_learns(hansa, table):
    without(table, "sick", "grade")
    assert hansa("init", table.name, "--client", "site", "--label", "cost", "--out", "cost.toml").status == 0
    assert "by class" not in Path("cost.toml").read_text()
    done = hansa("run", "cost.toml", "--json")
    assert done.status == 0, done.err
    assert done.json["metrics"]["federated"]["rmse"]["overall"] < 3_500


def test_parquet_works_too(hansa, table):
    csv = pytest.importorskip("pyarrow.csv")
    parquet = pytest.importorskip("pyarrow.parquet")
    options = csv.ConvertOptions(null_values=["", "NA", "?"], strings_can_be_null=True)
    parquet.write_table(csv.read_csv(table, convert_options=options), "patients.parquet")
    found = hansa("init", "patients.parquet", "--client", "site", "--label", "sick")
    assert found.status == 0, found.err
    assert hansa("run", "patients.toml", "--set", "rounds=2").status == 0


def test_nothing_is_overwritten(hansa, table):
    Path("patients.toml").write_text("mine")
    found = hansa("init", table.name, "--client", "site", "--label", "sick")
    assert found.status == 4
    assert Path("patients.toml").read_text() == "mine"


def test_wrong_columns_are_all_named_with_the_nearest(hansa, table):
    found = hansa("init", table.name, "--client", "sit", "--label", "sik")
    assert found.status == 3
    assert "--client 'sit' is no column; did you mean 'site'?" in found.said
    assert "--label 'sik' is no column; did you mean 'sick'?" in found.said
    assert not Path("patients.toml").exists()


def test_one_column_cannot_be_client_and_label(hansa, table):
    assert hansa("init", table.name, "--client", "site", "--label", "site").status == 3


def test_a_missing_file_is_named(hansa):
    found = hansa("init", "nowhere.csv", "--client", "a", "--label", "b")
    assert found.status == 3
    assert "nowhere.csv: there is no such file" in found.said


def test_a_column_that_makes_every_row_a_client_is_refused(hansa, table):
    found = hansa("init", table.name, "--client", "row id", "--label", "sick")
    assert found.status == 3
    assert not Path("patients.toml").exists()
    assert "Is 'row id' the column that says whose a row is?" in found.said


def test_many_small_clients_take_turns(hansa, tmp_path):
    draw = np.random.default_rng(1)
    rows = [f"user{row % 200},{draw.standard_normal():.3f},{row % 2}" for row in range(2_000)]
    (tmp_path / "users.csv").write_text("user,x,y\n" + "\n".join(rows))
    assert hansa("init", "users.csv", "--client", "user", "--label", "y").status == 0
    plan = tomllib.loads(Path("users.toml").read_text())
    assert plan["cohort"] == {"kind": "uniform", "size": 20}
    assert plan["rounds"] == 250
