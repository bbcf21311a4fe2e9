"""What one client gives to a secure sum."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from hansa.core.ring import Ring, RingVector
from hansa.secagg.refusals import untrusted


@dataclass(frozen=True)
class Contribution:
    """What a client is about to give, and to what: the plan it followed, the model it started from, its vector."""

    plan_sha256: bytes
    model_sha256: bytes
    vector: RingVector

    def check(self, ring: Ring) -> None:
        """Raise RefusedError unless the vector is one of the ring."""
        shapes = [(segment.length, segment.dtype) for segment in ring.segments]
        if [(len(array), array.dtype) for array in self.vector] != shapes:
            raise untrusted("The vector has other segments than the task's ring.")
        for segment, array in zip(ring.segments, self.vector, strict=True):
            if segment.bits < 8 * array.itemsize and len(array) and int(array.max()) > segment.mask:
                raise untrusted(f"An entry of {segment.name} needs more than {segment.bits} bits.")

    def sha256(self) -> bytes:
        """Return SHA-256 of the vector's entries."""
        content = hashlib.sha256()
        for array in self.vector:
            content.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return content.digest()
