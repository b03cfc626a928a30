"""The apply process: clients' requests in, committed entries onto the store, answers and changes out.

    clients ──▶ ┐  a wake-up's writes, one proposal     ┌─▶ raft
    raft    ──▶ ┤  a wake-up's reads, one read index    ├─▶ clients   answers, one frame a client
    watch   ──▶ ┘  committed entries, one store batch   └─▶ watch     changes, one message

Why an answer is true. A write is answered only from the result of applying its own entry, which is committed, and only
after the store batch with it is visible here: who was answered and asks again, here, sees it. A linearizable read is
answered from a state that has applied at least the index which the leader confirmed after the read had arrived. What a
fresh process may show is in cluster/reads.py, what a snapshot is of in cluster/snapshots.py, why a batch may be
proposed again in cluster/proposals.py, why a lease's time is kept in cluster/lessor.py and leasecalls.py, and what
becomes of answers that nobody takes in cluster/outbox.py.

Why a crash loses nothing. Nothing here is owed to anybody but the store's content, and that is rebuilt from the log:
after a restart raft sends every entry after the store's applied index, and the store asserts that none is missing.
Callers of the dead process see their connection break.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as FilePath
from typing import Protocol

import zmq
from google.protobuf.message import Message as Protobuf

from cluster import metrics
from cluster.callers import AfterSweep, Caller, Confirmation
from cluster.config import NodeConfig
from cluster.exits import Exit
from cluster.exporter import Exporter
from cluster.feed import Feed
from cluster.internal import (
    Answered,
    Applied,
    Asked,
    Attach,
    Attached,
    Committed,
    Fenced,
    HistoryRequest,
    Message,
    MoveLeader,
    Propose,
    ReadFailed,
    ReadIndex,
    ReadReady,
    Rejected,
    Status,
    Tick,
    WatchAck,
    WatchAttach,
    WatchDetach,
)
from cluster.landlord import Landlord
from cluster.links import ApplyLink, ClientFrame
from cluster.metrics import ApplyBoard
from cluster.node import Node
from cluster.outbox import Outbox
from cluster.process import Process, exit_for
from cluster.proposals import Proposals
from cluster.quota import Quota
from cluster.rangestreams import RangeStreams
from cluster.reads import Read, Reads
from cluster.requests import parsed
from cluster.snapshots import NO_ROOM, Export, Snapshots
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from native import plain
from native.plain import Scanner
from storage.codec import origin_of
from storage.failpoint import hit
from storage.keyspace import Change, Keyspace, Result, Scan
from storage.requests import Limits, Path, admit, cost
from storage.rocks import RocksEngine

ENTRY_BYTES = 1 << 20
"""A batch is cut into entries of about this size."""
PENDING_BYTES_MAX = 64 << 20
BACKLOG_ENTRIES_MAX = 5000
"""etcd's bound on committed - applied. Past either, new writes get "too many requests" at once."""
REPORT_BYTES = 1 << 20
READS_MAX = 100_000
READS_BYTES_MAX = 64 << 20
FLUSH_ROOM_BYTES = 40 << 20
"""A flush is put off while there is less than this, which all memtables fit into: a failed one ends the process."""
SCANS_PER_TURN = 4
HASHES_MAX = 100
"""Hashes that wait for the one under way. Each looks at the whole store; more are refused."""
FRESH_ELECTIONS = 3
SLOW_SECONDS = 0.1
"""etcd's warning-apply-duration."""
FLUSH_ENTRIES = 20_000
FLUSH_TICKS = 300


class Link(Protocol):
    """The apply process's ends of its conversations."""

    def receive(self) -> Iterable[Tick | ClientFrame | Message]:
        """All that has arrived, within bounds that leave time for the rest of the turn. At most one Tick, last."""
        ...

    def to_raft(self, message: Message) -> None: ...
    def to_watch(self, message: Message) -> None: ...

    def reply(self, identity: bytes, records: Sequence[bytes]) -> list[bytes] | None:
        """Send records to a client. Returns those that its queue has no room for now, None if it is gone."""
        ...


def _no_exports(mark: int) -> Export:
    raise OSError("there are no exports here")


class Superseded(Exception):
    """A newer apply process of this node is attached to raft: this one must end."""


class Applyd:
    """The state of the apply process beside its store: who waits for what."""

    def __init__(
        self,
        keyspace: Keyspace,
        link: Link,
        node: Node,
        board: ApplyBoard,
        *,
        epoch: int,
        limits: Limits,
        quota_bytes: int,
        election_ticks: int,
        timeout_ticks: int,
        lease_seconds_min: int = 2,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        disk_free_bytes: Callable[[], int] = lambda: 1 << 62,
        export: Callable[[int], Export] = _no_exports,
    ) -> None:
        self.keyspace, self.link, self.node, self.board = keyspace, link, node, board
        self.epoch, self.limits = epoch, limits
        self.election_ticks, self._timeout_ticks = election_ticks, timeout_ticks
        self.feed = Feed(keyspace, link.to_watch, first_session=epoch << 32)
        self._session = 0  # 0: not attached to raft
        self.status = Status(0, 0, 0, 0)
        self.ticks = 0
        self._quota = Quota(self, quota_bytes, disk_free_bytes, timeout_ticks)
        # This wake-up's harvest.
        self._frames: list[tuple[bytes, list[Caller]]] = []
        # What is under way.
        self._proposals = Proposals(node.member_id, epoch, self._to_leader, election_ticks)
        self._scanner = Scanner(limits.max_request_bytes, limits.max_txn_ops)
        self._reads = Reads()
        self._landlord = Landlord(
            self, epoch=epoch, seconds_min=lease_seconds_min, clock=clock, rng=rng or random.Random()
        )
        self._ranges = RangeStreams(self)
        self._outbox = Outbox(link.reply, board.replies_dropped.add, self._ranges.gone)
        self._scans: deque[tuple[Caller, Scan]] = deque()
        self._hashing = False
        self._hashes: deque[tuple[Caller, bytes]] = deque()
        self._snapshots = Snapshots(export, self._put, epoch=epoch, election_ticks=election_ticks)
        self._sweeping = True
        self._unreported = 0  # bytes applied since raft was last told
        self._physical: list[tuple[Caller, int]] = []
        self._moves: list[tuple[Caller, int, int]] = []
        self._published_at = -election_ticks
        self._flush_from = keyspace.applied[0]
        self._flush_tick = 0
        self._durable_floor = keyspace.applied[0]  # what was on disk when the store was opened
        self._local: dict[int, Callable[[Caller, bytes], None]] = {
            Method.HELLO: self._hello,
            Method.STATUS: self._tell_status,
            Method.MEMBER_LIST: self._member_list,
            Method.HASH: self._hash,
            Method.HASH_KV: self._hash,
            Method.SNAPSHOT: self._snapshot,
            Method.MOVE_LEADER: self._move_leader,
            Method.LEASE_KEEP_ALIVE: self._landlord.keep_alive,
            Method.LEASE_TIME_TO_LIVE: self._landlord.time_to_live,
            Method.LEASE_LEASES: self._lease_list,
        }

    # ---- the turn

    def turn(self) -> None:
        """One pass. Commit, then answer, then ask: what was agreed comes before what is new."""
        committed: list[Committed] = []
        frames: list[ClientFrame] = []
        for item in self.link.receive():
            if isinstance(item, ClientFrame):
                frames.append(item)
            elif isinstance(item, Committed):
                committed.append(item)
            else:
                self._handle(item)
        if committed:
            self._apply(committed)
        for client in frames:
            self._take(client)
        if frames:
            self.board.batch_requests.observe(len(frames))
        self._landlord.turn()
        self._propose()
        self._ask_reads()
        self._answer_ripe()
        self._background()
        self._outbox.flush()

    @property
    def idle(self) -> bool:
        """Nothing to do before something arrives."""
        return not (self._scans or self._sweeping or self._outbox.busy or self._landlord.busy or self._ranges.busy)

    @property
    def stuck(self) -> bool:
        """A client's queue is full, and nothing will tell us when it isn't any more."""
        return self._outbox.stuck

    def _handle(self, item: Tick | Message) -> None:
        match item:
            case Tick():
                self._tick()
            case Status():
                self._status_changed(item)
            case ReadReady(session, context, index):
                if session == self._session:
                    self._reads.ready(context, index)
            case ReadFailed(session, context):
                if session == self._session:
                    self._reads.failed(context)
            case Rejected(session, number, reason):
                if session == self._session:
                    self._rejected(number, reason)
            case Asked(session, member, number, body):
                if session == self._session:
                    self._landlord.calls.asked(member, number, body)
            case Answered(session, number, body):
                if session == self._session:
                    self._landlord.calls.answered(number, body)
            case Attached(session):
                self._attached(session)
            case Fenced(epoch):
                if epoch > self.epoch:
                    raise Superseded(f"apply process {self.epoch} was replaced by {epoch}")
                if self._session:
                    self._session = 0
                    self._attach()
            case WatchAttach() | WatchAck() | WatchDetach() | HistoryRequest():
                self.feed.handle(item, self.status.term)
            case _:
                raise AssertionError(f"not for apply: {item!r}")

    # ---- the conversation with raft

    def _attach(self) -> None:
        self.link.to_raft(Attach(self.epoch, self.keyspace.applied[0]))

    def _attached(self, session: int) -> None:
        """A fresh conversation: what was said in the one before may not have been heard."""
        if self._session:
            return  # the answer to an older asking: its entries begin where this store was then. Raft will fence us
        self._session = session
        self.status = Status(session, 0, 0, 0)
        self._reads.ask_again()
        self._landlord.calls.tick(None)

    def _status_changed(self, status: Status) -> None:
        if status.session != self._session:
            return
        before, self.status = self.status, status
        if status.leader and (status.leader != before.leader or status.term != before.term):
            self._proposals.resend(self.ticks, all=True)

    def _rejected(self, number: int, reason: str) -> None:
        refusal = {"no space": errors.NoSpace, "too many requests": errors.TooManyRequests}.get(reason)
        callers = self._proposals.rejected(number, self.ticks, final=refusal is not None)
        for caller in callers:
            self.fail(caller, (refusal or errors.NoLeader)())
        if callers:
            self._landlord.refused(number)

    @property
    def member_id(self) -> int:
        return self.node.member_id

    @property
    def store_bytes(self) -> int:
        return self.node.store_bytes

    def to_raft(self, message: Message) -> None:
        self.link.to_raft(message)

    def _to_leader(self, number: int, data: bytes) -> bool:
        if not self._session or not self.status.leader:
            return False
        self.link.to_raft(Propose(self._session, number, data))
        return True

    # ---- committed entries

    def _apply(self, committed: list[Committed]) -> None:
        """Entries onto the store in one batch, then the answers of our own and the changes for watchers."""
        turn = self.keyspace.begin(prev=self.feed.wants_prev)
        own: list[tuple[int, list[Result]]] = []
        for message in committed:
            if message.session != self._session:
                continue
            for entry in message.entries:
                origin, incarnation, number = origin_of(entry.data)
                is_own = self._proposals.is_own(origin, incarnation)
                outcome = turn.apply(entry.index, entry.term, entry.data, answers=is_own)
                if is_own and not outcome.skipped:
                    own.append((number, outcome.results))
        hit("applyBeforeCommit")
        compacted = self.keyspace.compacted
        began = time.perf_counter()
        changes = turn.commit()
        self._landlord.changed(turn.leases, own[-1][0] if own else 0)
        puts = self._count(len(committed), changes, time.perf_counter() - began)
        self._quota.changed(0 if self._reads.fresh else puts)  # what is old has raised what it had to, perhaps long ago
        hit("applyAfterCommit")
        if self.keyspace.compacted != compacted:
            self._sweeping = True
            self.feed.tick(self.status.term)  # before the answer: whoever has it finds no watch of what is gone
        for number, results in own:
            callers = self._proposals.settle(number, self.ticks)
            for caller, result in zip(callers, results, strict=bool(callers)):
                if result.status == 0 and isinstance(caller, AfterSweep):
                    self._physical.append((caller, result.revision))
                else:
                    self.reply(caller, result)
        self.feed.changed(changes)
        self._unreported += sum(len(entry.data) for message in committed for entry in message.entries)
        if self._unreported > REPORT_BYTES and self._session:
            self._report()

    def _count(self, entries: int, changes: Sequence[Change], seconds: float) -> int:
        """Returns how many puts there were."""
        board = self.board
        deleted = sum(change.event[0] == _TYPE_TAG for change in changes)
        board.puts.add(len(changes) - deleted)
        board.deletes.add(deleted)
        board.batch_entries.observe(entries)
        board.backend_commit_seconds.observe(seconds)
        if seconds > SLOW_SECONDS:
            board.slow_applies.add()
        return len(changes) - deleted

    def _report(self) -> None:
        """Make room in raft's window, and give a sign of life. Not for every batch: it would wake raft each time."""
        self._unreported = 0
        self.link.to_raft(Applied(self._session, self.keyspace.applied[0], self._durable()))

    def _durable(self) -> int:
        return max(self._durable_floor, self.keyspace.engine.flushed())

    # ---- requests

    def _take(self, client: ClientFrame) -> None:
        if not self._take_plain(client):
            self._take_apart(client)

    def _take_plain(self, client: ClientFrame) -> bool:
        """Admit a frame of nothing but plain writes (native.plain), of which there is no more to ask than if there is
        room for all of them. False: it is something else, or has to be looked at one by one."""
        identity, frame = client
        scanned = self._scanner.scan(frame)
        if scanned is None or scanned[1] or len(frame) > wire.BATCH_BYTES_MAX:
            return False
        numbers, at, end = scanned[0], 0, len(scanned[0])
        callers: list[Caller] = []
        while at < end:
            if numbers[at] == plain.PUT:
                callers.append(Caller(identity, numbers[at + 1], _PUT))
                at += 6
            else:
                callers.append(Caller(identity, numbers[at + 1], _TXN))
                at = numbers[at + 2]
        if len(callers) > wire.BATCH_RECORDS_MAX or self._overloaded:
            return False
        if self._quota.room() < len(frame) + 256 * plain.LIST_MAX * len(callers):
            return False
        if callers:
            self._frames.append((frame, callers))
        return True

    def _take_apart(self, client: ClientFrame) -> None:
        identity, frame = client
        try:
            records = wire.decode(frame, wire.BATCH_RECORDS_MAX)
        except wire.MalformedBatch as malformed:
            self.fail(Caller(identity, 0, 0), errors.Malformed(f"kvorum: {malformed}"))
            return
        callers: list[Caller] = []
        kept: list[bytes] = []
        as_it_is = True
        for record in records:
            caller = Caller(identity, record.id, record.method)
            try:
                proposed = self._admit(caller, record.kind, record.payload)
            except errors.KvorumError as error:
                self.fail(caller, error)
                continue
            if proposed is not None:
                if record.method == Method.COMPACT and parsed(pb.CompactionRequest, record.payload).physical:
                    caller = AfterSweep(*caller)
                callers.append(caller)
                kept.append(proposed)
                as_it_is &= proposed is record.payload
        if as_it_is and len(callers) == len(records) and callers:
            self._frames.append((frame, callers))
        elif callers:
            whole = b"".join(
                wire.encode(caller.method, Kind.CALL, 0, caller.id, payload)
                for caller, payload in zip(callers, kept, strict=True)
            )
            self._frames.append((whole, callers))

    def _admit(self, caller: Caller, kind: int, payload: bytes) -> bytes | None:
        """Start on a request. If it is a write, the payload to be proposed with the others of its frame."""
        method = caller.method
        if method == Method.RANGE_STREAM:
            if len(payload) > self.limits.max_request_bytes:
                raise errors.RequestTooLarge
            self._ranges.take(caller, kind, payload)
            return None
        if kind != Kind.CALL:
            raise errors.Unimplemented(f"kvorum: a record of kind {kind} is not a call")
        local = self._local.get(method)
        if local is not None:
            local(caller, payload)
            return None
        if method not in wire.METHODS or method == Method.WATCH:
            raise errors.Unimplemented(f"unknown method {method}")
        path = admit(method, payload, self.limits)
        if path is Path.WRITE:
            if not self._guard(caller, payload):
                return None
            return self._landlord.settled(payload) if method == Method.LEASE_GRANT else payload
        if len(payload) > self.limits.max_request_bytes:
            raise errors.RequestTooLarge
        self.begin_read(caller, payload, serializable=path is Path.SERIALIZABLE)
        return None

    def begin_read(self, caller: Caller, payload: bytes, *, serializable: bool) -> None:
        if serializable and not self._reads.fresh:
            self.read(caller, payload)
        elif self._reads.waiting >= READS_MAX or self._reads.bytes + len(payload) > READS_BYTES_MAX:
            raise errors.TooManyRequests
        else:
            self._reads.add(Read(caller, payload, self.ticks), serializable=serializable)

    def _guard(self, caller: Caller, payload: bytes) -> bool:
        """Whether a write may be proposed now; if not, and nothing is raised, its caller is told when it is time."""
        if self._overloaded:
            self.board.refused.add()
            raise errors.TooManyRequests
        if self._quota.room() >= len(payload) + 256 * self.limits.max_txn_ops:
            return True
        growth = cost(caller.method, payload)  # close enough to look at it
        return not growth or self._quota.admits(caller, growth)

    @property
    def _overloaded(self) -> bool:
        backlog = self.status.commit - self.keyspace.applied[0]
        return self._proposals.bytes > PENDING_BYTES_MAX or backlog > BACKLOG_ENTRIES_MAX

    # ---- writes

    def _propose(self) -> None:
        """All writes of this wake-up, as few entries as their size allows."""
        parts: list[bytes] = []
        callers: list[Caller] = []
        size = 0
        for frame, its in self._frames:
            if size and size + len(frame) > ENTRY_BYTES:
                self._proposals.add(b"".join(parts), callers, self.ticks)
                parts, callers, size = [], [], 0
            parts.append(frame)
            callers += its
            size += len(frame)
        if parts:
            self._proposals.add(b"".join(parts), callers, self.ticks)
        self._frames.clear()

    def propose(self, method: int, request: Protobuf, *, once: bool = False) -> int:
        """An entry that no client waits for; returns its number (cluster.proposals)."""
        record = wire.encode(method, Kind.CALL, 0, 0, request.SerializeToString())
        return self._proposals.add(record, [Caller(b"", 0, method)], self.ticks, once=once)

    # ---- reads

    def confirm(self, caller: Caller) -> None:
        """Have it confirmed that this member leads, with the reads of this turn: they share one read index."""
        self._reads.add(Read(caller, b"", self.ticks))

    def _ask_reads(self) -> None:
        """One read index for all linearizable reads of this wake-up; without a leader they wait for one."""
        if self._session and self.status.leader:
            context = self._reads.ask(self.ticks)
            if context is not None:
                self.link.to_raft(ReadIndex(self._session, context))

    def _answer_ripe(self) -> None:
        ripe = self._reads.take_ripe(self.keyspace.applied[0])
        for caller, payload, _ in ripe:
            if isinstance(caller, Confirmation):
                self._landlord.confirmed(caller)
            else:
                self.read(caller, payload)
        if ripe:
            self.board.ranges.add(len(ripe))
        if not self._reads.fresh:
            self.feed.caught_up(self.status.term)

    def read(self, caller: Caller, payload: bytes, *, due: bool = False) -> None:
        """Answer from the store as it is, at once or, if it takes long, slice by slice; or, unless it is `due`, when
        there is room for the answer."""
        if not (due or self._outbox.calm or self._outbox.may_read(caller, payload)):
            if not self._outbox.wait(caller, payload):
                self.fail(caller, errors.TooManyRequests())
            return
        if caller.method == Method.MEMBER_LIST:
            self._reply_members(caller)
            return
        if caller.method == Method.SNAPSHOT:
            self._snapshot_step(caller, payload)
            return
        if caller.method == Method.RANGE_STREAM:
            self._ranges.begin(caller)
            return
        if self._hashing and caller.method in _HASHES:
            if len(self._hashes) < HASHES_MAX:
                self._hashes.append((caller, payload))
            else:
                self.fail(caller, errors.TooManyRequests())
            return
        try:
            if caller.method == Method.LEASE_LEASES:
                result = self.keyspace.sliced(self.keyspace.leases.listed())
            elif caller.method == Method.LEASE_TIME_TO_LIVE:
                result = self._landlord.with_keys(payload)
            else:
                result = self.keyspace.read(caller.method, payload)
        except errors.KvorumError as error:
            self.fail(caller, error)
            return
        if isinstance(result, Scan):
            self._scans.append((caller, result))
            if caller.method in _HASHES:  # it holds no answer that grows: its client's other reads go on
                self._hashing = True
            else:
                self._outbox.begin_scan(caller.identity)
        else:
            self.reply(caller, result)

    # ---- answers

    def reply(self, caller: Caller, result: Result) -> None:
        if result.status:
            payload = result.body
        else:
            payload = self.node.header(result.revision, self.status.term) + result.body
        self._put(caller, result.status, payload)

    def fail(self, caller: Caller, error: errors.KvorumError) -> None:
        if caller.method == Method.RANGE_STREAM:
            self._ranges.drop(caller)
            record = wire.encode(caller.method, Kind.STREAM_CLOSE, error.code, caller.id, error.text.encode())
            self._outbox.put(caller.identity, record)
        else:
            self._put(caller, error.code, error.text.encode())

    def _put(self, caller: Caller, status: int, payload: bytes) -> None:
        record = wire.HEADER.pack(len(payload), caller.method, 1, status, caller.id) + payload
        self._outbox.put(caller.identity, record)

    def header_now(self, revision: int) -> bytes:
        return self.node.header(revision, self.status.term)

    def takes(self, identity: bytes) -> bool:
        return self._outbox.takes(identity)

    def put(self, identity: bytes, record: bytes) -> None:
        self._outbox.put(identity, record)

    def gone(self, identity: bytes) -> bool:
        return self.link.reply(identity, [b""]) is None

    # ---- calls that are not about keys

    def _hello(self, caller: Caller, payload: bytes) -> None:
        request = parsed(pb.HelloRequest, payload)
        if request.protocol != wire.PROTOCOL:
            raise errors.VersionMismatch(
                f"kvorum: protocol version not supported: {request.protocol}, this server speaks {wire.PROTOCOL}"
            )
        reply = self.node.hello(self.keyspace.members(), self.limits.max_request_bytes)
        self.reply(caller, Result(0, self.keyspace.revision, reply.SerializeToString()))

    def _tell_status(self, caller: Caller, payload: bytes) -> None:
        alarms = self.keyspace.alarms.listed()
        reply = self.node.status(self.status, self.keyspace.applied[0], self._quota.quota_bytes, alarms)
        self.reply(caller, Result(0, self.keyspace.revision, reply.SerializeToString()))

    def _member_list(self, caller: Caller, payload: bytes) -> None:
        if parsed(pb.MemberListRequest, payload).linearizable:
            self._reads.add(Read(caller, payload, self.ticks))
        else:
            self._reply_members(caller)

    def _reply_members(self, caller: Caller) -> None:
        reply = pb.MemberListResponse(members=self.node.member_list(self.keyspace.members()))
        self.reply(caller, Result(0, 0, reply.SerializeToString()))

    def _lease_list(self, caller: Caller, payload: bytes) -> None:
        parsed(pb.LeaseLeasesRequest, payload)
        self._reads.add(Read(caller, payload, self.ticks))

    def _hash(self, caller: Caller, payload: bytes) -> None:
        """Of what is here: whoever compares members doesn't want the leader's word for it."""
        parsed(wire.METHODS[Method(caller.method)].request, payload)
        self.begin_read(caller, payload, serializable=True)

    def _next_hash(self) -> None:
        self._hashing = False
        while self._hashes and not self._hashing:
            self.read(*self._hashes.popleft(), due=True)

    def _snapshot(self, caller: Caller, payload: bytes) -> None:
        if parsed(pb.SnapshotRequest, payload).snapshot:
            self.read(caller, payload)
        else:
            self.begin_read(caller, payload, serializable=True)

    def _snapshot_step(self, caller: Caller, payload: bytes) -> None:
        request = pb.SnapshotRequest.FromString(payload)
        try:
            if request.snapshot:
                self._snapshots.ask(caller, request)
                return
            if not self._may_flush:
                raise NO_ROOM
            index = self.keyspace.applied[0]
            self._snapshots.begin(caller, index)
        except errors.KvorumError as error:
            self.fail(caller, error)
        else:
            if index > self._durable():
                self._begin_flush(index)

    def _move_leader(self, caller: Caller, payload: bytes) -> None:
        target = parsed(pb.MoveLeaderRequest, payload).targetID
        if self.status.leader != self.node.member_id:
            raise errors.NotLeader
        if target not in self.node.member_ids:
            raise errors.BadLeaderTransferee
        if target == self.node.member_id:
            self._put(caller, 0, b"")
            return
        self._moves.append((caller, target, self.ticks))
        self.link.to_raft(MoveLeader(self._session, target))

    # ---- time

    def _tick(self) -> None:
        self.ticks += 1
        if self._session:
            self._report()
        else:
            self._attach()
        self._measure()
        self._expire()
        self._landlord.tick(self.ticks - self._timeout_ticks)
        self._proposals.resend(self.ticks, all=False)
        if self.ticks > FRESH_ELECTIONS * self.election_ticks:
            self._reads.begin_anyway()
        self._publish()
        self._flush()
        self._snapshots.tick(self.ticks)
        self._ranges.tick()
        self.feed.tick(self.status.term)

    def _measure(self) -> None:
        board, keyspace = self.board, self.keyspace
        size = self.node.store_bytes = keyspace.engine.size_bytes()
        board.db_size_bytes.set(size)
        board.db_size_in_use_bytes.set(size)  # what RocksDB would give back is not known to it
        board.proposals_applied.set(keyspace.applied[0])
        board.proposals_pending.set(len(self._proposals))
        board.durable_index.set(self._durable())
        board.revision.set(keyspace.revision)
        board.compact_revision.set(keyspace.compacted)
        board.range_streams.set(len(self._ranges))
        for alarm in board.alarms:
            board.alarms[alarm].set(float(alarm in keyspace.alarms.raised))
        self._quota.tick()
        if not self._may_flush:
            self._snapshots.give_up(NO_ROOM)

    def _expire(self) -> None:
        """Tell those whose time is up what is known of their request."""
        limit = self.ticks - self._timeout_ticks
        for pending in self._proposals.expire(limit):
            error = errors.TimedOut if pending.attempts else errors.NoLeader  # never sent is never done
            for caller in pending.callers:
                self.fail(caller, error())
        self._reads.ask_again(self.ticks - self.election_ticks)
        for read in self._reads.expire(limit):
            self.board.slow_read_indexes.add()
            if isinstance(read.caller, Confirmation):
                self._landlord.unconfirmed(read.caller)
            else:
                self.fail(read.caller, errors.TimedOut() if self.status.leader else errors.NoLeader())
        self._moves = [move for move in self._moves if not self._moved(*move)]

    def _moved(self, caller: Caller, target: int, born: int) -> bool:
        if self.status.leader == target:
            self._put(caller, 0, b"")
        elif self.ticks - born > 2 * self.election_ticks:
            text = "etcdserver: request timed out, leader transfer took too long"
            self.fail(caller, errors.Ambiguous(text, errors.Code.UNKNOWN))
        else:
            return False
        return True

    def _publish(self) -> None:
        """Let the cluster know how clients reach this member, whenever what it knows is not so."""
        if not self.status.leader or self.ticks - self._published_at < self.election_ticks:
            return
        if self.node.publication not in self.keyspace.members():
            self._published_at = self.ticks
            self.propose(Method.MEMBER_PUBLISH, self.node.publication)

    def _flush(self) -> None:
        index = self.keyspace.applied[0]
        entries = index - self._flush_from
        due = entries >= FLUSH_ENTRIES or (entries and self.ticks - self._flush_tick >= FLUSH_TICKS)
        if due and self._may_flush:
            self._begin_flush(index)

    @property
    def _may_flush(self) -> bool:
        return self._quota.disk_free_bytes >= FLUSH_ROOM_BYTES

    def _begin_flush(self, index: int) -> None:
        self._flush_from, self._flush_tick = index, self.ticks
        self.keyspace.engine.begin_flush(index)

    # ---- what takes long

    def _background(self) -> None:
        for caller, payload in self._outbox.due():
            self.read(caller, payload, due=True)
        for _ in range(min(SCANS_PER_TURN, len(self._scans))):
            caller, scan = self._scans.popleft()
            result = scan.step()
            if result is None:
                self._scans.append((caller, scan))
            else:
                self.reply(caller, result)
                if caller.method in _HASHES:
                    self._next_hash()
                else:
                    self._outbox.end_scan(caller.identity)
        if self._snapshots:
            self._snapshots.turn(self._durable())
        self._ranges.turn()
        if self._sweeping:
            hit("applyBeforeSweep")
            self._sweeping = self.keyspace.sweep()
            if not self._sweeping:
                for caller, revision in self._physical:
                    self.reply(caller, Result(0, revision, b""))
                self._physical.clear()


_HASHES = (Method.HASH, Method.HASH_KV)
_PUT, _TXN = int(Method.PUT), int(Method.TXN)
_TYPE_TAG = 0x08  # field 1 of Event; a put has type 0, which protobuf leaves out


def _free_bytes(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def main(argv: Sequence[str]) -> int:
    """Of (NODE_JSON, EPOCH), as cluster/part.py calls it. Returns the exit code."""
    process = Process("apply")
    config, epoch = NodeConfig.load(argv[0]), int(argv[1])
    board = ApplyBoard([member.id for member in config.members])
    board.open(f"{metrics.directory(config.run_dir)}/apply")
    try:
        engine = RocksEngine(FilePath(config.store_dir))
    except OSError as error:
        return process.fatal(exit_for(error), f"cannot open the store in {config.data_dir}: {error}")
    keyspace = Keyspace(engine)
    try:
        link = ApplyLink(zmq.Context(), config, board)
    except OSError as error:
        return process.fatal(Exit.USAGE, str(error))
    exporter = Exporter(config.store_dir, link.wake_on)
    applyd = Applyd(
        keyspace,
        link,
        Node(config),
        board,
        epoch=epoch,
        limits=Limits(config.max_txn_ops, config.max_request_bytes),
        quota_bytes=config.quota_backend_bytes,
        election_ticks=config.election_ms // config.heartbeat_ms,
        timeout_ticks=(5000 + 2 * config.election_ms) // config.heartbeat_ms,
        lease_seconds_min=-(-3 * config.election_ms // 2000),
        disk_free_bytes=lambda: _free_bytes(config.store_dir),
        export=exporter.start,
    )
    process.settle()
    try:
        while not process.stopping:
            link.wait(idle=applyd.idle, stuck=applyd.stuck)
            applyd.turn()
            exporter.bury()
    except Superseded as superseded:
        return process.fatal(1, str(superseded))
    except OSError as error:
        return process.fatal(exit_for(error), f"writing the store in {config.data_dir} failed: {error}")
    engine.close()
    return 0
