"""Ways to deal examples to clients; each is deterministic in the seed and deals every example once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from hansa.core.layout import Array, Int64s
from hansa.core.schema import Doc
from hansa.core.streams import Stream
from hansa.data.refusals import invalid, plan_problem


@dataclass(frozen=True)
class Natural:
    """The source's own clients: hospitals, sensors, speaking roles, the client column of a table."""

    def deal(self, labels: Array, stream: Stream) -> Int64s:  # noqa: ARG002 - nothing is dealt
        """Raise PlanError: only a source can know its own clients."""
        raise plan_problem(
            "data.partition.kind",
            'the source has no clients of its own; choose "iid", "dirichlet", "shards" or "quantity".',
        )


@dataclass(frozen=True, kw_only=True)
class Iid:
    """Shuffled and dealt evenly: every client's examples look like the whole, sizes differ by at most one."""

    clients: Annotated[int, Ge(1), Doc("number of clients")]

    def deal(self, labels: Array, stream: Stream) -> Int64s:
        """Return the client number of each example: int64 [N]."""
        _refuse_too_many(self.clients, len(labels))
        numbers = np.empty(len(labels), dtype=np.int64)
        generator = stream.coins().generator()
        hands = generator.permutation(self.clients)  # chance decides who gets one more
        numbers[generator.permutation(len(labels))] = hands[np.arange(len(labels)) % self.clients]
        return numbers


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Clients of equal size whose mixes of classes are drawn from Dir(alpha p), p the pooled mix.

    Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", section 3 (https://arxiv.org/abs/1909.06335): a client whose class has run out draws
    again from its mix of what is left. Here all clients draw at once, and where a class is asked for more
    often than it has examples, chance decides who gets them. Software that draws from Dir(alpha 1) over K
    classes calls alpha what is alpha K here.
    """

    clients: Annotated[int, Ge(1), Doc("number of clients")]
    alpha: Annotated[
        float, Gt(0), Doc("concentration: large gives every client the pooled mix of classes, near 0 one class each")
    ]

    def deal(self, labels: Array, stream: Stream) -> Int64s:
        """Return the client number of each example: int64 [N]. Raises PlanError for a real-valued label."""
        _refuse_too_many(self.clients, len(labels))
        if labels.dtype.kind == "f":
            raise plan_problem(
                "data.partition.kind", 'dirichlet mixes classes, but the label is real-valued; use "shards" or "iid".'
            )
        classes, codes, supply = np.unique(labels, return_inverse=True, return_counts=True)
        generator = stream.coins().generator()
        mixes = generator.dirichlet(self.alpha * supply / supply.sum(), size=self.clients)
        counts = _draw_counts(mixes, supply, generator)
        numbers = np.empty(len(labels), dtype=np.int64)
        for code in range(len(classes)):
            rows = generator.permutation(np.flatnonzero(codes == code))
            numbers[rows] = np.repeat(np.arange(self.clients), counts[:, code])
        return numbers


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Sorted by label, cut into equal shards, so many shards to each client.

    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", section 3
    (https://arxiv.org/abs/1602.05629): with two shards each, most clients have examples of two digits only.
    """

    clients: Annotated[int, Ge(1), Doc("number of clients")]
    per_client: Annotated[int, Ge(1), Doc("shards of each client")] = 2

    def deal(self, labels: Array, stream: Stream) -> Int64s:
        """Return the client number of each example: int64 [N]."""
        shards = self.clients * self.per_client
        _refuse_too_many(shards, len(labels), what="shards")
        generator = stream.coins().generator()
        order = np.lexsort((generator.permutation(len(labels)), labels))  # within a class, not in the file's order
        owners = generator.permutation(shards) // self.per_client
        numbers = np.empty(len(labels), dtype=np.int64)
        numbers[order] = owners[np.arange(len(labels)) * shards // len(labels)]
        return numbers


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """The same mix for everyone, but sizes that follow a log-normal law; at least one example each."""

    clients: Annotated[int, Ge(1), Doc("number of clients")]
    sigma: Annotated[float, Ge(0), Doc("standard deviation of the logarithm of the sizes; 0 gives equal sizes")] = 1.0

    def deal(self, labels: Array, stream: Stream) -> Int64s:
        """Return the client number of each example: int64 [N]."""
        _refuse_too_many(self.clients, len(labels))
        generator = stream.coins().generator()
        logarithms = self.sigma * generator.standard_normal(self.clients)
        weights = np.exp(logarithms - logarithms.max())
        sizes = 1 + _rounded(weights / weights.sum() * (len(labels) - self.clients))
        numbers = np.empty(len(labels), dtype=np.int64)
        numbers[generator.permutation(len(labels))] = np.repeat(np.arange(self.clients), generator.permutation(sizes))
        return numbers


def checked(numbers: Array, examples: int) -> tuple[Int64s, int]:
    """Return the client number of each example, and how many clients there are.

    Raises DataError where a partition (of the user's own, say) dealt something else.
    """
    numbers = np.asarray(numbers)
    rule = "A partition gives every example the number of one client, from 0, and no client is left without."
    action = "Return an int64 array [examples] with every number from 0 to the largest."
    if numbers.shape != (examples,) or numbers.dtype.kind not in "iu":
        found = f"It returned {numbers.dtype} {list(numbers.shape)} for {examples} examples."
        raise invalid(rule=rule, found=found, action=action)
    if examples and int(numbers.min()) < 0:
        raise invalid(rule=rule, found=f"The number {int(numbers.min())} was met.", action=action)
    clients = int(numbers.max(initial=-1)) + 1
    if clients > examples or (np.bincount(numbers, minlength=clients) == 0).any():
        raise invalid(rule=rule, found=f"Some of {clients} clients have no samples.", action=action)
    return numbers.astype(np.int64, copy=False), clients


def _refuse_too_many(hands: int, examples: int, what: str = "clients") -> None:
    if hands > examples:
        raise plan_problem(
            "data.partition.clients",
            f"{hands} {what} cannot share {examples} examples, for each needs at least one; deal to fewer.",
        )


def _draw_counts(mixes: Array, supply: Int64s, generator: np.random.Generator) -> Int64s:
    """Return how many examples of each class each client gets: int64 [clients, classes].

    Sizes differ by at most one. Each pass deals what is asked for, or uses up a class; so there are at most as
    many passes as classes.
    """
    clients = len(mixes)
    total = int(supply.sum())
    need = np.full(clients, total // clients) + (generator.permutation(clients) < total % clients)
    left = supply.copy()
    counts = np.zeros(mixes.shape, dtype=np.int64)
    while need.any():
        wished = generator.multinomial(need, _renormalised(mixes, left))
        for code in np.flatnonzero(wished.sum(axis=0) > left):
            wished[:, code] = generator.multivariate_hypergeometric(wished[:, code], left[code], method="marginals")
        counts += wished
        left = left - wished.sum(axis=0)
        need = need - wished.sum(axis=1)
    return counts


def _renormalised(mixes: Array, left: Int64s) -> Array:
    """Return each client's mix over the classes that are left; the pooled rest where its own classes are gone."""
    open_mixes = mixes * (left > 0)
    totals = open_mixes.sum(axis=1, keepdims=True)
    usable = totals > np.finfo(np.float64).tiny
    shares = np.where(usable, open_mixes / np.where(usable, totals, 1.0), left / left.sum())
    return np.asarray(shares / np.maximum(shares.sum(axis=1, keepdims=True), 1.0))


def _rounded(shares: Array) -> Int64s:
    """Round numbers down or up so that their sum, a whole number, is kept (largest remainder)."""
    floors = np.floor(shares).astype(np.int64)
    rest = round(float(shares.sum())) - int(floors.sum())
    floors[np.argsort(-(shares - floors), kind="stable")[:rest]] += 1
    return floors
