"""Where the blobs of a round lie, and how its updates are bound to their place."""

from __future__ import annotations

from hansa.store.records import RoundKey
from hansa.store.sealing import Binding


def round_name(key: RoundKey) -> str:
    """Return the one name of a round's attempt: of its key, and of the folder of its updates."""
    return key.name


def round_prefix(key: RoundKey) -> str:
    """Return where the sealed updates of a round's attempt lie."""
    return f"updates/{round_name(key)}/"


def update_prefix(key: RoundKey, client: str) -> str:
    """Return where the sealed parts of a client's update lie."""
    return f"{round_prefix(key)}{client}/"


def part_name(key: RoundKey, client: str, sha256: str, number: int) -> str:
    """Return the name of one sealed part of an update."""
    return f"{update_prefix(key, client)}{sha256}/{number:08d}"


def sums_prefix(key: RoundKey) -> str:
    """Return where the sealed partial sums of a round's attempt lie: beside its clients' folders, whose ids are hex."""
    return f"{round_prefix(key)}sums/"


def partial_name(key: RoundKey, number: int, mark: str) -> str:
    """Return the name of a partial sum; ``mark`` tells apart those that several replicas try to make."""
    return f"{sums_prefix(key)}{number:08d}/{mark}"


def partial_binding(key: RoundKey, number: int, reports: str) -> Binding:
    """Return what a sealed partial sum is bound to; ``reports`` is the digest of the reports in it."""
    return Binding(round_name(key), "", f"partial sum {number}", reports)


def binding(key: RoundKey, client: str, sha256: str, part: int) -> Binding:
    """Return what a sealed part is bound to: nothing else can be put in its place."""
    return Binding(round_name(key), client, sha256, str(part))


def sum_binding(key: RoundKey, part: int, place: int) -> Binding:
    """Return what a sealed record of one of a round's secure sums is bound to."""
    return Binding(round_name(key), "", f"sum {part}", str(place))


def model_name(sha256: str) -> str:
    """Return the name of a model's blob."""
    return f"models/{sha256}"


def upload_name(tenant: str, sha256: str) -> str:
    """Return the name of a model that a tenant has uploaded and not submitted yet.

    It is apart from the models of runs, which have one name for all tenants: who knows a digest has not the model.
    """
    return f"uploads/{tenant}/{sha256}"


def descriptor_name(sha256: str) -> str:
    """Return the name of a job descriptor's blob."""
    return f"jobs/{sha256}"


def slots_name(sha256: str) -> str:
    """Return the name of the blob of a server's slots, which no client may fetch."""
    return f"slots/{sha256}"
