"""The process executor: workers with one thread each, over shared data, for models that Python's lock would hold up."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

from loky.process_executor import ProcessPoolExecutor
from threadpoolctl import threadpool_limits

from hansa.algorithms.fold import BLOCK
from hansa.core.errors import RunError
from hansa.core.layout import Floats
from hansa.core.nouns import Assignment
from hansa.simulation.executors import Partial, StatesOf, Work, compute, with_kernels, work_of
from hansa.simulation.preparation import Prepared
from hansa.simulation.sharing import Folder, Packed, of_the_script, put_into_script, share, shared
from hansa.simulation.spans import AHEAD, Span, gathered, in_order_of_work, spans
from hansa.training.kernels import Kernels

_DEATHS: Final = 3
"""Times in a row that workers may die before a run gives up."""
_WATCH_SECONDS: Final = 1.0


class Processes:
    """Chunks of clients in worker processes. A worker that dies is replaced, and its clients run again.

    Data and assignment are written once and mapped by every worker; what a span gave comes back the same way.
    """

    def __init__(self, *, chunk: int, workers: int, kernels: Kernels) -> None:
        self.chunk = chunk
        self.workers = workers
        self.kernels = kernels
        self._pool: ProcessPoolExecutor | None = None
        self._folder: Folder | None = None
        self._shared: tuple[Prepared, Folder, Path] | None = None

    def partials(
        self, prepared: Prepared, assignment: Assignment, states_of: StatesOf, factors: Floats | None = None
    ) -> Iterator[Partial]:
        """Yield what every span gave, as the workers finish. Raises RunError if they keep dying."""
        folder, data = self._shared_folder(prepared, assignment)
        model = share(assignment, folder.path)
        sizes = prepared.data.train.sizes(assignment.cohort)
        ordered = in_order_of_work(spans(len(assignment.cohort), self.chunk), sizes, AHEAD * self.workers)
        done: set[int] = set()
        deaths = 0

        def submit(span: Span) -> Future[Path]:
            work = work_of(assignment, span, self.chunk, states_of, factors)
            pool = self._workers(prepared, folder)
            with _without_interrupts():  # workers start when work comes, and take over what is blocked
                future: Future[Path] = pool.submit(_compute_there, data, model, work, self.kernels)
            return future

        try:
            while len(done) < len(ordered):
                left = [span for span in ordered if span.start not in done]
                try:
                    # Nothing is cancelled: whoever stops ends the workers, and loky trips over what was cancelled.
                    for path in gathered(left, submit, AHEAD * self.workers, cancels=False):
                        found: Partial = shared(path)
                        path.unlink()
                        done.add(found.position)
                        deaths = 0
                        yield found
                except BrokenProcessPool as error:
                    deaths += 1
                    self._end_workers()
                    folder.keep_only(data, model)
                    if deaths == _DEATHS:
                        raise _dying(error) from error
        finally:
            model.unlink(missing_ok=True)

    def close(self) -> None:
        """End the workers and remove what was shared."""
        self._end_workers()
        if self._folder is not None:
            self._folder.close()

    def _workers(self, prepared: Prepared, folder: Folder) -> ProcessPoolExecutor:
        if self._pool is None:
            resource_tracker.ensure_running()  # where it starts with the workers, it lets interrupts through to them
            arguments = (os.getpid(), folder.path, of_the_script(prepared.plan))
            self._pool = ProcessPoolExecutor(self.workers, initializer=_begin, initargs=arguments)
        return self._pool

    def _end_workers(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None

    def _shared_folder(self, prepared: Prepared, assignment: Assignment) -> tuple[Folder, Path]:
        """Return the folder, and where in it the data are."""
        if self._shared is None or self._shared[0] is not prepared:
            data = Packed.of(prepared.for_workers())
            if self._folder is None:
                a_partial = 8 * assignment.layout.size * max(1, self.chunk // BLOCK)
                self._folder = Folder(data.size + 2 * AHEAD * self.workers * a_partial)
            self._shared = prepared, self._folder, data.write(self._folder.path)
        return self._shared[1:]


def _dying(error: BaseException) -> RunError:
    return RunError(
        "HANSA-RUN-WORKERS",
        rule="A worker process that dies is replaced, and its clients run again.",
        found=f"Workers died {_DEATHS} times in a row without finishing anything ({type(error).__name__}).",
        action="Often memory has run out: use fewer --workers or a smaller --chunk. The last closed round is kept.",
    )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold interrupts back, here and in the processes that are started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int, folder: Path, own: Mapping[str, Any]) -> None:
    """Prepare a worker: an interrupt is the run's to handle, and without the run there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(limits=1)
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
    put_into_script(own)


def _end_with(parent: int, folder: Path) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)  # the run was killed: nobody else removes it
    os._exit(1)


@lru_cache(maxsize=1)
def _prepared(path: Path) -> Prepared:
    found: Prepared = shared(path)
    return found


@lru_cache(maxsize=1)
def _assignment(path: Path) -> Assignment:
    found: Assignment = shared(path)
    return found


def _compute_there(data: Path, model: Path, work: Work, kernels: Kernels) -> Path:
    """Compute a span in a worker; return where its result is shared."""
    try:
        found: Any = with_kernels(kernels, compute, _prepared(data), _assignment(model), work)
    except Exception as error:
        if _can_be_sent(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return share(found, model.parent)


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was written just now
    except Exception:  # noqa: BLE001 - any code may be in an error of the user's own
        return False
    return True
