"""From a plan's [data] and [features] to a population's examples: read, deal, hold out, split, impute."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from hansa.core.datasets import Examples, FederatedData
from hansa.core.layout import Int64s
from hansa.core.nouns import ClientBatch, ClientDatasets, Signature
from hansa.core.registry import kind_of
from hansa.core.sections import Data, Features
from hansa.core.streams import Streams
from hansa.data.clients import ClientExamples
from hansa.data.fingerprint import Digest, fingerprint
from hansa.data.imputation import Imputation
from hansa.data.partitions import Natural, checked
from hansa.data.pool import Pool, Population
from hansa.data.refusals import invalid, leave_some, plan_problem
from hansa.data.rows import ClientRows, Names, Roster
from hansa.data.sources import Reader, Source, find
from hansa.data.splits import Split, choose_held_out, split, split_in_order
from hansa.data.stores import ExampleStore

_ROWS_AT_ONCE: Final = 1 << 16


def load(data: Data, features: Features | None, seed: int) -> FederatedData:
    """Return the population's examples, dealt and split as ``data`` says; the same in every run with this seed.

    Raises PlanError (with key paths) for settings that do not fit the source, DataError for missing or bad
    data, and HansaError where an optional dependency is missing.
    """
    source = find(data.source)
    streams = Streams(seed)
    pool = source(data, features)
    if isinstance(pool, Population):
        return _placed(pool.federated(data, seed), data)
    if not isinstance(pool, Pool):
        raise plan_problem("data.source", f"{data.source!r} must return a hansa.data.pool.Pool or Population.")
    if len(pool.store.labels) == 0:
        raise invalid(rule="A source has examples.", found="It has none.", action="Correct data.path.")
    roster, notes = _dealt(pool, data, source, streams)
    pool = replace(pool, notes=pool.notes + notes)
    leave_some(data, len(roster.names))
    training, held_out = choose_held_out(len(roster.names), data.held_out_clients, streams.of("split", 1))
    parts = _split(pool, roster, data, streams, held_out)
    return _placed(_assembled(pool, roster, parts, training, held_out), data)


def _dealt(pool: Pool, data: Data, source: Reader, streams: Streams) -> tuple[Roster, tuple[str, ...]]:
    """Return the clients: the source's own, or dealt from the pool where a partition says so."""
    partition, notes = data.partition, tuple[str, ...]()
    if pool.roster is not None and isinstance(partition, Natural | None):
        return pool.roster, ()
    if partition is None and isinstance(source, Source) and source.partition is not None:
        partition = source.partition
        notes = (f"dealt by the source's default partition, {kind_of('partition', partition)}: {partition}",)
    numbers = (partition or Natural()).deal(pool.store.labels, streams.of("partition"))
    numbers, clients = checked(numbers, len(pool.store.labels))
    return Roster(Names.dealt(clients), ClientRows.from_numbers(numbers, clients)), notes


def _split(pool: Pool, roster: Roster, data: Data, streams: Streams, held_out: Int64s) -> Split:
    """Return the split of every client; a held-out client's examples are in neither part."""
    fractions = {"test_fraction": data.test_fraction, "validation_fraction": data.validation_fraction}
    if pool.ordered:
        parts = split_in_order(roster.rows, **fractions)
    else:
        parts = split(roster.rows, pool.store.labels, streams.of("split"), **fractions)
    if not len(held_out):
        return parts
    trains = ~np.isin(np.arange(len(roster.rows)), held_out)
    trains = np.repeat(trains, roster.rows.all_sizes)
    return Split(parts.test & trains, parts.validation & trains)


def _assembled(pool: Pool, roster: Roster, parts: Split, training: Int64s, held_out: Int64s) -> FederatedData:
    """Impute each client's numbers from its training examples, and hand out the parts."""
    learned = roster.rows.where(~(parts.test | parts.validation))
    store = pool.store
    if pool.features is not None:
        store = store.imputed(learned, roster.rows, Imputation.of(pool.features))

    def part(rows: ClientRows, clients: Int64s, of: ExampleStore = store) -> ClientExamples | None:
        chosen = rows if len(clients) == len(rows) else rows.subset(clients)
        return ClientExamples(roster.names.subset(clients), of, chosen) if len(chosen.order) else None

    train = part(learned, training)
    if train is None:
        raise invalid(rule="A client trains on at least one example.", found="There is none.", action="Add examples.")
    if (train.rows.all_sizes == 0).any():
        raise plan_problem("data", "a client has no training example.")
    return FederatedData(
        train=train,
        validation=part(roster.rows.where(parts.validation), training),
        test=part(roster.rows.where(parts.test), training),
        held_out=part(roster.rows, held_out) if len(held_out) else None,
        central=pool.central,
        signature=pool.signature,
        features=pool.features,
        class_names=pool.class_names,
        notes=pool.notes,
        sha256=fingerprint(pool, roster, parts, held_out),
    )


def _placed(found: FederatedData, data: Data) -> FederatedData:
    """Return the data with the clients' test examples at the server, where the plan wants them there."""
    if data.test_at == "clients":
        return found
    if found.central is not None:
        raise plan_problem("data.test_at", 'the server has examples of its own; leave it at "clients".')
    if found.test is None:
        raise plan_problem("data.test_at", "no examples are held out for testing; set data.test_fraction.")
    digest = Digest()
    digest.texts("test examples at the server", [found.sha256])
    note = "simulated: the server's own examples are those that clients held out for testing"
    central = _pooled(found.test, found.signature)
    return replace(found, test=None, central=central, notes=(*found.notes, note), sha256=digest.hexadecimal())


def _pooled(datasets: ClientDatasets, signature: Signature) -> Examples:
    """Return the examples of all clients in one place, client after client."""
    everybody = ClientBatch(np.arange(len(datasets.names)), datasets, signature)
    xs, ys = [], []
    for part in everybody.parts(rows=_ROWS_AT_ONCE, clients=_ROWS_AT_ONCE):
        x, y = part.everything()
        real = np.arange(x.shape[1]) < part.sizes[:, None]
        xs.append(x[real])
        ys.append(y[real])
    return Examples(np.concatenate(xs), np.concatenate(ys))
