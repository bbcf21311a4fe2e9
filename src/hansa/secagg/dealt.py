"""What dealers gave holders, looked up by holder once all have given: hashes of shares, and the shares sealed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hansa.secagg.encoding import u32
from hansa.secagg.keys import KEY_BYTES
from hansa.secagg.messages import SEALED_SHARES_BYTES, Shares

_RECORD: Final = np.dtype([
    ("client", "<u4"), ("hashes", np.uint8, 2 * KEY_BYTES), ("sealed", np.uint8, SEALED_SHARES_BYTES),
])  # fmt: skip
"""As :class:`hansa.secagg.messages.SealedShares` is written."""
_UNSEALED: Final = bytes(SEALED_SHARES_BYTES)


@dataclass(frozen=True)
class Dealt:
    """Records of what each holder got, its own included, in the order of dealers."""

    shared: tuple[int, ...]
    """The dealers, sorted."""
    records: NDArray[Any]
    rows: Mapping[int, slice]
    """Holder -> where its records are; ``client`` in them is the dealer."""

    @classmethod
    def of(cls, messages: Mapping[int, Shares]) -> Self:
        """Return what dealers gave in their messages, one at least."""
        shared = tuple(sorted(messages))
        lists = [b"".join((u32(each), messages[each].own, _UNSEALED, messages[each].entries)) for each in shared]
        given = np.frombuffer(b"".join(lists), _RECORD)
        dealers = np.repeat(np.array(shared, np.uint32), [len(each) // _RECORD.itemsize for each in lists])
        order = np.argsort(given["client"], kind="stable")
        records = given[order]
        holders, first, count = np.unique(records["client"], return_index=True, return_counts=True)
        records["client"] = dealers[order]
        slices = map(slice, first.tolist(), (first + count).tolist())
        return cls(shared, records, dict(zip(holders.tolist(), slices, strict=True)))

    def hashes(self, holder: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Return a holder's dealers [m], itself included, and the hashes [m, 64] that they signed of its shares."""
        given = self.records[self.rows[holder]]
        return given["client"], given["hashes"]

    def sealed(self, holder: int) -> bytes:
        """Return the records of what others gave a holder, as :class:`hansa.secagg.messages.Deliveries` holds them."""
        given = self.records[self.rows[holder]]
        return bytes(given[given["client"] != holder])


def holders_of(message: Shares) -> tuple[int, ...]:
    """Return to whom a dealer's entries are."""
    return tuple(np.frombuffer(message.entries, _RECORD)["client"].tolist())
