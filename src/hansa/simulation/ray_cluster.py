"""The Ray executor: chunks of clients as tasks on a Ray cluster, for runs that outgrow one machine (extra ``ray``).

Ray places the tasks, moves what they share to the machines that need it, and runs a task again whose worker died.
It connects to the cluster that ``RAY_ADDRESS`` names, or starts one on this machine. Modules that the plan names must
be importable on every machine of a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final

from threadpoolctl import threadpool_limits

from hansa.core.errors import HansaError, RunError
from hansa.core.layout import Floats
from hansa.core.nouns import Assignment
from hansa.simulation.executors import Partial, StatesOf, Work, compute, with_kernels, work_of
from hansa.simulation.preparation import Prepared
from hansa.simulation.sharing import of_the_script, put_into_script
from hansa.simulation.spans import AHEAD, Span, gathered, in_order_of_work, spans
from hansa.training.kernels import Kernels

_RETRIES: Final = 3
"""How often Ray runs a task again whose worker died."""


class Ray:
    """Chunks of clients as Ray tasks of one processor each. ``workers`` bounds how many are asked for at once."""

    def __init__(self, *, chunk: int, workers: int, kernels: Kernels) -> None:
        self.chunk = chunk
        self.workers = workers
        self.kernels = kernels
        self._ray = _imported()
        self._own = False
        self._prepared: tuple[Prepared, Any] | None = None
        self._task: Any = None

    def partials(
        self, prepared: Prepared, assignment: Assignment, states_of: StatesOf, factors: Floats | None = None
    ) -> Iterator[Partial]:
        """Yield what every span gave, as the tasks finish. Raises RunError if a task is lost again and again."""
        self._connect()
        data, model = self._shared_data(prepared), self._ray.put(assignment)
        sizes = prepared.data.train.sizes(assignment.cohort)
        ordered = in_order_of_work(spans(len(assignment.cohort), self.chunk), sizes, AHEAD * self.workers)

        def submit(span: Span) -> Future[Partial]:
            work = work_of(assignment, span, self.chunk, states_of, factors)
            future: Future[Partial] = self._task.remote(data, model, work, self.kernels).future()
            return future

        try:
            yield from gathered(ordered, submit, AHEAD * self.workers)
        except self._ray.exceptions.RayTaskError as error:  # what the task itself raised
            cause = error.cause
            raise cause if isinstance(cause, HansaError) else error from error
        except self._ray.exceptions.RayError as error:
            raise _lost(error) from error

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._own:
            self._ray.shutdown()
            self._own = False

    def _connect(self) -> None:
        if not self._ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            started = {} if address else {"num_cpus": self.workers, "include_dashboard": False}
            self._ray.init(address=address, log_to_driver=False, configure_logging=False, **started)
            self._own = True
        if self._task is None:
            self._task = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_compute_there)

    def _shared_data(self, prepared: Prepared) -> Any:
        if self._prepared is None or self._prepared[0] is not prepared:
            own = of_the_script(prepared.plan)
            self._prepared = prepared, self._ray.put((prepared.for_workers(), own))
        return self._prepared[1]


def _lost(error: BaseException) -> RunError:
    """Return the error of a task that Ray did not finish: its worker, its machine or what it reads was lost."""
    first = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return RunError(
        "HANSA-RUN-WORKERS",
        rule=f"A Ray task whose worker or machine is lost runs again, {_RETRIES} times at most.",
        found=f"One did not end ({type(error).__name__}{f': {first}' if first else ''}).",
        action="Often memory has run out: use a smaller --chunk, fewer --workers or larger machines. "
        "The last closed round is kept.",
    )


def _compute_there(
    data: tuple[Prepared, Mapping[str, Any]], assignment: Assignment, work: Work, kernels: Kernels
) -> Partial:
    """Compute a span in a Ray worker."""
    prepared, own = data
    put_into_script(own)
    with threadpool_limits(limits=1):
        return with_kernels(kernels, compute, prepared, assignment, work)


def _imported() -> Any:
    try:
        import ray  # noqa: PLC0415 - ray is an extra
        import ray.exceptions  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise HansaError(
            "HANSA-EXTRA-MISSING",
            rule="--executor ray needs ray.",
            found="It is not installed here.",
            action="Run in the clone: pip install -e '.[ray]'",
        ) from error
    return ray
