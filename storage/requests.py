"""What may be asked at all: every rule about a request that needs no look at the data.

    bytes ──parse()──▶ message, structurally sound          the same on every member, for ever: apply relies on it
      └────admit()───▶ and within this member's limits, and which way it goes: through the log, or a read

`admit` stands where requests enter; what it lets through is proposed. `parse` is called again when the entry is
applied, because what comes out of a log was written by some other process, perhaps of another version: there it must
give the same answer on every member, so limits, which are local configuration, play no part in it.

The order of the checks is etcd's, since the first failure is the one the client sees: in a transaction the number of
operations, then empty keys of the comparisons, then each operation of both branches in order, then duplicate keys.

Pure.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage.codec import span_end
from storage.leases import TTL_MAX


class Limits(NamedTuple):
    """`max_txn_ops` counts as etcd does: the longest of compare, success and failure, and what that leaves is for the
    transactions nested inside. `max_request_bytes` is the encoded request; reads are not bound by it."""

    max_txn_ops: int = 128
    max_request_bytes: int = 1572864


class Path(IntEnum):
    """WRITE goes through the log, LINEARIZABLE waits for a read index, SERIALIZABLE is answered from what is here."""

    WRITE = 0
    LINEARIZABLE = 1
    SERIALIZABLE = 2


def admit(method: int, payload: bytes, limits: Limits) -> Path:
    """Judge a request where it enters. Covers RANGE, PUT, DELETE_RANGE, TXN, COMPACT, LEASE_GRANT, LEASE_REVOKE, ALARM.

    Raises what the client is told: Malformed (also for transactions nested deeper than protobuf's recursion limit),
    EmptyKey, KeyNotFound (an operation without a request), ValueProvided, LeaseProvided, InvalidSortOption, TooManyOps,
    DuplicateKey, LeaseTTLTooLarge, RequestTooLarge, Unimplemented.
    """
    request = parse(method, payload, limits.max_txn_ops)
    if method == Method.RANGE:
        return Path.SERIALIZABLE if request.serializable else Path.LINEARIZABLE
    if method == Method.TXN and read_only(request):
        local = all(read.serializable for read in (*request.success, *request.failure))
        return Path.SERIALIZABLE if local else Path.LINEARIZABLE
    if method == Method.ALARM and request.action == pb.AlarmRequest.GET:
        return Path.LINEARIZABLE
    if len(payload) > limits.max_request_bytes:
        raise errors.RequestTooLarge
    return Path.WRITE


class Txn(NamedTuple):
    """A transaction, with its operations taken out of their envelopes."""

    compare: list[pb.Compare]
    success: list[Op]
    failure: list[Op]


Op = pb.RangeRequest | pb.PutRequest | pb.DeleteRangeRequest | Txn


def parse(method: int, payload: bytes, max_txn_ops: int | None = None) -> Any:
    """The request's message, checked, or a Txn; without `max_txn_ops`, transactions of any size pass."""
    shape = _REQUESTS.get(method)
    if shape is None:
        raise errors.Unimplemented
    try:
        request = shape.FromString(payload)
    except DecodeError:
        raise errors.Malformed from None
    if method == Method.PUT:
        _check_put(request)
    elif method == Method.RANGE:
        _check_range(request)
    elif method == Method.DELETE_RANGE:
        _check_delete(request)
    elif method == Method.TXN:
        request = _txn(request, max_txn_ops)
        _claims(request.success)
        _claims(request.failure)
    elif method == Method.LEASE_GRANT:
        if request.TTL > TTL_MAX:
            raise errors.LeaseTTLTooLarge
    elif method == Method.MEMBER_PUBLISH and not request.member.ID:
        raise errors.Malformed
    return request


_REQUESTS: dict[int, Any] = {
    Method.RANGE: pb.RangeRequest,
    Method.PUT: pb.PutRequest,
    Method.DELETE_RANGE: pb.DeleteRangeRequest,
    Method.TXN: pb.TxnRequest,
    Method.COMPACT: pb.CompactionRequest,
    Method.LEASE_GRANT: pb.LeaseGrantRequest,
    Method.LEASE_REVOKE: pb.LeaseRevokeRequest,
    Method.ALARM: pb.AlarmRequest,
    Method.MEMBER_PUBLISH: pb.MemberPublish,
    Method.LEASE_EXPIRE: pb.LeaseExpire,
    Method.LEASE_CHECKPOINT: pb.LeaseCheckpoints,
    Method.LEASE_LEAD: pb.LeaseLead,
}


def lone_key(payload: bytes) -> bytes | None:
    """The key, if a RANGE asks for the newest value of one key and nothing else, in the usual encoding: most do, and
    need no parsing. None says nothing about the request."""
    size = len(payload)
    if size > 2 and payload[0] == 0x0A:
        length = payload[1]
        if 0 < length < 0x80 and (length + 2 == size or (length + 4 == size and payload.endswith(_SERIALIZABLE))):
            return payload[2 : length + 2]
    return None


_SERIALIZABLE = b"\x38\x01"


def read_only(txn: Txn) -> bool:
    """Only ranges in both branches, and nothing nested: such a transaction needs no log entry. An empty one is, too."""
    return all(type(op) is pb.RangeRequest for op in txn.success) and all(
        type(op) is pb.RangeRequest for op in txn.failure
    )


def cost(method: int, payload: bytes) -> int:
    """How much of the space quota a request may take, in bytes: 256 + key + value for a put, for a transaction the
    dearer branch, nested ones included, 64 for a lease; 0 for what takes no space. Raises what `parse` does."""
    if method == Method.LEASE_GRANT:
        return 64
    return _cost(parse(method, payload)) if method in (Method.PUT, Method.TXN) else 0


def grows(request: object) -> bool:
    """Whether a parsed request may take space: `cost` of it is not 0."""
    if isinstance(request, Txn | pb.PutRequest):
        return _cost(request) > 0
    return isinstance(request, pb.LeaseGrantRequest)


def _cost(request: Op) -> int:
    if isinstance(request, pb.PutRequest):
        return 256 + len(request.key) + len(request.value)
    if isinstance(request, Txn):
        return max(sum(map(_cost, request.success)), sum(map(_cost, request.failure)))
    return 0


def _check_range(request: pb.RangeRequest) -> None:
    if not request.key:
        raise errors.EmptyKey
    if not (0 <= request.sort_order <= 2 and 0 <= request.sort_target <= 4):
        raise errors.InvalidSortOption


def _check_put(request: pb.PutRequest) -> None:
    if not request.key:
        raise errors.EmptyKey
    if request.ignore_value and request.value:
        raise errors.ValueProvided
    if request.ignore_lease and request.lease:
        raise errors.LeaseProvided


def _check_delete(request: pb.DeleteRangeRequest) -> None:
    if not request.key:
        raise errors.EmptyKey


def _txn(txn: pb.TxnRequest, room: int | None) -> Txn:
    compare, success, failure = list(txn.compare), list(txn.success), list(txn.failure)
    if room is not None:
        room -= max(len(compare), len(success), len(failure))
        if room < 0:
            raise errors.TooManyOps
    for one in compare:
        if not one.key:
            raise errors.EmptyKey
    return Txn(compare, [_op(op, room) for op in success], [_op(op, room) for op in failure])


def _op(op: pb.RequestOp, room: int | None) -> Op:
    kind = op.WhichOneof("request")
    if kind == "request_put":
        put = op.request_put
        _check_put(put)
        return put
    if kind == "request_range":
        read = op.request_range
        _check_range(read)
        return read
    if kind == "request_delete_range":
        delete = op.request_delete_range
        _check_delete(delete)
        return delete
    if kind == "request_txn":
        return _txn(op.request_txn, room)
    raise errors.KeyNotFound


_Claims = tuple[set[bytes], list[tuple[bytes, bytes]]]


def _claims(ops: list[Op]) -> _Claims:
    """The keys that a branch may put and the spans it may delete. Raises DuplicateKey where one key would be put
    twice, or put and deleted. The two branches of a nested transaction exclude each other and so may share keys;
    deletions may overlap.

    A deletion without an end is not held against a put, as in etcd: "clear everything from here, then write" is one
    transaction. (etcd gets there by accident, building the interval with the end 00.)
    """
    parts: list[_Claims] = [(set(), [])]
    puts, deletes = parts[0]
    for op in ops:
        if isinstance(op, pb.PutRequest):
            key = op.key
            if key in puts:
                raise errors.DuplicateKey
            puts.add(key)
        elif isinstance(op, pb.DeleteRangeRequest):
            end = span_end(op.key, op.range_end)
            if end is not None and op.key < end:
                deletes.append((op.key, end))
        elif isinstance(op, Txn):
            then, otherwise = _claims(op.success), _claims(op.failure)
            parts.append((then[0] | otherwise[0], then[1] + otherwise[1]))
    if len(parts) == 1:
        if deletes and puts:
            _collide(parts)
        return parts[0]
    all_puts = set().union(*(part[0] for part in parts))
    if len(all_puts) < sum(len(part[0]) for part in parts):
        raise errors.DuplicateKey
    all_deletes = [span for part in parts for span in part[1]]
    if all_puts and all_deletes:
        _collide(parts)
    return all_puts, all_deletes


def _collide(parts: list[_Claims]) -> None:
    """One sweep along the keys: a put must not lie in a span of another part, nor, in part 0, in one of its own.

    (Inside a nested part the recursion has looked already; there a put and a span may be of exclusive branches.)
    """
    marks: list[tuple[bytes, bool, int, int]] = []
    for part, (puts, deletes) in enumerate(parts):
        marks += ((key, True, part, 0) for key in puts)
        marks += ((start, False, part, 1) for start, _ in deletes)
        marks += ((end, False, part, -1) for _, end in deletes)
    marks.sort()
    open_total, open_in = 0, [0] * len(parts)
    for _, is_put, part, step in marks:
        open_total += step
        open_in[part] += step
        if is_put and open_total > (open_in[part] if part else 0):
            raise errors.DuplicateKey
