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

import operator
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from native import plain
from native.plain import Scanner
from storage import codec, lives, requests, txn
from storage.alarms import Alarms
from storage.alarms import Changes as AlarmChanges
from storage.codec import State as Applied
from storage.engine import Engine
from storage.history import Change, Past
from storage.leases import Changes as LeaseChanges
from storage.leases import Leases, Lessor
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
    record, in order; none if nobody here wants to know, or if the entry is a leader's opening entry or not a batch of
    records."""

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

    def gone(self, keys: Sequence[bytes]) -> None:
        """Like `set` to None, of many."""
        if self._order is not None:
            fresh = [key for key in keys if key not in self.kvs]
            self._order = sorted(self._order + fresh)  # two runs, mostly: cheaper than to insert one by one
        self.kvs.update(dict.fromkeys(keys))

    def entries(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """As in State, and what comes first is the user key behind one byte."""
        if self._order is None:
            self._order = sorted(self.kvs)
        if not self._order:
            return self._below.entries(start, end)
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
        scanner: Scanner,
        leases: Leases,
        alarms: Alarms,
        known: Lives | None = None,
    ) -> None:
        self._engine = engine
        self._commit = commit
        self._scanner = scanner
        self._base = applied.revision
        self.index, self.term, self.revision, self.compacted = applied
        self.batch = engine.batch()
        self.leases = LeaseChanges(leases, self.batch)
        self.alarms = AlarmChanges(alarms, self.batch)
        self.changes: list[Change] = []
        self.members: dict[int, pb.MemberPublish] = {}
        self.origins: dict[int, tuple[int, int]] = {}
        self._origins_before = origins
        self._overlay = Overlay(engine)
        self._known = known  # None: changes must say what was before, so everything is looked up
        self.lives: dict[bytes, int] = {}  # of the keys that this turn has changed, 0 where it isn't known
        self._proposer = (0, 0)  # member and incarnation that the entry being applied came from
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

    def apply(self, index: int, term: int, data: bytes, *, answers: bool = True) -> Outcome:
        """Apply one log entry; `data` empty is a leader's opening entry. Without `answers`, for entries whose callers
        are elsewhere, what is done is the same, and the results may be missing.

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
        self._proposer = (proposal.origin, proposal.incarnation)
        batch = proposal.batch
        if not self.alarms.closed:  # else each record is to be judged
            scanned = self._scanner.scan(batch)
            if scanned is not None:
                return Outcome(False, self._walk(batch, scanned[0], answers))
        try:
            return Outcome(False, self._long_way(batch))
        except wire.MalformedBatch:
            return Outcome(False, [])

    def commit(self) -> list[Change]:
        """Write the turn and make it visible. Returns what it changed, in order."""
        self._record_history()
        return self._commit(self)

    def _record_history(self) -> None:
        """The `r` rows of all changes, behind everything else in the batch: RocksDB's memtable looks for the place of a
        row where it has put the one before, so rows that follow each other are put in sooner (a put takes 5 % less)."""
        put, main, sub = self.batch.put, 0, 0
        for change in self.changes:
            sub = sub + 1 if change.revision == main else 0
            main = change.revision
            put(codec.revision_key(main, sub), change.event)

    def _long_way(self, batch: bytes) -> list[Result]:
        """Take apart and do each record of a batch. Raises MalformedBatch, having done nothing."""
        records = wire.decode(batch, bytes_max=len(batch))
        parsed = [_parsed(record.method, record.payload) for record in records]
        self._overlay.fetch([key for request in parsed for key in _wanted(request)])
        return [self._record(request) for request in parsed]

    # ---- the short way, for what most records are

    def _walk(self, batch: bytes, numbers: list[int], answers: bool) -> list[Result]:
        """Do the records of a batch that was scanned (native.plain)."""
        known = self._known.get if self._known else _unknown
        work: list[Any] = []  # put: key and value; transaction: where it is, and the keys compared; else the message
        wanted: list[bytes] = []  # what must be looked up, in one go
        at, end = 0, len(numbers)
        while at < end:
            tag = numbers[at]
            if tag == _PUT:
                key = batch[numbers[at + 2] : numbers[at + 3]]
                work.append((key, batch[numbers[at + 4] : numbers[at + 5]]))
                if not known(key):
                    wanted.append(key)
                at += 6
            elif tag == _TXN:
                keys = [batch[numbers[i + 2] : numbers[i + 3]] for i in range(at + 4, at + 4 + 6 * numbers[at + 3], 6)]
                for key in keys:
                    if not known(key):
                        wanted.append(key)
                work.append((at + 4, keys))
                ops = at + 4 + 6 * numbers[at + 3]
                at = numbers[at + 2]
                if at - ops > _FEW_OPS:
                    puts = [batch[numbers[i + 1] : numbers[i + 2]] for i in range(ops + 2, at, 5) if numbers[i] == _PUT]
                    wanted += [key for key in puts if not known(key)]
            else:
                if numbers[at + 2] & 0xFF == Method.ALARM:
                    return self._long_way(batch)  # what comes behind it is to be judged by it
                request = _parsed(numbers[at + 2] & 0xFF, batch[numbers[at + 3] : numbers[at + 4]])
                wanted += _wanted(request)
                work.append(request)
                at += 5
        if wanted:
            self._overlay.fetch(wanted)
        results: list[Result] = []
        for item in work:
            if type(item) is not tuple:
                results.append(self._record(item))
                continue
            first, second = item
            if type(first) is bytes:
                self._put(first, second)
                body = b""
            else:
                body = self._txn(batch, numbers, first, second, answers)
            if self._sub:
                self.revision += 1
                self._sub = 0
            if answers:
                results.append(Result(0, self.revision, body))
        return results

    def _txn(self, batch: bytes, numbers: list[int], at: int, keys: list[bytes], answers: bool) -> bytes:
        """Do a plain transaction whose comparisons, of `keys`, stand at numbers[at]: nothing about it can be refused.
        What txn.write does with it, and answers."""
        succeeded = True
        for key in keys:
            target, result, first, second = numbers[at], numbers[at + 1], numbers[at + 4], numbers[at + 5]
            at += 6
            if not succeeded:
                continue
            if target == _VALUE:
                kv = self._overlay.get(key)
                # A missing key has no value: no comparison of it is true.
                succeeded = kv is not None and _COMPARES[result](codec.value_of(kv), batch[first:second])
            else:
                succeeded = _COMPARES[result](self._life(key) >> (target << 6) & lives.MASK, first)
        count = numbers[at] if succeeded else numbers[at + 1]
        at += 2 if succeeded else 2 + 5 * numbers[at]
        body = [b"\x10\x01"] if succeeded else []
        for i in range(at, at + 5 * count, 5):
            kind, key = numbers[i], batch[numbers[i + 1] : numbers[i + 2]]
            answer = b""
            if kind == _PUT:
                self._put(key, batch[numbers[i + 3] : numbers[i + 4]])
            elif kind == plain.DELETE:
                kv = self._overlay.get(key)
                if kv is not None:
                    self._remove(key, kv, kv)
                    answer = b"\x10\x01"
            elif answers:
                kv = self._overlay.get(key)
                answer = b"" if kv is None else codec.field(b"\x12", kv) + b"\x20\x01"
            if answers:
                body.append(txn.answer(kind, self.revision + 1 if self._sub else self.revision, answer))
        return b"".join(body)

    def _life(self, key: bytes) -> int:
        """The life of a key as it is now (storage.lives), 0 if there is none."""
        life = self.lives.get(key)
        if life is None and self._known:
            life = self._known.get(key)
        if life:
            return life
        kv = self._overlay.get(key)
        if kv is None:
            return 0
        was = pb.KeyValue.FromString(kv)
        return lives.pack(was.create_revision, was.mod_revision, was.version)

    def _put(self, key: bytes, value: bytes) -> None:
        """A put that says nothing but key and value, of a key that this record changes once."""
        if self._known:
            life = self.lives.get(key)
            if life is None:
                life = self._known.get(key)
            if life:
                self._store(key, value, 0, life >> lives.CREATE & lives.MASK, (life & lives.MASK) + 1, b"")
                return
        old = self._overlay.get(key)
        self._write(key, value, 0, old, old or b"")

    # ---- the long way

    def _record(self, request: object) -> Result:
        try:
            body = self._do(request)
        except errors.KvorumError as error:
            assert not self._sub, "a refused record has changed something"
            return refusal(error, self.revision)
        self._next_revision()
        return Result(0, self.revision, body)

    def _do(self, request: object) -> bytes:
        if self.alarms.closed:
            self.alarms.check(request)
        if isinstance(request, pb.PutRequest):
            txn.check_put(self, request)
            return self.put(request)
        if isinstance(request, requests.Txn):
            return txn.write(self, request)
        if isinstance(request, pb.DeleteRangeRequest):
            return self.delete(request)
        if isinstance(request, pb.CompactionRequest):
            return self._compact(request.revision)
        if isinstance(request, pb.LeaseGrantRequest):
            if not request.ID:
                raise errors.Malformed  # the proposer chooses, so that all have the same
            self.leases.grant(request.ID, request.TTL, self.index)
            return codec.int_field(b"\x10", request.ID) + codec.int_field(b"\x18", request.TTL)
        if isinstance(request, pb.LeaseRevokeRequest):
            if self.leases.ttl(request.ID) is None:
                raise errors.LeaseNotFound
            self._end_lease(request.ID)
            return b""
        if isinstance(request, pb.LeaseLead):
            self.leases.lead(Lessor(request.term, *self._proposer))
            return b""
        if isinstance(request, pb.LeaseExpire | pb.LeaseCheckpoints):
            if Lessor(request.term, *self._proposer) == self.leases.lessor:
                self._heed_lessor(request)
            return b""
        if isinstance(request, pb.MemberPublish):
            return self._publish(request)
        if isinstance(request, pb.AlarmRequest):
            return self.alarms.do(request)
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
        before = 0
        if old is None:
            create, version = self.revision + 1, 1
        else:
            was = pb.KeyValue.FromString(old)
            create, version, before = was.create_revision, was.version + 1, was.lease
        if lease != before:
            if before:
                self.leases.detach(before, key)
            if lease:
                self.leases.attach(lease, key)
        self._store(key, value, lease, create, version, prev)

    def _store(self, key: bytes, value: bytes, lease: int, create: int, version: int, prev: bytes) -> None:
        main = self.revision + 1
        life = codec.lifetime(create, main, version)
        self.lives[key] = 0 if lease else lives.pack(create, main, version)
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
        if not found:
            return b""
        keys = [latest_key[1:] for latest_key, _ in found]
        for gone, (_, kv) in zip(keys, found, strict=True):
            lease = codec.lease_of(kv)
            if lease:
                self.leases.detach(lease, gone)
        first, prevs = self._first, None
        if self._known is None:
            prevs = [first.setdefault(gone, kv) for gone, (_, kv) in zip(keys, found, strict=True)]
        self._remove_all(keys, prevs)
        body = b"\x10" + codec.varint(len(found))
        if request.prev_kv:
            body += b"".join([codec.field(b"\x1a", kv) for _, kv in found])
        return body

    def _remove(self, key: bytes, kv: bytes, prev: bytes) -> None:
        """Delete a key that is `kv` now, and was `prev` before this record."""
        lease = codec.lease_of(kv)
        if lease:
            self.leases.detach(lease, key)
        self.batch.delete(b"k" + key)
        self.lives[key] = 0
        self._changed(key, None, codec.delete_event(key, self.revision + 1), b"", prev)

    def _remove_all(self, keys: list[bytes], prevs: list[bytes] | None) -> None:
        """Delete keys that are there, each once, and belong to no lease any more. `prevs`: what they were before this
        record; None: changes need not say."""
        main, batch, changes = self.revision + 1, self.batch, self.changes
        delete, put = batch.delete, batch.put
        at = 0
        for history, event in codec.deletions(keys, main, self._sub):
            delete(b"k" + keys[at])
            put(history, b"")
            changes.append(Change(main, event, b"" if prevs is None else prevs[at]))
            at += 1
        self.lives.update(dict.fromkeys(keys, 0))
        self._overlay.gone(keys)
        self._sub += at

    def _changed(self, key: bytes, kv: bytes | None, event: bytes, life: bytes, prev: bytes) -> None:
        """One change more of this record: into the history, the overlay, and what commit returns."""
        main, sub = self.revision + 1, self._sub
        self.batch.put(codec.history_key(key, main, sub), life)
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

    # ---- leases

    def _end_lease(self, id: int) -> None:
        """All its keys go at one revision, in order, and it with them."""
        keys = self.leases.keys(id)
        if keys:
            self.leases.detach_all(id, keys)
            self._remove_all(keys, self._values(keys) if self._known is None else None)
        self.leases.end(id)

    def _values(self, keys: list[bytes]) -> list[bytes]:
        """What the keys of a lease are now."""
        self._overlay.fetch(keys)
        found = []
        for key in keys:
            kv = self._overlay.get(key)
            assert kv is not None, "a lease holds a key that is not there"
            found.append(kv)
        return found

    def _heed_lessor(self, request: pb.LeaseExpire | pb.LeaseCheckpoints) -> None:
        if isinstance(request, pb.LeaseCheckpoints):
            for checkpoint in request.checkpoints:
                if self.leases.known(checkpoint.ID, request.applied):
                    self.leases.checkpoint(checkpoint.ID, checkpoint.remaining_TTL)
            return
        for id in request.IDs:  # each at a revision of its own
            if self.leases.known(id, request.applied):
                self._end_lease(id)
                self._next_revision()

    def _next_revision(self) -> None:
        """The record has changed something, perhaps, and another revision begins."""
        if self._sub:
            self.revision += 1
            self._sub = 0
            self._first.clear()

    def _publish(self, request: pb.MemberPublish) -> bytes:
        self.batch.put(codec.member_key(request.member.ID), request.SerializeToString())
        self.members[request.member.ID] = request
        return b""


def _parsed(method: int, payload: bytes) -> Any:
    """The message, or the error to answer with. Reads have no place in the log, except inside transactions."""
    try:
        if method == Method.RANGE:
            raise errors.Unimplemented
        return requests.parse(method, payload)
    except errors.KvorumError as error:
        return error


def _wanted(request: Any) -> list[bytes]:
    """The keys whose newest state the request is sure to ask for, or nearly so."""
    if type(request) is pb.PutRequest:
        return [request.key]
    if type(request) is requests.Txn:
        keys = [compare.key for compare in request.compare if not compare.range_end]
        return keys + [op.key for op in request.success if type(op) is pb.PutRequest]
    if type(request) is pb.DeleteRangeRequest and not request.range_end:
        return [request.key]
    return []


def _unknown(_: bytes) -> None:
    return None


_PUT, _TXN = plain.PUT, plain.TXN
_FEW_OPS = 2 + 5 * 4  # numbers: of a transaction with fewer, what it puts is mostly what it compares
_VALUE = pb.Compare.VALUE
_COMPARES: list[Callable[[Any, Any], bool]] = [operator.eq, operator.gt, operator.lt, operator.ne]
"""By Compare's results."""
