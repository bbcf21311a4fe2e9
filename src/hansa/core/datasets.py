"""What the data room hands to a run: the clients' examples, split, and what a model must know of them."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.core.layout import Array
from hansa.core.nouns import ClientDatasets, Signature
from hansa.core.sections import Features


@dataclass(frozen=True)
class Examples:
    """Examples in one place: x [n, ...], y [n, ...]. The server's own, never pooled from clients."""

    x: Array
    y: Array


@dataclass(frozen=True)
class FederatedData:
    """A population's examples.

    ``train``, ``validation`` and ``test`` have the same clients in the same order; ``held_out`` has the
    clients that never train, with all their examples. Absent parts are None. Table features are encoded
    and imputed but not scaled: a missing number without imputation is NaN. ``features`` is complete:
    columns, categories, classes and bounds that the plan left open are filled in. ``sha256`` is over
    everything that a run can read.
    """

    train: ClientDatasets
    validation: ClientDatasets | None
    test: ClientDatasets | None
    held_out: ClientDatasets | None
    central: Examples | None
    signature: Signature
    features: Features | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str
