"""Applying the log: every entry that one wake-up brings, written as one batch of the engine.

    entry ─▶ records ─▶ put / delete / txn / compact / publish ─▶ overlay (what later records of the turn see)
                                                               └▶ batch   (what commit writes, with the applied index)

Nothing is visible outside before `commit`, and the engine has either the whole turn or nothing of it: data, revision,
applied index and term, origins and compaction point move together, so what a crash leaves is the state after some entry
(etcd 3.5 lost data for want of exactly this). How entries are spread over turns makes no difference to what is stored.

At most once: a member numbers the batches it proposes, within an incarnation that is greater at every start of it, and
it may hand one batch to the log again when it does not know whether the first time arrived. For each origin the last
applied (incarnation, number) is kept here, in the replicated state. An entry at or below it has been applied already,
or was overtaken by a later one of the same origin, and is skipped whole, on every member alike. So a batch is applied
at most once, in whichever order its copies come; an origin that has several batches under way must re-propose them in
order, for one that was overtaken is lost (and answered as such), never repeated.

A record that cannot be done, for whatever reason, is answered with an error and changes nothing: the same error on
every member, because nothing but the record and the replicated state is looked at. An exception that leaves `apply` is
a bug or a broken disk: the turn is then void, and the process is meant to end.

Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage import codec, lives, requests, txn
from storage.codec import State as Applied
from storage.engine import Engine
from storage.history import Change, Past
from storage.lives import Lives
from storage.reads import Latest, State


class Result(NamedTuple):
    """The answer to one record. `status` 0: `body` is the response message without its header field, which would be
    field 1, and `revision` belongs into that header. Else `status` is the gRPC code and `body` the error's text."""

    status: int
    revision: int
    body: bytes


class Outcome(NamedTuple):
    """`skipped`: the entry had been applied before, or was overtaken; then there are no results. Else one result per
    record, in order; none if the entry is a leader's opening entry or not a batch of records."""

    skipped: bool
    results: list[Result]


def refusal(error: errors.KvorumError, revision: int) -> Result:
    return Result(int(error.code), revision, error.text.encode())


class Overlay:
    """A state that is another one with changes over it: encoded KeyValues, or None for keys that are gone.

    It remembers what it has looked up, too, which changes nothing: below it nothing moves while it lives.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._below = Latest(engine)
        self.kvs: dict[bytes, bytes | None] = {}
        self._order: list[bytes] | None = None  # the keys of `kvs`, kept sorted from the first range on

    def fetch(self, keys: Sequence[bytes]) -> None:
        """Look up many keys at once."""
        kvs = self.kvs
        missing = [key for key in keys if key not in kvs]
        if missing:
            for key, kv in zip(missing, self._engine.get_many([b"k" + key for key in missing]), strict=True):
                self.set(key, kv)

    def get(self, key: bytes) -> bytes | None:
        if key in self.kvs:
            return self.kvs[key]
        kv = self._below.get(key)
        self.set(key, kv)
        return kv

    def set(self, key: bytes, kv: bytes | None) -> None:
        if self._order is not None and key not in self.kvs:
            insort(self._order, key)
        self.kvs[key] = kv

    def entries(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """As in State, and what comes first is the user key behind one byte."""
        if self._order is None:
            self._order = sorted(self.kvs)
        low = bisect_left(self._order, start)
        high = len(self._order) if end is None else bisect_left(self._order, end)
        return self._merged(self._below.entries(start, end), self._order[low:high])

    def _merged(self, below: Iterator[tuple[bytes, bytes]], over: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        at, kvs = 0, self.kvs
        for entry in below:
            key = entry[0][1:]
            while at < len(over) and over[at] < key:
                own = kvs[over[at]]
                if own is not None:
                    yield b"k" + over[at], own
                at += 1
            if at < len(over) and over[at] == key:
                own = kvs[key]
                if own is not None:
                    yield entry[0], own
                at += 1
            else:
                yield entry
        for key in over[at:]:
            own = kvs[key]
            if own is not None:
                yield b"k" + key, own

    def load(self, handles: list[bytes]) -> list[bytes]:
        return handles


class Turn:
    """Everything applied in one wake-up: apply() for each entry in order, then commit(). Dropping it undoes all of it.

    A txn.Writer, for the records in it.
    """

    def __init__(
        self,
        engine: Engine,
        applied: Applied,
        origins: dict[int, tuple[int, int]],
        commit: Callable[[Turn], list[Change]],
        known: Lives | None = None,
    ) -> None:
        self._engine = engine
        self._commit = commit
        self._base = applied.revision
        self.index, self.term, self.revision, self.compacted = applied
        self.batch = engine.batch()
        self.changes: list[Change] = []
        self.members: dict[int, pb.MemberPublish] = {}
        self.origins: dict[int, tuple[int, int]] = {}
        self._origins_before = origins
        self._overlay = Overlay(engine)
        self._known = known  # None: changes must say what was before, so everything is looked up
        self.lives: dict[bytes, int] = {}  # of the keys that this turn has changed, 0 where it isn't known
        self._sub = 0  # changes of the record being done
        self._first: dict[bytes, bytes] = {}  # what keys changed by it were before, b"" if nothing

    # ---- what a record sees

    @property
    def head(self) -> int:
        return self.revision + 1 if self._sub else self.revision

    @property
    def latest(self) -> State:
        return self._overlay

    def past(self, revision: int) -> State:
        if revision <= self._base:
            return Past(self._engine, revision)  # this turn has not touched it
        then = Overlay(self._engine)
        for change in self.changes:
            if change.revision <= revision:
                event = codec.parse_event(change.event)
                then.set(event.kv.key, codec.event_kv(change.event) if event.type == codec.PUT else None)
        return then

    # ---- entries

    def apply(self, index: int, term: int, data: bytes) -> Outcome:
        """Apply one log entry; `data` empty is a leader's opening entry.

        Raises RuntimeError if `index` is not the one after the last applied: then entries were lost or repeated on
        their way here, and going on would make this member differ from the others.
        """
        if index != self.index + 1:
            raise RuntimeError(f"entry {index} cannot follow entry {self.index}")
        self.index, self.term = index, term
        try:
            proposal = codec.unpack_proposal(data)
        except ValueError:
            return Outcome(False, [])  # says nothing, so does nothing, everywhere
        number = (proposal.incarnation, proposal.number)
        last = self.origins.get(proposal.origin) or self._origins_before.get(proposal.origin)
        if last is not None and number <= last:
            return Outcome(True, [])
        self.origins[proposal.origin] = number
        try:
            records = wire.decode(proposal.batch)
        except wire.MalformedBatch:
            return Outcome(False, [])
        return Outcome(False, self._records(records))

    def commit(self) -> list[Change]:
        """Write the turn and make it visible. Returns what it changed, in order."""
        return self._commit(self)

    def _records(self, records: list[wire.Record]) -> list[Result]:
        parsed = [_parsed(record) for record in records]
        known = self._known
        wanted = [request for request in parsed if type(request) is not tuple or not known or not known.get(request[0])]
        self._overlay.fetch([key for request in wanted for key in _wanted(request)])
        kvs, results = self._overlay.kvs, []
        for request in parsed:
            if type(request) is tuple:  # the shortest way, for what most records are
                key, value = request
                if key in kvs:
                    old = kvs[key]
                    self._write(key, value, 0, old, old or b"")
                else:
                    assert known is not None
                    self._continue(key, value, known.get(key) or 0)
                self.revision += 1
                self._sub = 0
                results.append(Result(0, self.revision, b""))
            else:
                results.append(self._record(request))
        return results

    def _record(self, request: object) -> Result:
        try:
            body = self._do(request)
        except errors.KvorumError as error:
            assert not self._sub, "a refused record has changed something"
            return refusal(error, self.revision)
        if self._sub:
            self.revision += 1
            self._sub = 0
            self._first.clear()
        return Result(0, self.revision, body)

    def _do(self, request: object) -> bytes:
        if isinstance(request, pb.PutRequest):
            txn.check_put(self, request)
            return self.put(request)
        if isinstance(request, requests.Txn):
            return txn.write(self, request)
        if isinstance(request, pb.DeleteRangeRequest):
            return self.delete(request)
        if isinstance(request, pb.CompactionRequest):
            return self._compact(request.revision)
        if isinstance(request, pb.MemberPublish):
            return self._publish(request)
        assert isinstance(request, errors.KvorumError)
        raise request

    # ---- changes

    def put(self, request: pb.PutRequest) -> bytes:
        key, value, lease = request.key, request.value, request.lease
        old = self._overlay.get(key)
        if old is not None:
            if request.ignore_value:
                value = pb.KeyValue.FromString(old).value
            if request.ignore_lease:
                lease = pb.KeyValue.FromString(old).lease
        self._write(key, value, lease, old, self._first.setdefault(key, old or b""))
        return codec.field(b"\x12", old) if request.prev_kv and old is not None else b""

    def _write(self, key: bytes, value: bytes, lease: int, old: bytes | None, prev: bytes) -> None:
        if old is None:
            create, version = self.revision + 1, 1
        else:
            was = pb.KeyValue.FromString(old)
            create, version = was.create_revision, was.version + 1
        self._store(key, value, lease, create, version, prev)

    def _continue(self, key: bytes, value: bytes, life: int) -> None:
        """Put over a live key of which only the numbers are known."""
        create, version = lives.unpack(life)
        self._store(key, value, 0, create, version + 1, b"")

    def _store(self, key: bytes, value: bytes, lease: int, create: int, version: int, prev: bytes) -> None:
        life = codec.lifetime(create, self.revision + 1, version)
        self.lives[key] = 0 if lease else lives.pack(create, version)
        kv = codec.key_value(key, life, value, lease)
        self.batch.put(b"k" + key, kv)
        self._changed(key, kv, codec.field(b"\x12", kv), life, prev)

    def delete(self, request: pb.DeleteRangeRequest) -> bytes:
        key, end = request.key, codec.span_end(request.key, request.range_end)
        if not request.range_end:
            kv = self._overlay.get(key)
            found = [] if kv is None else [(b"k" + key, kv)]
        else:
            found = list(self._overlay.entries(key, end))
        main = self.revision + 1
        for latest_key, kv in found:
            gone = latest_key[1:]
            self.batch.delete(latest_key)
            self.lives[gone] = 0
            prev = self._first.setdefault(gone, kv)
            self._changed(gone, None, codec.delete_event(gone, main), b"", prev)
        if not found:
            return b""
        body = b"\x10" + codec.varint(len(found))
        if request.prev_kv:
            body += b"".join([codec.field(b"\x1a", kv) for _, kv in found])
        return body

    def _changed(self, key: bytes, kv: bytes | None, event: bytes, life: bytes, prev: bytes) -> None:
        """One change more of this record: into the history, the overlay, and what commit returns."""
        main, sub, batch = self.revision + 1, self._sub, self.batch
        batch.put(codec.revision_key(main, sub), event)
        batch.put(codec.history_key(key, main, sub), life)
        self._overlay.set(key, kv)
        self._sub = sub + 1
        self.changes.append(Change(main, event, prev))

    def _compact(self, revision: int) -> bytes:
        if revision <= self.compacted:
            raise errors.Compacted
        if revision > self.revision:
            raise errors.FutureRevision
        self.compacted = revision
        return b""

    def _publish(self, request: pb.MemberPublish) -> bytes:
        self.batch.put(codec.member_key(request.member.ID), request.SerializeToString())
        self.members[request.member.ID] = request
        return b""


def _parsed(record: wire.Record) -> Any:
    """Key and value of a put that says nothing else; else the message, or the error to answer with. Reads have no place
    in the log, except inside transactions."""
    method, payload = record.method, record.payload
    try:
        if method == _PUT:
            put = pb.PutRequest.FromString(payload)
            key = put.key
            if key and not (put.lease or put.prev_kv or put.ignore_value or put.ignore_lease):
                return key, put.value
        elif method == _RANGE:
            raise errors.Unimplemented
        return requests.parse(method, payload)
    except DecodeError:
        return errors.Malformed()
    except errors.KvorumError as error:
        return error


def _wanted(request: Any) -> list[bytes]:
    """The keys whose newest state the request is sure to ask for, or nearly so."""
    if type(request) is tuple:
        return [request[0]]
    if type(request) is pb.PutRequest:
        return [request.key]
    if type(request) is requests.Txn:
        keys = [compare.key for compare in request.compare if not compare.range_end]
        return keys + [op.key for op in request.success if type(op) is pb.PutRequest]
    if type(request) is pb.DeleteRangeRequest and not request.range_end:
        return [request.key]
    return []


_PUT, _RANGE = int(Method.PUT), int(Method.RANGE)
