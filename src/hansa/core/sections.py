"""The sections of a plan that other rooms read: data, devices, features, model, evaluation, stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from hansa.core.pieces import Partition
from hansa.core.schema import Doc, Family, Unsound


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the examples come from and how they are dealt and split. Simulation only; not in the plan's hash."""

    source: Annotated[
        str,
        MinLen(1),
        Doc("a shipped data set, your own (npz, csv, parquet, folder), or synthetic (`hansa data` lists them)"),
    ]
    arguments: Annotated[Mapping[str, Any], Doc("the settings of a source that has some of its own: synthetic")] = (
        field(default_factory=dict)
    )
    path: Annotated[str | None, Doc("the file or folder, for sources that are not shipped")] = None
    central_path: Annotated[
        str | None, Doc("a file of the server's own examples, for central evaluation; the same form as `path`")
    ] = None
    client: Annotated[str | None, Doc("csv and parquet: the column that names the client of each row")] = None
    partition: Annotated[
        Partition | None,
        Family("partition"),
        Doc("how to deal examples to clients; default: the source's own clients"),
    ] = None
    test_fraction: Annotated[
        float, Ge(0), Lt(1), Doc("share of each client's examples held out for testing, stratified by class")
    ] = 0.0
    test_at: Annotated[
        Literal["clients", "server"],
        Doc(
            "who holds the examples for testing: each client its own, or the server all of them, as if they were "
            "public (a simulation of [privacy], which refuses metrics over clients' examples)"
        ),
    ] = "clients"
    validation_fraction: Annotated[
        float, Ge(0), Lt(1), Doc("share of each client's examples held out for stopping rules, stratified by class")
    ] = 0.0
    held_out_clients: Annotated[
        int, Ge(0), Doc("number of clients that never train and are evaluated on all their examples")
    ] = 0
    memory_map: Annotated[
        Literal["auto", "always", "never"], Doc("map arrays from disk instead of reading them; auto: above 256 MB")
    ] = "auto"

    def __post_init__(self) -> None:
        if self.test_fraction + self.validation_fraction >= 1:
            raise Unsound("test_fraction and validation_fraction together must leave examples for training.")


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """One class of devices; a client of it is as fast as a log-normal draw around the medians says."""

    name: Annotated[str, MinLen(1), Doc("what the class is called")]
    share: Annotated[float, Gt(0), Doc("how many clients are of it, relative to the other classes")] = 1.0
    speed: Annotated[float, Gt(0), Doc("median of the speed of training, relative to the reference device")] = 1.0
    speed_spread: Annotated[float, Ge(0), Le(3), Doc("standard deviation of the speed's natural logarithm")] = 0.0
    down_mbit: Annotated[float, Gt(0), Doc("median of the bandwidth to a client, in Mbit/s")] = 100.0
    up_mbit: Annotated[float, Gt(0), Doc("median of the bandwidth from a client, in Mbit/s")] = 100.0
    network_spread: Annotated[
        float, Ge(0), Le(3), Doc("standard deviation of the bandwidths' natural logarithm; both move together")
    ] = 0.0
    latency: Annotated[float, Ge(0), Doc("seconds before a transfer begins, in each direction")] = 0.0
    losses_per_hour: Annotated[
        float, Ge(0), Doc("how often a client that works is lost in an hour, on average (a constant hazard)")
    ] = 0.0
    available: Annotated[
        str, Doc('when clients can be reached, in hours of the period: "8-12 13.5-18"; empty: always')
    ] = ""
    shift_hours: Annotated[
        float, Ge(0), Doc("each client's hours are moved, earlier or later, by up to so many hours")
    ] = 0.0

    def __post_init__(self) -> None:
        self.hours()

    def hours(self) -> tuple[tuple[float, float], ...]:
        """Return the intervals of ``available`` as (from, to). Raises Unsound for a text that holds none."""
        found = []
        for text in self.available.split():
            start, separator, end = text.partition("-")
            try:
                interval = float(start), float(end)
            except ValueError:
                interval = (0.0, 0.0)
            if not (separator and 0 <= interval[0] < interval[1] < math.inf):
                raise Unsound(f'available holds {text!r}; write intervals in hours, such as "8-12 13.5-18".')
            found.append(interval)
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Devices:
    """How fast clients are and when they can be reached: gives a simulation a clock. Not in the plan's hash."""

    preset: Annotated[
        Literal["phones", "hospitals", "browsers", "iot"] | None, Doc("classes that come with Hansa; illustrative")
    ] = None
    path: Annotated[str | None, Doc("a csv file of classes, or of clients: a device each")] = None
    classes: Annotated[tuple[DeviceClass, ...], Doc("classes of your own")] = ()
    examples_per_second: Annotated[
        float, Gt(0), Doc("examples of this plan's data that the reference device trains its model on in a second")
    ] = 100.0
    start_hour: Annotated[float, Ge(0), Doc("the hour of the period at which the run begins")] = 0.0
    period_hours: Annotated[float, Gt(0), Doc("hours after which availability repeats: 24 a day, 168 a week")] = 24.0

    def __post_init__(self) -> None:
        if sum((self.preset is not None, self.path is not None, bool(self.classes))) != 1:
            raise Unsound("give exactly one of preset, path and classes.")
        names = [each.name for each in self.classes]
        if len(set(names)) != len(names):
            raise Unsound("classes names a class twice.")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table as the model sees it."""

    name: Annotated[str, MinLen(1), Doc("the column's name in the file")]
    kind: Annotated[Literal["number", "category"], Doc("how values are read")] = "number"
    categories: Annotated[
        tuple[str, ...], Doc("category: the known values; each has a slot, and one more stands for unknown or missing")
    ] = ()
    low: Annotated[float | None, Doc("number: values below are clamped to it; needed for federated scaling")] = None
    high: Annotated[float | None, Doc("number: values above are clamped to it; needed for federated scaling")] = None
    center: Annotated[
        float | None, Doc("number: subtracted when scaling is declared; absent: the middle of low and high")
    ] = None
    scale: Annotated[
        float | None, Gt(0), Doc("number: divides when scaling is declared; absent: a quarter of high - low")
    ] = None
    missing: Annotated[tuple[str, ...], Doc("values that mean missing, beside the empty one, NA, NaN, null and ?")] = ()

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise Unsound(f"column {self.name!r} needs both low and high, or neither.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise Unsound(f"column {self.name!r} needs low below high.")
        if self.kind == "category" and len(set(self.categories)) != len(self.categories):
            raise Unsound(f"column {self.name!r} lists a category twice.")
        if self.kind == "number" and self.categories:
            raise Unsound(f'column {self.name!r} is a number and cannot list categories; set kind = "category".')

    @property
    def declared(self) -> tuple[float, float] | None:
        """Return centre and scale as declared: what is not given is the middle of low and high, and a quarter."""
        if self.low is not None and self.high is not None:
            middle, quarter = (self.low + self.high) / 2, (self.high - self.low) / 4
        elif self.center is None or self.scale is None:
            return None
        else:
            middle, quarter = self.center, self.scale
        return (middle if self.center is None else self.center), (quarter if self.scale is None else self.scale)


@dataclass(frozen=True)
class Slot:
    """One number of the encoded example: a numeric column, or one category of a column (0 or 1)."""

    name: str
    column: Column
    category: str | None = None

    @property
    def numeric(self) -> bool:
        """Return True for a number, which is imputed, clamped and scaled."""
        return self.column.kind == "number"


@dataclass(frozen=True, kw_only=True)
class Features:
    """The columns of a table, part of the plan and of its hash. Each client applies them to its own rows."""

    label: Annotated[str, MinLen(1), Doc("the label's column")]
    task: Annotated[Literal["classification", "regression"] | None, Doc("default: found from the label")] = None
    classes: Annotated[tuple[str, ...], Doc("the label's values in the order of the model's outputs")] = ()
    columns: Annotated[tuple[Column, ...], Doc("the feature columns; absent: found in the file and written down")] = ()
    imputation: Annotated[
        Literal["median", "mean", "center"],
        Doc("what a missing number becomes: this client's own median or mean of its training rows, or the centre"),
    ] = "median"
    scaling: Annotated[
        Literal["none", "declared", "federated"],
        Doc("none; declared by the columns' center and scale; or from a federated sum over all clients (round 0)"),
    ] = "federated"

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise Unsound("columns names a column twice.")
        if self.label in names:
            raise Unsound(f"the label {self.label!r} is also listed as a feature column.")

    def slots(self) -> tuple[Slot, ...]:
        """Return the numbers of one encoded example, in order.

        A category column has a slot for each declared category and a last one for unknown or missing.
        """
        return tuple(
            slot
            for column in self.columns
            for slot in (
                (Slot(column.name, column),)
                if column.kind == "number"
                else tuple(
                    Slot(f"{column.name}={category}", column, category) for category in (*column.categories, "(other)")
                )
            )
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model that is trained."""

    factory: Annotated[
        str,
        MinLen(3),
        Doc(
            '"package.module:function", importable also from the working directory; a plan can run any code that it '
            "names, so run only plans that you trust"
        ),
    ]
    arguments: Annotated[Mapping[str, Any], Doc("keyword arguments of the factory")] = field(default_factory=dict)
    buffers: Annotated[
        Literal["keep-local", "average"],
        Doc("floating buffers such as BatchNorm statistics stay with each client, or are averaged"),
    ] = "keep-local"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, how often, and what it is compared with."""

    every: Annotated[int, Ge(1), Doc("evaluate after every so many rounds, and after the last")] = 1
    metrics: Annotated[tuple[str, ...], Doc("loss, accuracy, auc, rmse, mae; absent: what fits the label")] = ()
    federated: Annotated[bool, Doc("evaluate on the clients' held-out examples")] = True
    federated_clients: Annotated[
        int | None, Ge(1), Doc("evaluate on so many clients drawn once, instead of on all; the last round uses all")
    ] = None
    central: Annotated[bool, Doc("evaluate on the server's own examples where the source has some")] = True
    baselines: Annotated[
        tuple[Literal["local-only", "centralised"], ...],
        Doc("trained beside the run from pooled data, for comparison only"),
    ] = ()
    local_only_clients: Annotated[int, Ge(1), Doc("train at most so many clients alone, drawn from the seed")] = 16


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a run ends before its last round."""

    metric: Annotated[
        str | None, Doc('what is watched: "central.accuracy", "federated.auc", "validation.loss" ...')
    ] = None
    target: Annotated[float | None, Doc("stop once the metric reaches it")] = None
    patience: Annotated[int | None, Ge(1), Doc("stop after so many evaluations without a better value")] = None
    explosion_factor: Annotated[
        float, Gt(1), Le(1e12), Doc("an update larger than so many times the largest of the first three is divergence")
    ] = 1000.0

    def __post_init__(self) -> None:
        if self.metric is None and (self.target is not None or self.patience is not None):
            raise Unsound("target and patience need metric, the name of what is watched.")
        if self.metric is not None and self.target is None and self.patience is None:
            raise Unsound("metric needs target or patience.")
