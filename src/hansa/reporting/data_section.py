"""The data of a run as the report shows them: clients, sizes and the skew of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from hansa.reporting.charts import Chart, Series
from hansa.reporting.charts_clients import histogram
from hansa.reporting.figures import count_text, number, plural, total_of
from hansa.reporting.findings import NAMED_CLIENTS

_CLASS_COLUMNS: Final = 12


@dataclass(frozen=True)
class Share:
    """A count of one class at one client, with its share of the client's examples from 0 to 1."""

    count: str
    share: float


@dataclass(frozen=True)
class ClientLine:
    """One client: its name, its number of examples and its classes."""

    name: str
    size: str
    share: float
    classes: tuple[Share, ...]
    largest: str


@dataclass(frozen=True)
class DataSection:
    """All that the section shows. Many clients are charts, few are lines of a table."""

    sentence: str
    class_names: tuple[str, ...]
    lines: tuple[ClientLine, ...]
    charts: tuple[Chart, ...]
    labelled: bool
    counted: str = "Training examples"


def data_section(data: object) -> DataSection:
    """Return the section of a summary's ``data``; what is missing there is left out here."""
    found: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    sizes = [number(size) for size in _list(found.get("sizes"))]
    counts = [[number(count) or 0.0 for count in _list(row)] for row in _list(found.get("label_counts"))]
    classes = max(map(len, counts), default=0)
    names = [str(name) for name in _list(found.get("class_names"))][:classes]
    names += [f"class {position}" for position in range(len(names), classes)]
    few = len(sizes) <= NAMED_CLIENTS
    lines = _lines(sizes, counts, names, [str(name) for name in _list(found.get("names"))]) if few else ()
    return DataSection(
        sentence=_sentence(found, sizes, counts, names),
        class_names=tuple(names) if classes <= _CLASS_COLUMNS else (),
        lines=lines,
        charts=() if few else _charts(sizes, counts),
        labelled=classes > 0,
    )


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _sentence(
    data: Mapping[str, Any], sizes: Sequence[float | None], counts: Sequence[Sequence[float]], names: Sequence[str]
) -> str:
    """Return the data in words."""
    clients = number(data.get("clients"))
    said = [f"Source {data['source']}"] if data.get("source") else []
    if clients is not None:
        said.append(plural(clients, "client"))
    if names:
        said.append(plural(len(names), "class").replace("classs", "classes"))
    known, total = sorted(size for size in sizes if size is not None), total_of(sizes)
    if total is not None:
        partial = clients is not None and clients > len(sizes)
        of = f" (of the first {plural(len(sizes), 'client')})" if partial else ""
        spread = f"{count_text(known[0])} to {count_text(known[-1])} per client, median {count_text(median(known))}"
        said.append(f"{plural(total, 'training example')}{', ' + spread if len(sizes) > 1 else ''}{of}")
    if len(counts) > 1 and names:
        single = sum(sum(count > 0 for count in row) == 1 for row in counts)
        among = f"{count_text(single)} of {plural(len(counts), 'client')}"
        said += [f"{among} with training examples of one class only"] if single else []
    return "; ".join(said) + "." if said else "The run did not describe its data."


def _lines(
    sizes: Sequence[float | None], counts: Sequence[Sequence[float]], classes: Sequence[str], names: Sequence[str]
) -> tuple[ClientLine, ...]:
    """Return a line per client."""
    top = max((size for size in sizes if size is not None), default=0.0) or 1.0
    lines = []
    for position, size in enumerate(sizes):
        row = list(counts[position]) if position < len(counts) else []
        total = sum(row)
        shares = tuple(Share(count_text(count), round(count / total, 4) if total else 0.0) for count in row)
        shares += (Share("0", 0.0),) * (len(classes) - len(shares))
        best = max(range(len(row)), key=row.__getitem__) if total else None
        largest = "" if best is None else f"{classes[best]} ({row[best] / total:.0%})"
        name = names[position] if position < len(names) else f"client {position}"
        lines.append(ClientLine(name, count_text(size), round((size or 0.0) / top, 4), shares, largest))
    return tuple(lines)


def _charts(sizes: Sequence[float | None], counts: Sequence[Sequence[float]]) -> tuple[Chart, ...]:
    """Return histograms of sizes and of the share of each client's most frequent class."""
    skew = [max(row) / sum(row) if sum(row) else None for row in counts]
    charts = [
        histogram(
            "Training examples per client",
            [Series("clients", "fed", sizes)],
            subtitle="Number of clients by size.",
            text=count_text,
        ),
        histogram(
            "Label skew",
            [Series("clients", "fed", skew)],
            subtitle="Number of clients by the share of their most frequent class; 1 is a single class.",
        ),
    ]
    return tuple(chart for chart in charts if chart)
