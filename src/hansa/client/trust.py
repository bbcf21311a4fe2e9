"""What a client believes: assignments signed by a key of its server, which it has known since it enrolled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError

from hansa.client.records import Id, Identity, Kind
from hansa.core.errors import RefusedError
from hansa.wire import signatures
from hansa.wire.generated import federation_pb2 as wire

_KINDS: Mapping[wire.Kind, Kind] = {
    wire.KIND_STATISTICS: "statistics",
    wire.KIND_TRAINING: "training",
    wire.KIND_EVALUATION: "evaluation",
}


def with_new_keys(known: Mapping[str, bytes], offered: Iterable[wire.ServerKey]) -> dict[str, bytes]:
    """Return the server's keys with those that a known key vouches for; others are left out.

    Each is looked at once, after the one that vouches for it, whatever their order: many cost no more than each once.
    """
    keys, by_voucher = dict(known), dict[str, list[wire.ServerKey]]()
    for key in offered:
        by_voucher.setdefault(key.endorsed_by, []).append(key)
    vouchers = list(known)
    while vouchers:
        for key in by_voucher.pop(vouchers.pop(), ()):
            if key.key_id not in keys and _is_endorsed(keys, key):
                keys[key.key_id] = bytes(key.public_key)
                vouchers.append(key.key_id)
    return keys


def _is_endorsed(known: Mapping[str, bytes], key: wire.ServerKey) -> bool:
    voucher = known.get(key.endorsed_by)
    if voucher is None:
        return False
    try:
        signatures.verify(voucher, key.endorsement, signatures.server_key(key.key_id, key.public_key))
    except RefusedError:
        return False
    return True


def believed(signed: wire.SignedAssignment, identity: Identity) -> wire.Assignment:
    """Return what was assigned. Raises RefusedError for what no key of the server has signed for this client."""
    key = identity.server_keys.get(signed.key_id)
    if key is None:
        raise _not_by_the_server("The key that signed it is unknown here, and no known key vouches for it.")
    try:
        signatures.verify(key, signed.signature, signatures.assignment(signed.assignment))
    except RefusedError:
        raise _not_by_the_server("Its signature is by another key than it says, or over something else.") from None
    try:
        assigned = wire.Assignment.FromString(signed.assignment)
    except DecodeError:
        raise _not_for_us("It cannot be read.") from None
    if assigned.client != identity.client or assigned.number != identity.number:
        raise _not_for_us("It is for another client.")
    return assigned


def id_of(assigned: wire.Assignment) -> Id:
    """Return which assignment it is. Raises RefusedError for an unknown kind."""
    kind = _KINDS.get(assigned.id.kind)
    if kind is None:
        raise _not_for_us("Its kind is unknown to this version.")
    return Id(assigned.id.run, kind, assigned.id.round, assigned.id.attempt)


def on_the_wire(assignment: Id) -> wire.AssignmentId:
    """Return an assignment's name as a message."""
    kind = next(number for number, name in _KINDS.items() if name == assignment.kind)
    return wire.AssignmentId(
        run=assignment.run, kind=wire.Kind.Name(kind), round=assignment.round, attempt=assignment.attempt
    )


def _not_by_the_server(found: str) -> RefusedError:
    return RefusedError(
        "HANSA-SERVER-KEY",
        rule="A client does what a key of its server has signed.",
        found=found,
        action="Nothing was done, and the client checks in again. If that goes on, ask the operator whether the "
        "server's signing key was replaced by one that the last does not vouch for: then enrol again.",
    )


def _not_for_us(found: str) -> RefusedError:
    return RefusedError(
        "HANSA-REQUEST-INVALID",
        rule="A client answers what its server has assigned to it.",
        found=found,
        action="Tell the operator of the server; nothing was done.",
    )
