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

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage.codec import span_end


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
    """Judge a request where it enters. Covers RANGE, PUT, DELETE_RANGE, TXN and COMPACT.

    Raises what the client is told: Malformed (also for transactions nested deeper than protobuf's recursion limit),
    EmptyKey, KeyNotFound (an operation without a request), ValueProvided, LeaseProvided, InvalidSortOption, TooManyOps,
    DuplicateKey, RequestTooLarge, Unimplemented.
    """
    request = parse(method, payload, limits.max_txn_ops)
    if method == Method.RANGE:
        return Path.SERIALIZABLE if request.serializable else Path.LINEARIZABLE
    if method == Method.TXN and read_only(request):
        reads = (op.request_range for op in (*request.success, *request.failure))
        return Path.SERIALIZABLE if all(read.serializable for read in reads) else Path.LINEARIZABLE
    if len(payload) > limits.max_request_bytes:
        raise errors.RequestTooLarge
    return Path.WRITE


def parse(method: int, payload: bytes, max_txn_ops: int | None = None) -> Any:
    """The request's message, checked; without `max_txn_ops`, transactions of any size pass."""
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
        _check_txn(request, max_txn_ops)
        _claims(request.success)
        _claims(request.failure)
    elif method == Method.MEMBER_PUBLISH and not request.member.ID:
        raise errors.Malformed
    return request


_REQUESTS: dict[int, Any] = {
    Method.RANGE: pb.RangeRequest,
    Method.PUT: pb.PutRequest,
    Method.DELETE_RANGE: pb.DeleteRangeRequest,
    Method.TXN: pb.TxnRequest,
    Method.COMPACT: pb.CompactionRequest,
    Method.MEMBER_PUBLISH: pb.MemberPublish,
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


def read_only(txn: pb.TxnRequest) -> bool:
    """Only ranges in both branches, and nothing nested: such a transaction needs no log entry. An empty one is, too."""
    return all(op.WhichOneof("request") == "request_range" for op in (*txn.success, *txn.failure))


def cost(method: int, payload: bytes) -> int:
    """How much of the space quota a request may take, in bytes: 256 + key + value for a put, for a transaction the
    dearer branch, nested ones included; 0 for what takes no space. Raises Malformed."""
    if method not in (Method.PUT, Method.TXN):
        return 0
    try:
        if method == Method.PUT:
            return _put_cost(pb.PutRequest.FromString(payload))
        return _txn_cost(pb.TxnRequest.FromString(payload))
    except DecodeError:
        raise errors.Malformed from None


def _put_cost(put: pb.PutRequest) -> int:
    return 256 + len(put.key) + len(put.value)


def _txn_cost(txn: pb.TxnRequest) -> int:
    return max(sum(map(_op_cost, txn.success)), sum(map(_op_cost, txn.failure)))


def _op_cost(op: pb.RequestOp) -> int:
    kind = op.WhichOneof("request")
    if kind == "request_put":
        return _put_cost(op.request_put)
    return _txn_cost(op.request_txn) if kind == "request_txn" else 0


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


def _check_txn(txn: pb.TxnRequest, room: int | None) -> None:
    if room is not None:
        room -= max(len(txn.compare), len(txn.success), len(txn.failure))
        if room < 0:
            raise errors.TooManyOps
    if not all(compare.key for compare in txn.compare):
        raise errors.EmptyKey
    for op in (*txn.success, *txn.failure):
        kind = op.WhichOneof("request")
        if kind == "request_range":
            _check_range(op.request_range)
        elif kind == "request_put":
            _check_put(op.request_put)
        elif kind == "request_delete_range":
            _check_delete(op.request_delete_range)
        elif kind == "request_txn":
            _check_txn(op.request_txn, room)
        else:
            raise errors.KeyNotFound


_Claims = tuple[set[bytes], list[tuple[bytes, bytes]]]


def _claims(ops: Sequence[pb.RequestOp]) -> _Claims:
    """The keys that a branch may put and the spans it may delete. Raises DuplicateKey where one key would be put
    twice, or put and deleted. The two branches of a nested transaction exclude each other and so may share keys;
    deletions may overlap.

    A deletion without an end is not held against a put, as in etcd: "clear everything from here, then write" is one
    transaction. (etcd gets there by accident, building the interval with the end 00.)
    """
    parts: list[_Claims] = [(set(), [])]
    puts, deletes = parts[0]
    for op in ops:
        kind = op.WhichOneof("request")
        if kind == "request_put":
            key = op.request_put.key
            if key in puts:
                raise errors.DuplicateKey
            puts.add(key)
        elif kind == "request_delete_range":
            start = op.request_delete_range.key
            end = span_end(start, op.request_delete_range.range_end)
            if end is not None and start < end:
                deletes.append((start, end))
        elif kind == "request_txn":
            then, otherwise = _claims(op.request_txn.success), _claims(op.request_txn.failure)
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
