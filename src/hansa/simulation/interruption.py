"""Ctrl-C ends a run after a whole round."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from hansa.core.errors import RunError


class Interruption:
    """Tells of the first interrupt, and holds it back until the round has closed; a second one ends the run at once.

    Either way nothing is lost: the checkpoint is that of the last closed round.
    """

    def __init__(self, folder: Path, tell: Callable[[Mapping[str, Any]], object], *, resumable: bool = True) -> None:
        self.folder = folder
        self.resumable = resumable
        self.tell = tell
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's parameters
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with suppress(RuntimeError):  # a notice that would break into another being written is let go
            self.tell({"event": "interrupted"})

    def after_round(self, round_number: int) -> None:
        """Raise RunError if an interrupt came during the round."""
        if self.asked:
            go_on = f"Go on with: hansa run --resume {self.folder}"
            raise RunError(
                "HANSA-RUN-INTERRUPTED",
                rule="An interrupted run ends after a whole round.",
                found=f"Round {round_number} is closed and saved.",
                action=go_on if self.resumable else "Run the plan again: the key of its correlated noise is gone.",
            )
