"""The section ``[secure_aggregation]``: which protocol hides single updates, from whom, and in which integers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from hansa.core.ring import FEWEST_BITS, MOST_BITS
from hansa.core.schema import Doc, Unsound

Protocol = Literal["secagg-full", "secagg-plus", "oneshot-seeds"]
Bits = Annotated[int, Ge(FEWEST_BITS), Le(MOST_BITS)]
ValueBits = Annotated[int, Ge(2), Le(32)]


@dataclass(frozen=True, kw_only=True)
class Decryptor:
    """A service that holds one share of every mask of ``oneshot-seeds``, and gives the sum of its shares only."""

    name: Annotated[str, MinLen(1), Doc("what it is called")]
    url: Annotated[str, MinLen(1), Doc("where the server reaches it")]
    operator: Annotated[str, MinLen(1), Doc("the organisation that runs it, and must not collude with the others")]
    key: Annotated[
        str | None, Doc("its public key, as `hansa decryptor key` prints it; a simulation draws one of its own")
    ] = None

    @property
    def identity(self) -> bytes:
        """Return the public key, 32 bytes; none where it is not named, or is no key."""
        return _key(self.key)


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A service that vouches for the clients' keys of a sum; whether it is believed, each site's policy says."""

    url: Annotated[str, MinLen(1), Doc("where the server reaches it")]
    operator: Annotated[str, MinLen(1), Doc("the organisation that runs it, and must not collude with the server")]
    key: Annotated[
        str, MinLen(1), Doc("its public key, as `hansa authority key` prints it; sites trust that of their own policy")
    ]

    @property
    def identity(self) -> bytes:
        """Return the public key, 32 bytes; none where it is no key."""
        return _key(self.key)


@dataclass(frozen=True, kw_only=True)
class BranchIntegers:
    """How one branch of the update becomes integers, where it is not as the section says for all."""

    name: Annotated[str, MinLen(1), Doc('the branch: "params", "control", "buffers"')]
    max_value: Annotated[float | None, Gt(0), Doc("largest entry of one client's update; absent: as for all")] = None
    value_bits: Annotated[ValueBits | None, Doc("bits of an entry before it is weighed; absent: as for all")] = None
    bits: Annotated[Bits | None, Doc("bits of an entry of the sum; absent: as for all")] = None


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """Secure sums: the server learns the sum of a cohort's integers, and nothing else about one client's update.

    Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning",
    https://eprint.iacr.org/2017/281 (secagg-full), Bell et al. 2020, https://eprint.iacr.org/2020/704 (secagg-plus).
    """

    protocol: Annotated[
        Protocol,
        Doc(
            "secagg-full: every pair masks; secagg-plus: a sparse graph of pairs; oneshot-seeds: one upload, decryptors"
        ),
    ] = "secagg-full"
    mode: Annotated[
        Literal["exact", "arithmetic"],
        Doc(
            "simulation only, not in the plan's hash. exact: the protocol's own machines, for small cohorts; "
            "arithmetic: the same integers without masks, and the same sum bit for bit"
        ),
    ] = "arithmetic"
    server: Annotated[
        Literal["curious", "malicious"],
        Doc("the server that is defended against: one that keeps to the protocol and looks, or one that may lie"),
    ] = "curious"
    beacon: Annotated[
        Literal["authority"] | None,
        Doc(
            "secagg-plus: who draws the graph of pairs, once it is fixed which clients take part; without one the "
            "graph follows from the task, which the server chooses"
        ),
    ] = None
    registrar: Annotated[
        Literal["server", "pinned", "authority"],
        Doc(
            "who vouches for the clients' keys: the server, each site's own list of its peers, or an authority whose "
            "key the server does not hold"
        ),
    ] = "pinned"
    authority: Annotated[
        Authority | None, Doc('registrar = "authority" in a federation: which; a simulation draws one of its own')
    ] = None
    minimum_cohort: Annotated[
        int, Ge(3), Doc("fewest clients with which a sum begins; a site's policy may ask more")
    ] = 3
    minimum_survivors: Annotated[int, Ge(3), Doc("fewest clients whose sum is shown to the server")] = 3
    maximum_cohort: Annotated[
        int | None,
        Ge(3),
        Le(10**6),
        Doc("most clients of a cohort, for which no sum may overflow; absent: the cohort's size, where it has one"),
    ] = None
    group_size: Annotated[
        int | None, Ge(3), Doc("cut a cohort into groups of at least so many clients, a sum each; absent: one sum")
    ] = None
    expected_dropout: Annotated[
        float, Ge(0), Lt(1), Doc("share of a cohort that is expected to be lost after it began to mask")
    ] = 0.1
    assumed_colluding: Annotated[
        int, Ge(0), Doc("clients that may work together with the server without learning one honest client's update")
    ] = 1
    phase_deadline: Annotated[float, Gt(0), Doc("seconds that each phase of the protocol waits for clients")] = 60.0
    decryptors: Annotated[
        tuple[Decryptor, ...], Doc("oneshot-seeds: who removes the masks together; two operators at least")
    ] = ()
    max_value: Annotated[
        float,
        Gt(0),
        Le(1e9),
        Doc("largest entry of one client's update, before it is weighed; a larger update is scaled down and counted"),
    ] = 1.0
    value_bits: Annotated[
        ValueBits | None, Doc("bits of an entry before it is weighed; absent: 16, or what `bits` leaves")
    ] = None
    bits: Annotated[
        Bits | None, Doc("bits of an entry of the sum, which is modulo 2^bits; absent: the fewest that never overflow")
    ] = None
    max_weight: Annotated[
        float | None,
        Gt(0),
        Le(2.0**24),
        Doc("largest weight of a client, above which it counts no more; absent: that of weigh-by-size, or 1"),
    ] = None
    weight_bits: Annotated[int, Ge(1), Le(16), Doc("bits of a client's weight")] = 8
    rotation: Annotated[
        bool, Doc("spread large entries by a random Hadamard rotation with public signs before rounding")
    ] = False
    branches: Annotated[tuple[BranchIntegers, ...], Doc("branches whose integers differ")] = ()

    def __post_init__(self) -> None:
        found = " ".join(self._protocol_problems()) or " ".join(self._number_problems())
        if found:
            raise Unsound(found)

    @property
    def group_limit(self) -> int | None:
        """Return the most clients of one group, or None where a cohort is one group."""
        return None if self.group_size is None else 2 * self.group_size - 1

    def groups(self, cohort: int) -> int:
        """Return into how many groups a cohort is cut: each has ``group_size`` clients at least, or is the cohort."""
        return 1 if self.group_size is None else max(1, cohort // self.group_size)

    def threshold(self, clients: int) -> int | None:
        """Return how many of so many clients must answer to unmask their sum, where the plan alone says it.

        secagg-full: floor(2n/3) + 1 of n, so that two different sets of survivors can never both be unmasked.
        """
        return 2 * clients // 3 + 1 if self.protocol == "secagg-full" else None

    def tolerated_colluders(self, clients: int) -> int | None:
        """Return the most clients of a full graph that learn nothing together with the server: c < 2t - n.

        Two others are left at least: of one, the sum is its vector.
        """
        threshold = self.threshold(clients)
        return None if threshold is None else min(2 * threshold - clients - 1, clients - 2)

    def _protocol_problems(self) -> Iterator[str]:
        """Yield what does not protect as the plan says it does."""
        operators = {each.operator for each in self.decryptors}
        names = [each.name for each in self.decryptors]
        if self.protocol == "oneshot-seeds" and len(operators) < 2:
            yield (
                f"oneshot-seeds protects nobody from an operator that runs every decryptor, and {len(operators)} "
                'operators are named; list decryptors of at least two, or use protocol = "secagg-full".'
            )
        if self.protocol != "oneshot-seeds" and self.decryptors:
            yield f'{self.protocol} has no decryptors; remove them, or use protocol = "oneshot-seeds".'
        if len(set(names)) != len(names):
            yield "decryptors names one twice."
        if self.beacon is not None and self.protocol != "secagg-plus":
            yield f"{self.protocol} draws no graph, so that a beacon serves nothing; remove it."
        if self.beacon == "authority" and self.registrar != "authority":
            yield f'registrar = "{self.registrar}" asks no authority, which could draw the beacon; use "authority".'
        if self.server == "malicious" and self.protocol == "secagg-plus" and self.beacon is None:
            yield (
                "a server that may lie would draw the graph of secagg-plus to its advantage; "
                'use protocol = "secagg-full", or name a beacon.'
            )
        if self.authority is not None and self.registrar != "authority":
            yield f'registrar = "{self.registrar}" asks no authority; remove it, or use registrar = "authority".'
        if self.server == "malicious" and self.registrar == "server":
            yield (
                "a server that may lie and vouches for the keys itself can invent all other clients; "
                'use registrar = "pinned" or "authority", or say server = "curious".'
            )

    def _number_problems(self) -> Iterator[str]:
        """Yield numbers that contradict each other."""
        least, colluding = self.minimum_survivors, self.assumed_colluding
        if least > self.minimum_cohort:
            yield f"minimum_survivors {least} is more than minimum_cohort, {self.minimum_cohort}; lower it."
        if least - colluding < 2:
            yield (
                f"of {least} survivors {colluding} may collude with the server, which would learn the other update: "
                f"raise minimum_survivors to {colluding + 2}, or lower assumed_colluding."
            )
        if self.maximum_cohort is not None and self.maximum_cohort < self.minimum_cohort:
            yield f"maximum_cohort {self.maximum_cohort} is less than minimum_cohort {self.minimum_cohort}; raise it."
        if self.group_size is not None and self.group_size < self.minimum_cohort:
            yield f"group_size {self.group_size} is less than minimum_cohort {self.minimum_cohort}; raise it."
        if len({each.name for each in self.branches}) != len(self.branches):
            yield "branches names a branch twice."
        yield from self._graph_problems()

    def _graph_problems(self) -> Iterator[str]:
        """Yield what a full graph does not stand: too many who collude, or who drop out."""
        small = min(range(self.minimum_cohort, self.minimum_cohort + 3), key=lambda n: self.tolerated_colluders(n) or 0)
        most = self.tolerated_colluders(small)
        if most is not None and self.assumed_colluding > most:
            yield (
                f"in a cohort of {small}, secagg-full stands {most} clients that collude with the server, not "
                f"{self.assumed_colluding}; raise minimum_cohort, or lower assumed_colluding."
            )
        if self.protocol == "secagg-full" and self.expected_dropout >= 1 / 3:
            yield (
                "secagg-full stands fewer than a third of a cohort dropping out; lower expected_dropout, or use "
                "oneshot-seeds, where a lost client costs nothing."
            )


def _key(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except ValueError:
        return b""
