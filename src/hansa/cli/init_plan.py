"""The text of a plan for a table: every choice with its reason beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import tomli_w

from hansa.cli.console import shown
from hansa.core.layout import Int64s
from hansa.core.sections import Column, Features
from hansa.data.table import Table, missing_in, texts
from hansa.reporting.figures import count_text, plural

_EVERYONE: Final = 100
"""Most clients that all take part in every round."""
_POOLED: Final = 200_000
"""Most rows for which pooled training is proposed as a baseline."""


@dataclass(frozen=True)
class Found:
    """What a table turned out to hold."""

    path: Path
    rows: int
    client: str
    sizes: Int64s
    features: Features
    missing: dict[str, int]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, table: Table, client: str, features: Features, notes: tuple[str, ...]) -> Self:
        """Return what a table holds, for features found in it."""
        sizes = np.unique(texts(table.column(client)), return_counts=True)[1]
        missing = {column.name: int(missing_in(table.column(column.name)).sum()) for column in features.columns}
        if len(sizes) == 1:
            notes = (*notes, f"column {client!r} has one value, so there is one client and nothing to federate")
        return cls(path, len(table), client, sizes, features, missing, notes)

    @property
    def clients(self) -> int:
        """Return the number of clients."""
        return len(self.sizes)

    @property
    def regression(self) -> bool:
        """Return True for a label that is a number."""
        return self.features.task == "regression"

    def summary(self) -> str:
        """Return the table in a line."""
        kinds = [column.kind for column in self.features.columns]
        columns = f"{kinds.count('number')} numeric and {kinds.count('category')} categorical columns"
        label = "a number" if self.regression else f"{len(self.features.classes)} classes"
        return (
            f"{plural(self.rows, 'row')} of {plural(self.clients, 'client')}, {columns}; "
            f"{self.features.label} ({label}) is predicted."
        )


def plan_text(found: Found, path: Path) -> str:
    """Return a plan as TOML with comments."""
    plan = shown(path)
    name = f"{found.features.label} across {plural(found.clients, 'client')}"
    head = [
        f"# {found.summary()}",
        "# Written by `hansa init`, which looked at all rows of the file. In a federation nobody can do that:",
        "# there, the columns, categories and bounds below are what the clients agree on beforehand.",
        "#",
        f"#   hansa check {plan}    what the plan promises and costs",
        f"#   hansa data {plan}     the clients, their sizes and labels",
        f"#   hansa run {plan}      train, compare, report",
        "",
        f"name = {quoted(name)}",
        "seed = 0                      # the same seed, plan and data give the same model, bit for bit",
        f"rounds = {_rounds(found):<21}# the curves of the report show whether fewer would do",
        'recipe = "fedavg"             # weighted averaging; also: fedprox, scaffold, fedadam, fedyogi ...',
    ]
    parts = (head, _data(found), _features(found), _training(found), _cohort(found), _evaluation(found))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _data(found: Found) -> list[str]:
    source = "parquet" if found.path.suffix.lower() == ".parquet" else "csv"
    sizes = f"{count_text(found.sizes.min())} to {count_text(found.sizes.max())} rows each"
    return [
        "[data]                        # for simulation: in a federation every client brings its own",
        f"source = {quoted(source)}",
        f"path = {quoted(str(found.path))}",
        f"client = {quoted(found.client)}",
        f"# {plural(found.clients, 'client')}, {sizes}.",
        "test_fraction = 0.25          # of each client's rows, held out for testing"
        + ("" if found.regression else ", stratified by class"),
    ]


def _features(found: Found) -> list[str]:
    features = found.features
    lines = ["[features]", f"label = {quoted(features.label)}", f"task = {quoted(str(features.task))}"]
    if features.classes:
        lines.append(f"classes = {array(features.classes)}")
    lines += [
        "# A missing number becomes the median of the client's own training rows; a missing category has a slot",
        "# of its own. Numbers are scaled by a federated sum before round 1, for which low and high bound them:",
        "# values beyond are clamped. Bounds that are known (0 to 100 per cent) are better than those found.",
        'imputation = "median"',
        'scaling = "federated"',
        "columns = [",
        *(_column(column, found) for column in features.columns),
        "]",
    ]
    return [*lines, *(f"# {note}." for note in found.notes)]


def _column(column: Column, found: Found) -> str:
    """Return one column as a line, with what was found in it."""
    pairs = [f"name = {quoted(column.name)}", f"kind = {quoted(column.kind)}"]
    if column.kind == "category":
        pairs.append(f"categories = {array(column.categories)}")
    else:
        pairs.append(f"low = {column.low!r}, high = {column.high!r}")
    missing = found.missing[column.name]
    comment = f"  # {_percent(missing, found.rows)} missing" if missing else ""
    return f"    {{ {', '.join(pairs)} }},{comment}"


def _training(found: Found) -> list[str]:
    factory, why = _model(found)
    batch, steps = _batch(found), _steps(found)
    return [
        "[model]",
        f"factory = {quoted(factory)}    # {why}",
        "",
        "[trainer]",
        'kind = "linear"               # numpy; a torch model needs kind = "torch" and a factory of its own',
        "epochs = 1                    # passes over a client's rows in a round; more saves rounds, and drifts further",
        f"batch_size = {batch:<17}# about {plural(steps, 'step')} a round for a client of median size",
        f'optimizer = {{ kind = "sgd", learning_rate = {_rate(found)!r} }}',
    ]


def _model(found: Found) -> tuple[str, str]:
    """Return the factory for a label, and why."""
    if found.regression:
        return "hansa.training.linear:regression", "linear regression: the label is a number"
    if len(found.features.classes) == 2:
        return "hansa.training.linear:logistic", "logistic regression: the label has two classes"
    return "hansa.training.linear:softmax", f"softmax regression: the label has {len(found.features.classes)} classes"


def _batch(found: Found) -> int:
    typical = float(np.median(found.sizes))
    return 16 if typical < 200 else 32 if typical < 2000 else 64


def _steps(found: Found) -> int:
    """Return the local steps of a client of median size in one round."""
    return max(1, math.ceil(0.75 * float(np.median(found.sizes)) / _batch(found)))


def _rounds(found: Found) -> int:
    """Return rounds for 250 local steps, or for squared error to shrink any start by exp(-20), within bounds."""
    steps = 10 / _rate(found) if found.regression else 250.0
    return min(1000, max(50, 10 * math.ceil(steps / _steps(found) / 10)))


def _rate(found: Found) -> float:
    """Return a learning rate that cannot diverge, to one digit.

    Squared error diverges where the rate exceeds 1 / (largest eigenvalue of the features' second moments), which
    for scaled features, and an intercept, is at most their number and one.
    """
    if not found.regression:
        return 0.1
    rate = min(0.05, 0.5 / (len(found.features.columns) + 1))
    digit = 10.0 ** math.floor(math.log10(rate))
    return float(f"{math.floor(rate / digit) * digit:.6g}")


def _cohort(found: Found) -> list[str]:
    if found.clients <= _EVERYONE:
        return ["[cohort]", 'kind = "full"                 # every client takes part in every round']
    return [
        "[cohort]",
        'kind = "uniform"              # so many clients, drawn anew for every round',
        f"size = {max(10, min(_EVERYONE, found.clients // 10))}",
    ]


def _evaluation(found: Found) -> list[str]:
    if found.regression:
        metrics: tuple[str, ...] = ("rmse", "mae")
    else:
        metrics = ("auc", "accuracy", "loss") if len(found.features.classes) == 2 else ("accuracy", "loss")
    baselines = ("local-only", "centralised") if found.rows <= _POOLED else ("local-only",)
    return [
        "[evaluation]",
        "every = 5                     # rounds between evaluations",
        f"metrics = {array(metrics)}",
        "# For comparison, trained with the data in one place, as only a simulation can: up to 16 clients alone"
        + (", and pooled." if len(baselines) > 1 else "."),
        f"baselines = {array(baselines)}",
    ]


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f}%" if share >= 1 else "under 1%"


def quoted(text: str) -> str:
    """Return a text as TOML."""
    return _toml(text)


def array(values: Sequence[str]) -> str:
    """Return texts as a TOML array on one line."""
    return f"[{', '.join(map(_toml, values))}]"


def _toml(value: Any) -> str:
    return tomli_w.dumps({"x": value})[len("x = ") :].rstrip("\n")
