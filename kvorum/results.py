"""What the calls give back, in the shapes a user of python-etcd3 knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kvorum import etcd_pb2 as pb


class KVMetadata(NamedTuple):
    """All of a key but its value, and the header of the answer it came in.

    `version` counts the puts since the key was created; `lease_id` 0 is no lease. `response_header.revision` is the
    store's revision when it was read, whatever revision was asked for.
    """

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int
    response_header: pb.ResponseHeader


class Member(NamedTuple):
    """A member of the cluster. `peer_urls` and `client_urls` are etcd's; kvorum's own endpoints are in Hello."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class Alarm(NamedTuple):
    """An alarm that stands: NOSPACE or CORRUPT, and the id of the member that raised it."""

    alarm_type: str
    member_id: int


class Status(NamedTuple):
    """One node's view of itself. `leader` is a member id, 0 if it knows none; sizes are bytes."""

    version: str
    db_size: int
    leader: int
    raft_index: int
    raft_term: int
    raft_applied_index: int
    db_size_in_use: int
    is_learner: bool
    errors: tuple[str, ...]
    header: pb.ResponseHeader


class Event(NamedTuple):
    """One change of one key. `kv` is its state after it; of a deletion only key and mod_revision are set."""

    kv: pb.KeyValue
    prev_kv: pb.KeyValue | None
    """Its state before; None if not asked for, if there was none, or if that revision has been compacted."""

    @property
    def key(self) -> bytes:
        return self.kv.key

    @property
    def value(self) -> bytes:
        return self.kv.value

    @property
    def prev_value(self) -> bytes | None:
        return self.prev_kv.value if self.prev_kv is not None else None

    @property
    def create_revision(self) -> int:
        return self.kv.create_revision

    @property
    def mod_revision(self) -> int:
        return self.kv.mod_revision

    @property
    def version(self) -> int:
        return self.kv.version

    @property
    def lease_id(self) -> int:
        return self.kv.lease


class PutEvent(Event):
    """The key was put."""

    __slots__ = ()


class DeleteEvent(Event):
    """The key was deleted, by a client or by the end of its lease."""

    __slots__ = ()


class WatchResponse:
    """All events of one or more whole revisions; none of them if it tells of progress only.

    Everything up to `header.revision` has been delivered if there are no events; otherwise everything up to the last
    event's mod_revision. The events are made when they are first asked for: whoever only wants to know that something
    has changed pays a tenth.
    """

    __slots__ = ("_events", "_wire", "header")

    def __init__(self, header: pb.ResponseHeader, wire: Sequence[pb.Event]) -> None:
        self.header = header
        self._wire = wire
        self._events: tuple[Event, ...] | None = None

    @property
    def events(self) -> tuple[Event, ...]:
        if self._events is None:
            self._events = tuple([event(wire) for wire in self._wire])
        return self._events

    def __len__(self) -> int:
        """How many events."""
        return len(self._wire)

    def __bool__(self) -> bool:
        """True, as of every object: it says something without events, too."""
        return True

    @property
    def revision(self) -> int:
        """Everything up to here has been delivered."""
        return self._wire[-1].kv.mod_revision if self._wire else self.header.revision

    def behind(self, revision: int) -> WatchResponse:
        """What of it comes after `revision`."""
        if self._wire and self._wire[0].kv.mod_revision <= revision:
            return WatchResponse(self.header, [event for event in self._wire if event.kv.mod_revision > revision])
        return self

    def __repr__(self) -> str:
        return f"WatchResponse(revision={self.revision}, events={self.events})"


def event(wire: pb.Event) -> Event:
    prev = wire.prev_kv if wire.HasField("prev_kv") else None
    return (DeleteEvent if wire.type == pb.Event.DELETE else PutEvent)(wire.kv, prev)


def pair(kv: pb.KeyValue, header: pb.ResponseHeader) -> tuple[bytes, KVMetadata]:
    """(value, metadata), as python-etcd3 gives a key."""
    return kv.value, KVMetadata(kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.lease, header)


def pairs(answer: pb.RangeResponse) -> list[tuple[bytes, KVMetadata]]:
    header = answer.header
    return [pair(kv, header) for kv in answer.kvs]


def txn_answers(answer: pb.TxnResponse) -> list[object]:
    """One per operation done: a list of pairs for a get, (succeeded, answers) for a nested txn, else the message."""
    return list(_txn_answers(answer.responses, answer.header))


def _txn_answers(ops: Iterable[pb.ResponseOp], header: pb.ResponseHeader) -> Iterator[object]:
    for op in ops:
        which = op.WhichOneof("response")
        if which == "response_range":
            yield [pair(kv, header) for kv in op.response_range.kvs]
        elif which == "response_txn":
            yield op.response_txn.succeeded, list(_txn_answers(op.response_txn.responses, header))
        elif which == "response_put":
            yield op.response_put
        else:
            yield op.response_delete_range
