"""The protocols of all pieces. A piece is a frozen dataclass that claims only what it can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, Protocol

from hansa.core.layout import Array, Floats, Int64s, Lane, Layout
from hansa.core.nouns import (
    Aggregate,
    Assignment,
    Batch,
    ClientContext,
    ClientStates,
    InitialModel,
    ServerState,
    Signature,
)
from hansa.core.streams import Coins, Stream, Streams

Bounds = Mapping[str, float | None]
"""Group of branches -> the largest L2 norm of one client's part in it, or None where none is known."""


class EligibleView(Protocol):
    """The clients that may take part now. The view's owner records participation."""

    @property
    def size(self) -> int:
        """The number of eligible clients."""

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the names of some of them."""

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""


class CohortSampler(Protocol):
    """Draws the cohort of a round in O(cohort)."""

    def draw(self, eligible: EligibleView, round_number: int, coins: Coins) -> Int64s:
        """Return distinct ordinals of the eligible: int64 [cohort]."""

    def expected_size(self, population: int) -> float:
        """Return the expected size of a cohort."""

    def problems(self, population: int, rounds: int) -> list[tuple[str, str]]:
        """Return (key, sentence) for what cannot work with this population and number of rounds."""


class Hook(Protocol):
    """Bends local training: elementwise over matching slices of parameter, gradient and start."""

    branches: ClassVar[tuple[str, ...]]
    """Branches shaped like "params" that travel beside it, in both directions."""
    state: ClassVar[tuple[str, ...]]
    """Vectors shaped like "params" that a client keeps between rounds."""
    needs_plain_sgd: ClassVar[bool]
    """True where the method is defined for SGD without momentum only."""

    def gradient(self, parameter: Any, gradient: Any, start: Any, state: Mapping[str, Any]) -> Any:
        """Return the bent gradient; all are views of one shape, numpy or torch."""

    def finish(
        self, *, delta: Array, steps: Array, learning_rate: float, state: Mapping[str, Array]
    ) -> tuple[Mapping[str, Array], ClientStates]:
        """Return the updates of its branches, name -> [n, size], and the next rows of its state.

        ``delta`` [n, size] is how far local training moved the parameters, in ``steps`` [n].
        """


class ClientOptimizer(Protocol):
    """The local optimizer; changes parameters in place, numpy or torch."""

    @property
    def learning_rate(self) -> float:
        """The step size."""

    @property
    def plain_sgd(self) -> bool:
        """True for SGD without momentum: an update is the learning rate times the sum of its gradients."""

    @property
    def gradient_rate(self) -> float | None:
        """The eta of a step that is w <- w - eta g and nothing else, so that a trainer may take it by itself."""

    def start(self, parameter: Any) -> dict[str, Any]:
        """Return the optimizer's buffers for one parameter [n, ...]."""

    def step(self, parameter: Any, gradient: Any, buffers: Mapping[str, Any], number: int) -> None:
        """Apply step ``number`` (from 1) to a parameter and its buffers, in place; may write over the gradient."""

    def effective_steps(self, steps: Int64s) -> Array:
        """Return the L1 norm of the weights that an update gives its gradients: float64 [n], NaN if undefined."""


class Trainer(Protocol):
    """Local training and prediction, batched over clients. ``model`` is the plan's model section."""

    @property
    def optimizer(self) -> ClientOptimizer | None:
        """The local optimizer; None where nothing descends a gradient."""

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """What bends the gradients, in order."""

    bends_gradients: ClassVar[bool]
    """True if hooks can bend its gradients."""

    def initial(self, model: Any, signature: Signature, stream: Stream) -> InitialModel:
        """Return the branches ("params", and "buffers" if averaged) and their first values."""

    def notes(self, model: Any, signature: Signature) -> tuple[str, ...]:
        """Return what the user should know of this model in a federation (BatchNorm, for one)."""

    def batching(self, model: Any, signature: Signature) -> tuple[str, str]:
        """Return how clients train together, "none", "vmap" or "fused", and why: shown to users."""

    def client_rows(self, model: Any, signature: Signature) -> dict[str, Array]:
        """Return what the trainer keeps for a client between rounds (local buffers): name -> first row."""

    def train(self, model: Any, context: ClientContext, states: ClientStates) -> tuple[Batch, dict[str, Array]]:
        """Train every client of the context; return updates and the clients' next states.

        The batch holds deltas float32 [n, d] over all branches, the lane ``train_loss``, and
        ``side["steps"]`` float64 [n], the optimizer's effective steps (NaN where undefined).
        """

    def predict(self, model: Any, signature: Signature, values: Floats, x: Array, states: ClientStates) -> Array:
        """Return the outputs of one model [d] for examples x [b, ...]: float32 [b, outputs].

        ``states`` holds one client's rows without the client axis (local buffers), or is empty.
        """


class Transform(Protocol):
    """A layer around the wire: encoded on the client, decoded on the server in reverse order."""

    linear: ClassVar[bool]
    """True if decoding the sum is the sum of the decoded; else rows are decoded before they are folded."""
    changes_values: ClassVar[bool]
    """True if the sum must be decoded before it means anything, so that no rule over rows can follow."""
    emits: ClassVar[Literal["value", "ring"] | None]
    """The unit of what it emits, where it changes the unit."""
    noise_unit: ClassVar[Literal["value", "ring"] | None]
    """The unit of the noise that it adds, where it adds some."""

    def lanes(self) -> tuple[Lane, ...]:
        """Return the lanes that it adds."""

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:
        """Return the encoded batch; may add rows to the clients' next ``states``."""

    def decode_rows(self, batch: Batch, assignment: Assignment, streams: Streams) -> Batch:
        """Undo a non-linear encoding, row by row, before folding."""

    def decode_sum(self, aggregate: Aggregate, state: ServerState) -> Aggregate:
        """Undo a linear encoding on the sum."""

    def bound(self, incoming: Bounds, layout: Layout) -> Bounds:
        """Return the L2 bounds of what it emits, or None where it can claim none."""

    def slip(self, layout: Layout) -> float | None:
        """Return the largest change of one entry by encoding and decoding, or None if unbounded."""


class Aggregator(Protocol):
    """Combines updates: from their sum alone, or from all rows."""

    needs_sum_only: ClassVar[bool]
    fixed: ClassVar[bool]
    """True if it divides by a number that does not depend on who came."""

    def problems(self, cohort_size: float) -> list[tuple[str, str]]:
        """Return (key, sentence) for what cannot work with cohorts of this expected size."""


class FoldAggregator(Aggregator, Protocol):
    """An aggregator that needs the sum only: memory of the model, whatever the cohort."""

    def finish(self, total: Aggregate) -> Aggregate:
        """Return the sum with the weights that each branch is divided by; they come as NaN and must be set.

        The summed lane ``weight_lane(branch)`` holds what a mean divides by.
        """


class RowsAggregator(Aggregator, Protocol):
    """An aggregator that needs every row: memory of cohort x block, disk of cohort x d."""

    def combine(self, rows: Floats) -> Array:
        """Return the combination of a block of columns [n, block]: float64 [block]."""


class ServerOptimizer(Protocol):
    """Turns the combined update of a branch into the next model."""

    @property
    def branches(self) -> Mapping[str, ServerOptimizer]:
        """The optimizers of branches other than "params"."""

    def start(self, size: int) -> dict[str, Array]:
        """Return the optimizer's slot for a branch of that size."""

    def step(
        self, model: Array, update: Array, slot: Mapping[str, Array], included_share: float
    ) -> tuple[Array, dict[str, Array]]:
        """Return the next values (float64) and slot of a branch; ``included_share`` is included/population.

        A class with ``elementwise = True`` claims that an entry's step depends on no other entry: a large branch may
        come range by range, with the same ranges of what is as long in its slot.
        """


class Schedule(Protocol):
    """Says when the server takes a step, and whose reports are part of it."""

    synchronous: ClassVar[bool]
    """True if a step is that of one cohort's round, False if reports of several model versions make one."""

    def problems(self, sampler: CohortSampler, population: int) -> list[tuple[str, str]]:
        """Return (key, sentence) for what cannot work with this sampler and population."""

    def expected_reports(self, sampler: CohortSampler, population: int) -> float:
        """Return how many reports a step is expected to be made of, if nobody is late or lost."""


class SynchronousSchedule(Schedule, Protocol):
    """A schedule of rounds: a cohort is picked, waited for, and frozen."""

    @property
    def over_selection(self) -> float:
        """The share of the cohort that is picked on top."""

    @property
    def report_goal(self) -> int | None:
        """How many reports close a round, or None where the cohort's size does."""

    @property
    def needed_reports(self) -> int | None:
        """How many reports a round needs to count, or None where any number will do."""

    @property
    def round_deadline(self) -> float | None:
        """How many seconds a round waits, or None where it waits for everyone."""


class BufferedSchedule(Schedule, Protocol):
    """A schedule of buffers: clients report when they are done, each with an update of the version it was sent."""

    @property
    def concurrency(self) -> int:
        """How many clients train at the same time."""

    @property
    def buffer_size(self) -> int:
        """How many reports make a step."""

    @property
    def max_staleness(self) -> int | None:
        """The most versions that an update may be behind, or None."""

    def weight(self, staleness: int) -> float:
        """Return the factor of an update that is so many versions behind: above 0 and at most 1."""


class Partition(Protocol):
    """Deals examples without a client column to clients; deterministic in the seed."""

    def deal(self, labels: Array, stream: Stream) -> Int64s:
        """Return the client number of each example: int64 [N], every number from 0 to the largest in use."""


PROTOCOLS: Final[Mapping[str, type]] = {
    "sampler": CohortSampler,
    "hook": Hook,
    "client_optimizer": ClientOptimizer,
    "trainer": Trainer,
    "transform": Transform,
    "aggregator": Aggregator,
    "server_optimizer": ServerOptimizer,
    "schedule": Schedule,
    "partition": Partition,
}
"""What a piece of each family must have."""

_EITHER: Final[Mapping[str, tuple[str, type, type]]] = {
    "aggregator": ("needs_sum_only", FoldAggregator, RowsAggregator),
    "schedule": ("synchronous", SynchronousSchedule, BufferedSchedule),
}
"""Family -> the claim by which its pieces are of one protocol more or another."""


def lacking(family: str, piece: object) -> tuple[str, ...]:
    """Return the names of what a piece lacks of its family's protocol."""
    protocols = [PROTOCOLS[family]]
    if family in _EITHER:
        claim, first, second = _EITHER[family]
        protocols.append(first if getattr(piece, claim, True) else second)
    wanted = {
        name
        for protocol in protocols
        for name in (*vars(protocol), *protocol.__annotations__)
        if not name.startswith("_")
    }
    return tuple(sorted(name for name in wanted if not hasattr(piece, name)))
