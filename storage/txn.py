"""Transactions: compare, choose, check, then do.

    compares, nested ones too ──▶ the path: which branch of each transaction is taken     all against the state before
    preconditions of the path ──▶ first failure refuses the whole transaction             still before any change
    operations in order       ──▶ each sees what the ones before it wrote; cannot fail any more

Because everything that can be refused is refused in the second step, a transaction is never half done.

The bodies built here are TxnResponse without its header; the headers of the answers inside carry the revision alone.
Pure.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from kvorum import errors
from kvorum import etcd_pb2 as pb
from native import plain
from storage import codec
from storage.leases import Changes as LeaseChanges
from storage.reads import KEY_COST, Entries, Meter, Steps, View, check_revision, drained, ranged, ranged_now
from storage.requests import Op, Txn

_RANGE, _PUT, _DELETE, _TXN = b"\x0a", b"\x12", b"\x1a", b"\x22"


class Writer(View, Protocol):
    """A view that can be changed; the changes of one transaction make one revision."""

    @property
    def leases(self) -> LeaseChanges: ...

    def put(self, request: pb.PutRequest) -> bytes:
        """Returns the PutResponse without header. The request's preconditions hold."""
        ...

    def delete(self, request: pb.DeleteRangeRequest) -> bytes: ...


def check_put(writer: Writer, request: pb.PutRequest) -> None:
    """Raises LeaseNotFound or KeyNotFound."""
    if request.lease and writer.leases.ttl(request.lease) is None:
        raise errors.LeaseNotFound
    if (request.ignore_value or request.ignore_lease) and writer.latest.get(request.key) is None:
        raise errors.KeyNotFound


# ---- compare


def compared(view: View, compare: pb.Compare, meter: Meter) -> Steps[bool]:
    """Does the comparison hold? Over a range, for every key in it. What it looks at is settled by this call."""
    latest, end = view.latest, compare.range_end
    if not end:
        kv = latest.get(compare.key)
        return _compared(compare, iter(() if kv is None else ((b"", kv),)), meter)
    return _compared(compare, latest.entries(compare.key, None if end == b"\0" else end), meter)


def _compared(compare: pb.Compare, entries: Entries, meter: Meter) -> Steps[bool]:
    empty = True
    for entry in entries:
        assert entry is not None  # the newest state has no gaps
        empty = False
        if not _holds(compare, pb.KeyValue.FromString(entry[1])):
            return False
        if meter.used(KEY_COST + len(entry[1])):
            yield
    return not empty or _holds_without(compare)


def _compared_now(view: View, compare: pb.Compare) -> bool:
    """The same in one go."""
    if compare.range_end:
        return drained(compared(view, compare, Meter()))
    kv = view.latest.get(compare.key)
    return _holds_without(compare) if kv is None else _holds(compare, pb.KeyValue.FromString(kv))


def _holds_without(compare: pb.Compare) -> bool:
    """A missing key has version, revisions and lease 0, but no value at all: no comparison of its value is true."""
    return compare.target != pb.Compare.VALUE and _holds(compare, pb.KeyValue())


_TARGETS: dict[int, Callable[[pb.KeyValue, pb.Compare], tuple[Any, Any]]] = {
    pb.Compare.VERSION: lambda kv, compare: (kv.version, compare.version),
    pb.Compare.CREATE: lambda kv, compare: (kv.create_revision, compare.create_revision),
    pb.Compare.MOD: lambda kv, compare: (kv.mod_revision, compare.mod_revision),
    pb.Compare.VALUE: lambda kv, compare: (kv.value, compare.value),
    pb.Compare.LEASE: lambda kv, compare: (kv.lease, compare.lease),
}


_OPERATORS: dict[int, Callable[[Any, Any], bool]] = {
    pb.Compare.EQUAL: operator.eq,
    pb.Compare.GREATER: operator.gt,
    pb.Compare.LESS: operator.lt,
    pb.Compare.NOT_EQUAL: operator.ne,
}


def _holds(compare: pb.Compare, kv: pb.KeyValue) -> bool:
    """A union field other than the target's counts as unset, which is 0 or empty. Unknown targets compare as equal and
    unknown operators hold, as in etcd."""
    target = _TARGETS.get(compare.target)
    have, want = target(kv, compare) if target else (0, 0)
    compares = _OPERATORS.get(compare.result)
    return compares is None or compares(have, want)


# ---- reading only


def read(view: View, txn: Txn, meter: Meter) -> Steps[bytes]:
    """Answer a transaction that `requests.read_only` said yes to. What it will see is settled by this call, for both
    branches, since which one it takes may need many slices to tell."""
    compares = [compared(view, compare, meter) for compare in txn.compare]
    branches = [[_later(view, op, meter) for op in ops] for ops in (txn.failure, txn.success)]
    return _read(compares, branches, view.revision)


def _later(view: View, request: Op, meter: Meter) -> Steps[bytes] | errors.KvorumError:
    assert isinstance(request, pb.RangeRequest)
    try:
        return ranged(view, request, meter)
    except errors.KvorumError as refused:
        return refused  # counts only if this branch is taken


def _read(
    compares: list[Steps[bool]], branches: list[list[Steps[bytes] | errors.KvorumError]], revision: int
) -> Steps[bytes]:
    succeeded = True
    for compare in compares:
        if not (yield from compare):
            succeeded = False
            break
    taken = branches[succeeded]
    for steps in taken:
        if isinstance(steps, errors.KvorumError):
            raise steps
    header, answers = _header(revision), []
    for steps in taken:
        assert isinstance(steps, Generator)
        answers.append((_RANGE, header + (yield from steps)))
    return _body(succeeded, answers)


# ---- writing


def write(writer: Writer, txn: Txn) -> bytes:
    """Do a transaction. Raises LeaseNotFound, KeyNotFound, FutureRevision or Compacted, having changed nothing."""
    path: list[bool] = []
    _choose(writer, txn, path)
    _check(writer, txn, iter(path))
    return _execute(writer, txn, iter(path))


def _choose(writer: Writer, txn: Txn, path: list[bool]) -> None:
    """Append to `path` which branch is taken, here and then in each transaction inside it, in order."""
    succeeded = True
    for compare in txn.compare:
        if not _compared_now(writer, compare):
            succeeded = False
            break
    path.append(succeeded)
    for op in txn.success if succeeded else txn.failure:
        if type(op) is Txn:
            _choose(writer, op, path)


def _check(writer: Writer, txn: Txn, path: Iterator[bool]) -> None:
    for op in txn.success if next(path) else txn.failure:
        if isinstance(op, pb.PutRequest):
            check_put(writer, op)
        elif isinstance(op, pb.RangeRequest):
            check_revision(writer, op.revision)
        elif isinstance(op, Txn):
            _check(writer, op, path)


def _execute(writer: Writer, txn: Txn, path: Iterator[bool]) -> bytes:
    succeeded, answers = next(path), []
    for op in txn.success if succeeded else txn.failure:
        if isinstance(op, pb.PutRequest):
            tag, body = _PUT, writer.put(op)
        elif isinstance(op, pb.RangeRequest):
            tag, body = _RANGE, ranged_now(writer, op)
        elif isinstance(op, pb.DeleteRangeRequest):
            tag, body = _DELETE, writer.delete(op)
        else:
            tag, body = _TXN, _execute(writer, op, path)
        answers.append((tag, _header(writer.head) + body))
    return _body(succeeded, answers)


def answer(kind: int, revision: int, body: bytes) -> bytes:
    """One of the responses in a TxnResponse: that of a plain operation (native.plain), of which `body` is the rest
    behind the header."""
    return codec.field(b"\x1a", codec.field(_TAGS[kind], _header(revision) + body))


_TAGS = {plain.GET: _RANGE, plain.PUT: _PUT, plain.DELETE: _DELETE}


def _header(revision: int) -> bytes:
    return codec.field(b"\x0a", b"\x18" + codec.varint(revision))


def _body(succeeded: bool, answers: list[tuple[bytes, bytes]]) -> bytes:
    body = [b"\x10\x01"] if succeeded else []
    body += [codec.field(b"\x1a", codec.field(tag, answer)) for tag, answer in answers]
    return b"".join(body)
