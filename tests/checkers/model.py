"""The key-value semantics once more, as dumb as possible: a dict, read and written by etcd's rules.

Written from etcd's documented behaviour, not from storage/, so that the two can disagree. It judges what the checkers'
workloads contain and raises Unjudged for the rest, rather than pass what it does not understand.

An answer is compared in a canonical form: nested tuples without headers, since who answered and at which revision is
for the checkers to judge. `stamp` is the revision that a write gives to what it writes; a negative one stands for a
revision that nobody was told: it is unlike 0, unlike all others, and not to be put in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kvorum import etcd_pb2 as pb


class Unjudged(Exception):
    """The model does not know what etcd would answer to this."""


class Pair(NamedTuple):
    key: bytes
    value: bytes
    create: int
    mod: int
    version: int
    lease: int = 0


State = Mapping[bytes, Pair]
Changes = dict[bytes, Pair | None]
Canonical = tuple  # type: ignore[type-arg]


def inside(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether `key` is in etcd's (key, range_end)."""
    return key == start if not end else key >= start and (end == b"\0" or key < end)


def select(state: State, start: bytes, end: bytes) -> list[Pair]:
    if not end:
        found = state.get(start)
        return [] if found is None else [found]
    return [state[key] for key in sorted(state) if inside(key, start, end)]


def pair(kv: pb.KeyValue) -> Pair:
    return Pair(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def canonical(answer: object) -> Canonical:
    """An answer from the wire in the form that `execute` gives."""
    if isinstance(answer, pb.PutResponse):
        return ("put", pair(answer.prev_kv) if answer.HasField("prev_kv") else None)
    if isinstance(answer, pb.RangeResponse):
        return ("range", answer.count, answer.more, tuple(pair(kv) for kv in answer.kvs))
    if isinstance(answer, pb.DeleteRangeResponse):
        return ("delete", answer.deleted, tuple(pair(kv) for kv in answer.prev_kvs))
    if isinstance(answer, pb.TxnResponse):
        inner = tuple(canonical(getattr(op, str(op.WhichOneof("response")))) for op in answer.responses)
        return ("txn", answer.succeeded, inner)
    if isinstance(answer, pb.CompactionResponse):
        return ("compact",)
    raise Unjudged(type(answer).__name__)


def execute(
    state: State, request: object, stamp: int, past: Callable[[int], State] | None = None
) -> tuple[Canonical, Changes]:
    """The canonical answer to `request` on `state`, and what it changes (None is a deleted key).

    Args:
      stamp: the revision that a change gets. It never affects an answer that changes nothing.
      past: the state at an earlier revision, for reads that name one.
    Raises:
      Unjudged: the request is outside the model.
    """
    overlay = _Overlay(state)
    answer = _run(overlay, request, stamp, past, _decisions(state, request))
    return answer, overlay.changes


class _Overlay:
    """A state with a txn's own writes over it."""

    def __init__(self, state: State) -> None:
        self.now = state
        self.changes: Changes = {}

    def set(self, key: bytes, new: Pair | None) -> None:
        if not self.changes:
            self.now = dict(self.now)
        assert isinstance(self.now, dict)
        self.changes[key] = new
        if new is None:
            del self.now[key]
        else:
            self.now[key] = new


def _run(
    overlay: _Overlay, request: object, stamp: int, past: Callable[[int], State] | None, decided: Iterator[bool]
) -> Canonical:
    if isinstance(request, pb.RangeRequest):
        return _range(overlay, request, past)
    if isinstance(request, pb.PutRequest):
        if request.ignore_value or request.ignore_lease or request.lease:
            raise Unjudged("put with options")
        old = overlay.now.get(request.key)
        create, version = (stamp, 1) if old is None else (old.create, old.version + 1)
        overlay.set(request.key, Pair(request.key, request.value, create, stamp, version))
        return ("put", old if request.prev_kv else None)
    if isinstance(request, pb.DeleteRangeRequest):
        gone = select(overlay.now, request.key, request.range_end)
        for old in gone:
            overlay.set(old.key, None)
        return ("delete", len(gone), tuple(gone) if request.prev_kv else ())
    if isinstance(request, pb.TxnRequest):
        succeeded = next(decided)
        ops = request.success if succeeded else request.failure
        inner = tuple(_run(overlay, getattr(op, str(op.WhichOneof("request"))), stamp, past, decided) for op in ops)
        return ("txn", succeeded, inner)
    if isinstance(request, pb.CompactionRequest):
        return ("compact",)
    raise Unjudged(type(request).__name__)


def _range(overlay: _Overlay, request: pb.RangeRequest, past: Callable[[int], State] | None) -> Canonical:
    filters = request.min_mod_revision, request.max_mod_revision, request.min_create_revision
    if request.sort_order or request.sort_target or any(filters) or request.max_create_revision:
        raise Unjudged("range with sort or filters")
    if request.revision > 0:
        if past is None:
            raise Unjudged("range in the past")
        found = select(past(request.revision), request.key, request.range_end)
    else:
        found = select(overlay.now, request.key, request.range_end)
    if request.count_only:
        return ("range", len(found), False, ())
    shown = found[: request.limit] if request.limit else found
    if request.keys_only:
        shown = [one._replace(value=b"") for one in shown]
    return ("range", len(found), len(shown) < len(found), tuple(shown))


def _decisions(state: State, request: object) -> Iterator[bool]:
    """Which branch each txn takes, outermost first. All look at the state before the outermost one (etcd: applyTxn)."""
    if isinstance(request, pb.TxnRequest):
        taken = all(_holds(state, compare) for compare in request.compare)
        yield taken
        for op in request.success if taken else request.failure:
            if op.WhichOneof("request") == "request_txn":
                yield from _decisions(state, op.request_txn)


def _holds(state: State, compare: pb.Compare) -> bool:
    found: list[Pair | None] = list(select(state, compare.key, compare.range_end)) or [None]
    return all(_compare(one, compare) for one in found)


def _compare(one: Pair | None, compare: pb.Compare) -> bool:
    if compare.target == pb.Compare.VALUE:
        if one is None:
            return False
        return _relation(one.value, compare.value, compare.result)
    if compare.target == pb.Compare.VERSION:
        return _relation(one.version if one else 0, compare.version, compare.result)
    if compare.target == pb.Compare.LEASE:
        return _relation(one.lease if one else 0, compare.lease, compare.result)
    mod = compare.target == pb.Compare.MOD
    actual = 0 if one is None else one.mod if mod else one.create
    wanted = compare.mod_revision if mod else compare.create_revision
    if actual < 0 and ((wanted != 0 and not mod) or compare.result in (pb.Compare.GREATER, pb.Compare.LESS)):
        raise Unjudged("compare with a revision that nobody was told")
    return _relation(actual, wanted, compare.result)


def _relation(actual: int | bytes, wanted: int | bytes, result: int) -> bool:
    if result == pb.Compare.EQUAL:
        return actual == wanted
    if result == pb.Compare.NOT_EQUAL:
        return actual != wanted
    if result == pb.Compare.GREATER:
        return actual > wanted  # type: ignore[operator]
    return actual < wanted  # type: ignore[operator]
