"""Results as JSON, as a Markdown page, and as tables on the screen: the same figures in each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.places import RESULTS


@dataclass(frozen=True)
class Grid:
    """A table: its title, its columns, its rows of texts; the first column is names. A note may follow."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Return it in Markdown."""
        ruler = ["---", *["--:"] * (len(self.columns) - 1)]
        lines = [" | ".join(cells) for cells in (self.columns, ruler, *self.rows)]
        body = "\n".join(f"| {line} |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        if self.note:
            console.print(self.note, style="dim", soft_wrap=True)


def write(kind: str, result: dict[str, Any], grids: Iterable[Grid], console: Console) -> Path:
    """Write KIND-DATE.json and .md into results/, print the tables, and return the page's path."""
    shown = list(grids)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = "\n".join([f"# {kind}\n\n{machine_line(result['machine'])}\n", *(grid.markdown() for grid in shown)])
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    for grid in shown:
        console.print()
        grid.show(console)
    console.print(
        f"\n{stem.with_suffix('.md').relative_to(RESULTS.parent.parent)}, and .json beside it", highlight=False
    )
    return stem.with_suffix(".md")


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine's facts in two lines."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return (
        f"{machine['date']}, commit {machine['commit']}. {machine['processor']}; {machine['cores']} cores, "
        f"{machine['memory_gb']} GB; Python {machine['python']}, {versions}."
    )


def comparison(result: dict[str, Any]) -> list[Grid]:
    """Return for each task the table of figures and the table of ratios."""
    grids = [grid for name, task in result["tasks"].items() for grid in (_figures(name, task), _ratios(name, task))]
    return [grid for grid in grids if grid.rows]


def fastest_peer(task: dict[str, Any]) -> str | None:
    """Return the name of the fastest system that is neither Hansa nor a mere reference."""
    speeds = {name: one["updates_per_second"] for name, one in _good(task).items() if is_peer(one)}
    return max(speeds, key=lambda name: speeds[name]) if speeds else None


def is_peer(system: dict[str, Any]) -> bool:
    """Return whether a system's summary is a peer's."""
    return not system["hansa"] and not system["reference"]


def ratios(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Return how many times better Hansa is: more updates a second, less memory, an earlier first round."""
    return {
        "speed": mine["updates_per_second"] / other["updates_per_second"],
        "rss": other["peak_rss"] / mine["peak_rss"],
        "pss": other["peak_pss"] / max(1, mine["peak_pss"]),
        "first_round": other["first_round"] / mine["first_round"],
    }


def why_failed(reasons: dict[str, str]) -> str:
    """Return the reasons of what failed, to be put behind a table's note."""
    return "".join(f" {name} failed: {reason}" for name, reason in reasons.items())


def _good(task: dict[str, Any]) -> dict[str, Any]:
    return {name: system for name, system in task["systems"].items() if "failure" not in system}


def _figures(name: str, task: dict[str, Any]) -> Grid:
    columns = ("system", "updates/s", "least - most", "first round, s", "start-up, s", "RSS, MB", "PSS, MB", "loss")
    rows = []
    for system, one in task["systems"].items():
        if "failure" in one:
            rows.append((system, "failed", *[""] * 6))
            continue
        digits = 1 if one["fastest"] < 100 else 0
        spread = f"{one['slowest']:,.{digits}f} - {one['fastest']:,.{digits}f}"
        learned = ", ".join(f"{value:.4f} ({rounds})" for rounds, value in one["loss"].items())
        times = (f"{one[key]:.2f}" for key in ("first_round", "start_up"))
        memory = (f"{one[key] / 1e6:,.0f}" for key in ("peak_rss", "peak_pss"))
        rows.append((system, f"{one['updates_per_second']:,.1f}", spread, *times, *memory, learned))
    note = (
        f"Loss on a fixed sample of all examples, after as many rounds as in brackets; {task['initial_loss']:.4f} "
        "before. Medians of all repetitions; updates a second without the first round; peak memory of the whole "
        "process tree."
    )
    disturbed = max((run["others"] for run in task["runs"]), default=0.0)
    if disturbed > 0.2:
        note += f" Other processes of the machine used up to {disturbed:.1f} cores meanwhile."
    reasons = {system: one["failure"] for system, one in task["systems"].items() if "failure" in one}
    return Grid(f"Task {name}: {task['about']}", columns, rows, (note + why_failed(reasons)).strip())


def _ratios(name: str, task: dict[str, Any]) -> Grid:
    good, fastest = _good(task), fastest_peer(task)
    columns = ("Hansa against", "speed", "less RSS", "less PSS", "earlier first round")
    rows = []
    for mine in (system for system in good if good[system]["hansa"]):
        for other in (system for system in good if not good[system]["hansa"]):
            about = " (fastest peer)" if other == fastest else " (no peer)" if good[other]["reference"] else ""
            rows.append((f"{mine} / {other}{about}", *(f"{v:.2f}x" for v in ratios(good[mine], good[other]).values())))
    return Grid(f"Task {name}: ratios", columns, rows)
