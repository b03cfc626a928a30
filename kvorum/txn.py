"""Transactions: comparisons, operations, and a builder.

    from kvorum.txn import get, mod, put, value
    ok, answers = client.txn().if_(value("seat") == "free").then(put("seat", "ada")).else_(get("seat")).commit()

All comparisons must hold for the `then` operations to run, otherwise the `else_` operations run; either list runs as a
whole at one revision or not at all. Comparisons look at the state before the txn, gets at the state that the operations
before them in the list have left. No comparison at all holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack

from kvorum import etcd_pb2 as pb

Key = str | bytes


class LeaseLike(Protocol):
    """What client.lease() gives."""

    @property
    def id(self) -> int: ...


AnyLease = int | LeaseLike
SortOrder = Literal["none", "ascend", "descend"]
SortTarget = Literal["key", "version", "create", "mod", "value"]

_ORDERS = {
    "none": pb.RangeRequest.NONE,
    "ascend": pb.RangeRequest.ASCEND,
    "descend": pb.RangeRequest.DESCEND,
}
_TARGETS = {
    "key": pb.RangeRequest.KEY,
    "version": pb.RangeRequest.VERSION,
    "create": pb.RangeRequest.CREATE,
    "mod": pb.RangeRequest.MOD,
    "value": pb.RangeRequest.VALUE,
}


class RangeOptions(TypedDict, total=False):
    """How to read.

    revision: as of this main revision; 0, the default, is now. Compacted or FutureRevision if it cannot be read.
    limit: most keys to return; 0 is all. `count` in the answer is not cut by it.
    serializable: answer from the asked node alone: faster, works without a quorum, may be stale.
    keys_only, count_only: leave out the values; everything but the count.
    min_*, max_*: only keys created or last changed in these revisions, bounds included; 0 is no bound.
    sort_order, sort_target: by default by key. A target without an order sorts ascending.
    """

    limit: int
    revision: int
    sort_order: SortOrder | None
    sort_target: SortTarget
    serializable: bool
    keys_only: bool
    count_only: bool
    min_mod_revision: int
    max_mod_revision: int
    min_create_revision: int
    max_create_revision: int


def to_bytes(text: Key) -> bytes:
    """UTF-8 for a str, bytes as they are.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"keys and values are str or bytes, not {type(text).__name__}")


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of keys that start with `prefix`: its last byte that can be is raised by one.

    b"\\0", "to the end of the keyspace", if there is no such byte (etcd clientv3 GetPrefixRangeEnd).
    """
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes((cut[-1] + 1,)) if cut else b"\0"


def prefix_range(prefix: Key) -> tuple[bytes, bytes]:
    """(key, range_end) of all keys that start with `prefix`; every key if it is empty."""
    key = to_bytes(prefix)
    return key or b"\0", prefix_end(key)


E = TypeVar("E")


def range_request(key: Key, range_end: Key | None = None, **options: Unpack[RangeOptions]) -> pb.RangeRequest:
    """
    Raises:
      TypeError: an option is unknown or of the wrong type.
      ValueError: limit or a revision is negative or too large; sort_order or sort_target is unknown.
    """
    request = pb.RangeRequest(key=to_bytes(key))
    if range_end is not None:
        request.range_end = to_bytes(range_end)
    for name, option in options.items():
        if name == "sort_order":
            request.sort_order = _named(_ORDERS, option or "none", name)
        elif name == "sort_target":
            request.sort_target = _named(_TARGETS, option, name)
        elif name in RangeOptions.__annotations__:
            if not isinstance(option, bool) and isinstance(option, int) and option < 0:
                raise ValueError(f"{name} must not be negative, not {option}")
            setattr(request, name, option)
        else:
            raise TypeError(f"unknown option {name!r}")
    return request


def _named(table: dict[str, E], name: object, option: str) -> E:
    if name not in table:
        raise ValueError(f"{option} is one of {', '.join(table)}, not {name!r}")
    return table[str(name)]


def lease_id(lease: AnyLease | None) -> int:
    """0 for none.

    Raises:
      TypeError: neither a lease nor an id.
    """
    id = lease or 0 if lease is None or isinstance(lease, int) else getattr(lease, "id", None)
    if not isinstance(id, int):
        raise TypeError(f"a lease or its id, not {lease!r}")
    return id


def put_request(
    key: Key,
    value: Key,
    lease: AnyLease | None = None,
    prev_kv: bool = False,
    *,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> pb.PutRequest:
    return pb.PutRequest(
        key=to_bytes(key),
        value=to_bytes(value),
        lease=lease_id(lease),
        prev_kv=prev_kv,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


def delete_request(key: Key, range_end: Key | None = None, prev_kv: bool = False) -> pb.DeleteRangeRequest:
    end = b"" if range_end is None else to_bytes(range_end)
    return pb.DeleteRangeRequest(key=to_bytes(key), range_end=end, prev_kv=prev_kv)


# ---- operations


def put(
    key: Key,
    value: Key,
    lease: AnyLease | None = None,
    prev_kv: bool = False,
    *,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> pb.RequestOp:
    """The operation that puts; its answer is a PutResponse."""
    request = put_request(key, value, lease, prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease)
    return pb.RequestOp(request_put=request)


def get(key: Key, range_end: Key | None = None, **options: Unpack[RangeOptions]) -> pb.RequestOp:
    """The operation that reads; its answer is a list of (value, KVMetadata)."""
    return pb.RequestOp(request_range=range_request(key, range_end, **options))


def delete(key: Key, range_end: Key | None = None, prev_kv: bool = False) -> pb.RequestOp:
    """The operation that deletes; its answer is a DeleteRangeResponse."""
    return pb.RequestOp(request_delete_range=delete_request(key, range_end, prev_kv))


def txn(
    compare: Iterable[pb.Compare] = (), success: Iterable[pb.RequestOp] = (), failure: Iterable[pb.RequestOp] = ()
) -> pb.RequestOp:
    """A txn inside a txn; its answer is (succeeded, answers)."""
    return pb.RequestOp(request_txn=txn_request(compare, success, failure))


def txn_request(
    compare: Iterable[pb.Compare], success: Iterable[pb.RequestOp], failure: Iterable[pb.RequestOp]
) -> pb.TxnRequest:
    return pb.TxnRequest(compare=compare, success=success, failure=failure)


def reads_only(request: pb.TxnRequest) -> bool:
    """Does it change nothing whichever way it goes, so that it may be sent twice?"""
    for op in (*request.success, *request.failure):
        which = op.WhichOneof("request")
        if which != "request_range" and not (which == "request_txn" and reads_only(op.request_txn)):
            return False
    return True


# ---- comparisons


class Comparable:
    """Something of a key that can be compared: `mod("k") == 3`, `value("k") > "a"`. A key that is not there has
    version, create, mod and lease 0, and no comparison of its value holds."""

    __slots__ = ("_compare_field", "_key", "_range_end", "_target")

    def __init__(self, target: pb.Compare.CompareTarget, field: str, key: bytes, range_end: bytes) -> None:
        self._target = target
        self._compare_field = field
        self._key = key
        self._range_end = range_end

    def _compare(self, result: pb.Compare.CompareResult, with_: Any) -> pb.Compare:
        compare = pb.Compare(key=self._key, range_end=self._range_end)
        compare.target, compare.result = self._target, result
        field = self._compare_field
        setattr(compare, field, to_bytes(with_) if field == "value" else with_)
        return compare

    def __eq__(self, with_: object) -> pb.Compare:  # type: ignore[override]
        return self._compare(pb.Compare.EQUAL, with_)

    def __ne__(self, with_: object) -> pb.Compare:  # type: ignore[override]
        return self._compare(pb.Compare.NOT_EQUAL, with_)

    def __gt__(self, with_: object) -> pb.Compare:
        return self._compare(pb.Compare.GREATER, with_)

    def __lt__(self, with_: object) -> pb.Compare:
        return self._compare(pb.Compare.LESS, with_)

    __hash__ = None  # type: ignore[assignment]


def _comparable(target: pb.Compare.CompareTarget, field: str, key: Key, range_end: Key | None) -> Comparable:
    return Comparable(target, field, to_bytes(key), b"" if range_end is None else to_bytes(range_end))


def value(key: Key, range_end: Key | None = None) -> Comparable:
    """The value, byte by byte. With `range_end`, every key of the range must compare so."""
    return _comparable(pb.Compare.VALUE, "value", key, range_end)


def version(key: Key, range_end: Key | None = None) -> Comparable:
    """How often the key was put since it was created; 0 if it is not there."""
    return _comparable(pb.Compare.VERSION, "version", key, range_end)


def create(key: Key, range_end: Key | None = None) -> Comparable:
    """The revision that created the key; 0 if it is not there."""
    return _comparable(pb.Compare.CREATE, "create_revision", key, range_end)


def mod(key: Key, range_end: Key | None = None) -> Comparable:
    """The revision that changed the key last; 0 if it is not there."""
    return _comparable(pb.Compare.MOD, "mod_revision", key, range_end)


def lease(key: Key, range_end: Key | None = None) -> Comparable:
    """The lease the key hangs on; 0 if none."""
    return _comparable(pb.Compare.LEASE, "lease", key, range_end)


class Transactions:
    """`client.transactions`, where a user of python-etcd3 looks for the above."""

    value = staticmethod(value)
    version = staticmethod(version)
    create = staticmethod(create)
    mod = staticmethod(mod)
    lease = staticmethod(lease)
    put = staticmethod(put)
    get = staticmethod(get)
    delete = staticmethod(delete)
    txn = staticmethod(txn)


R = TypeVar("R")


class Txn(Generic[R]):
    """A transaction being written down; `commit()` sends it. The three parts may be given in several pieces."""

    def __init__(self, commit: Callable[[list[pb.Compare], list[pb.RequestOp], list[pb.RequestOp]], R]) -> None:
        self._commit = commit
        self._compare: list[pb.Compare] = []
        self._success: list[pb.RequestOp] = []
        self._failure: list[pb.RequestOp] = []

    def if_(self, *compare: pb.Compare) -> Txn[R]:
        self._compare += compare
        return self

    def then(self, *operations: pb.RequestOp) -> Txn[R]:
        self._success += operations
        return self

    def else_(self, *operations: pb.RequestOp) -> Txn[R]:
        self._failure += operations
        return self

    def commit(self) -> R:
        """(succeeded, answers): whether the comparisons held, and one answer for each operation that ran."""
        return self._commit(self._compare, self._success, self._failure)
