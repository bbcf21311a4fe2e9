"""Progress of a run: a bar on a terminal, plain lines elsewhere. Both only watch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from hansa.cli.console import sentence
from hansa.core.layout import TRAIN_LOSS
from hansa.reporting.figures import count_text, metric_name, metric_text, number, seconds_text

_LINES: Final = 20
"""Plain lines of a run, about."""
_SILENCE: Final = 15.0
"""Most seconds without a plain line."""
_BASELINES: Final = {"local-only": "each client alone", "centralised": "pooled training"}


class Watch:
    """What a run has told so far. ``folder`` is its run folder, once there is one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.folder: Path | None = None
        self.rounds = 0
        self.round = 0
        self.loss: float | None = None
        self.metric = ""
        self._updates = 0.0
        self._seconds = 0.0
        self._first: int | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen as it is."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the run."""
        getattr(self, f"on_{event['event']}", self.on_other)(event)

    def on_other(self, event: Mapping[str, Any]) -> None:
        """Pass over what is not known."""

    def on_start(self, event: Mapping[str, Any]) -> None:
        """Say what begins, and what the data and the model gave reason to say."""
        self.rounds = int(event["rounds"])
        self.folder = Path(event["folder"]) if "folder" in event else None
        self.console.print(Text(str(event["name"]), style="bold"))
        how, why = event["computed"]
        self.console.print(Text("computed: ", style="cyan").append(f"{how} ({why})", style="none"))
        for note in event["notes"]:
            self.console.print(Text("note: ", style="yellow").append(str(note), style="none"))

    def on_round(self, event: Mapping[str, Any]) -> None:
        """Take in a closed round."""
        self.round = int(event["round"])
        if self._first is None:
            self._first = self.round
            if self.round > 1:
                sentence(self.console, f"going on after round {self.round - 1}")
        self.loss = number(event["train_loss"])
        self._updates += event["cohort"]
        self._seconds += event["seconds"]

    def on_evaluation(self, event: Mapping[str, Any]) -> None:
        """Take in an evaluation."""
        self.metric = latest_metric(event)

    def on_interrupted(self, event: Mapping[str, Any]) -> None:  # noqa: ARG002 - events have one form
        """Say at once that the interrupt was heard."""
        self.console.print("interrupted: the run ends when this round has closed; press Ctrl-C again to end it now")

    def on_baselines(self, event: Mapping[str, Any]) -> None:
        """Take in that the baselines begin."""

    @property
    def rate(self) -> str:
        """Return the client updates a second, as text."""
        return f"{count_text(self._updates / max(self._seconds, 1e-9))} updates/s" if self._updates else ""

    @property
    def remaining(self) -> str:
        """Return the time that the rounds left are expected to take, as text."""
        if self._first is None or self.round >= self.rounds:
            return ""
        each = (time.monotonic() - self._began) / (self.round - self._first + 1)
        seconds = each * (self.rounds - self.round)
        return "under 1 s left" if seconds < 1 else f"{seconds_text(float(f'{seconds:.2g}'))} left"

    def words(self) -> list[str]:
        """Return loss, metric, speed and time left; what is not known yet is left out."""
        loss = "" if self.loss is None else f"loss {metric_text(self.loss)}"
        if self.loss is not None and self.loss >= TRAIN_LOSS.high:
            loss = f"loss over {count_text(TRAIN_LOSS.high)}"
        return [part for part in (loss, self.metric, self.rate, self.remaining) if part]


class Lines(Watch):
    """Plain lines: at evaluations, about twenty of them, and one at least every quarter of a minute."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._next = 1
        self._last = time.monotonic()

    def on_round(self, event: Mapping[str, Any]) -> None:
        """Print a line if there was none for long."""
        super().on_round(event)
        if time.monotonic() - self._last > _SILENCE:
            self._print()

    def on_evaluation(self, event: Mapping[str, Any]) -> None:
        """Print a line with the new value, if it is time for one."""
        super().on_evaluation(event)
        if self._next <= self.round or self.round == self.rounds:
            self._print()

    def on_interrupted(self, event: Mapping[str, Any]) -> None:  # noqa: ARG002 - events have one form
        """Say at once that the interrupt was heard."""
        self.console.print("interrupted: the run ends when this round has closed; press Ctrl-C again to end it now")

    def on_baselines(self, event: Mapping[str, Any]) -> None:
        """Say what is trained for comparison."""
        if event["baselines"]:
            sentence(self.console, f"for comparison: {baseline_names(event)}")

    def _print(self) -> None:
        self._last = time.monotonic()
        self._next = self.round + max(1, self.rounds // _LINES)
        line = ", ".join([f"round {self.round}/{self.rounds}", *self.words()])
        self.console.print(line, markup=False, soft_wrap=True)


class Bar(Watch):
    """A bar that stays on its line of a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        wide = console.width >= 90
        bar = [BarColumn(bar_width=24 if wide else 8)] if console.width >= 70 else []
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *bar,
            TextColumn("{task.fields[words]}", style="cyan"),
            console=console,
            transient=True,
            refresh_per_second=8,
        )
        self._task: TaskID | None = None
        self._wide = wide

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._progress.stop()

    def on_start(self, event: Mapping[str, Any]) -> None:
        """Put the bar up."""
        super().on_start(event)
        self._task = self._progress.add_task(f"round 0/{self.rounds}", total=self.rounds, words="")

    def on_round(self, event: Mapping[str, Any]) -> None:
        """Move the bar."""
        super().on_round(event)
        self._show()

    def on_evaluation(self, event: Mapping[str, Any]) -> None:
        """Show the new value."""
        super().on_evaluation(event)
        self._show()

    def on_interrupted(self, event: Mapping[str, Any]) -> None:  # noqa: ARG002 - events have one form
        """Say at once that the interrupt was heard."""
        self.console.print("interrupted: the run ends when this round has closed; press Ctrl-C again to end it now")

    def on_baselines(self, event: Mapping[str, Any]) -> None:
        """Say what is trained for comparison; how long it takes is not known."""
        if self._task is not None and event["baselines"]:
            description = f"for comparison: {baseline_names(event)}"
            self._progress.update(self._task, description=description, total=None, words="")

    def _show(self) -> None:
        if self._task is not None:
            words = self.words() if self._wide else [word for word in self.words() if word != self.rate]
            self._progress.update(
                self._task,
                completed=self.round,
                description=f"round {self.round}/{self.rounds}",
                words=escape("  ".join(words)),
            )


def watch(console: Console) -> Watch:
    """Return the progress that suits the console."""
    return Bar(console) if console.is_terminal else Lines(console)


def baseline_names(event: Mapping[str, Any]) -> str:
    """Return the baselines of a plan in words."""
    return ", ".join(_BASELINES.get(name, name) for name in event["baselines"])


def latest_metric(event: Mapping[str, Any]) -> str:
    """Return the first metric of an evaluation, the loss last, with its value, as text."""
    for part in ("federated", "central", "validation", "held_out_clients"):
        table = event.get(part)
        if not table:
            continue
        name = min(table, key=lambda metric: metric == "loss")
        found = table[name]
        value = number(found.get("overall") if isinstance(found, Mapping) else found)
        return f"{metric_name(name)} {metric_text(value)}"
    return ""
