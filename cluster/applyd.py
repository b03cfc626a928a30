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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import zmq
from google.protobuf.message import Message as Protobuf

from cluster import metrics
from cluster.admission import Admission
from cluster.callers import AfterSweep, Caller, Confirmation
from cluster.config import NodeConfig
from cluster.exits import Exit
from cluster.exporter import Exporter
from cluster.feed import Feed
from cluster.flushes import Flushes
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
from cluster.longreads import LongReads
from cluster.membercalls import MemberCalls
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
from storage.codec import origin_of
from storage.failpoint import hit
from storage.keyspace import Change, Keyspace, Result, Scan
from storage.requests import Limits
from storage.rocks import RocksEngine

PENDING_BYTES_MAX = 64 << 20
BACKLOG_ENTRIES_MAX = 5000
"""etcd's bound on committed - applied. Past either, new writes get "too many requests" at once."""
REPORT_BYTES = 1 << 20
READS_MAX = 100_000
READS_BYTES_MAX = 64 << 20
FRESH_ELECTIONS = 3
SLOW_SECONDS = 0.1
"""etcd's warning-apply-duration."""


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
        self.session = 0
        """Of the conversation with raft; 0: not attached."""
        self.status = Status(0, 0, 0, 0)
        self.ticks = 0
        self._quota = Quota(self, quota_bytes, disk_free_bytes, timeout_ticks)
        # What is under way.
        self._proposals = Proposals(node.member_id, epoch, self._to_leader, election_ticks)
        self._reads = Reads()
        self._clock = clock
        self._landlord = Landlord(
            self, epoch=epoch, seconds_min=lease_seconds_min, clock=clock, rng=rng or random.Random()
        )
        self._ranges = RangeStreams(self)
        self._outbox = Outbox(link.reply, board.replies_dropped.add, self._ranges.gone)
        self._long = LongReads(self._outbox, self.reply, self._read_due)
        self._snapshots = Snapshots(export, self.answer, epoch=epoch, election_ticks=election_ticks)
        self._sweeping = True
        self._unreported = 0  # bytes applied since raft was last told
        self._physical: list[tuple[Caller, int]] = []
        self._flushes = Flushes(keyspace, lambda: self._quota.disk_free_bytes)
        self._members = MemberCalls(self, self._quota)
        local: dict[int, Callable[[Caller, bytes], None]] = {
            Method.HELLO: self._members.hello,
            Method.STATUS: self._members.status,
            Method.MEMBER_LIST: self._members.member_list,
            Method.HASH: self._hash,
            Method.HASH_KV: self._hash,
            Method.SNAPSHOT: self._snapshot,
            Method.MOVE_LEADER: self._members.move_leader,
            Method.LEASE_KEEP_ALIVE: self._landlord.keep_alive,
            Method.LEASE_TIME_TO_LIVE: self._landlord.time_to_live,
            Method.LEASE_LEASES: self._lease_list,
        }
        self._admission = Admission(self, limits, self._quota, local)

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
            self._admission.take(client)
        if frames:
            self.board.batch_requests.observe(len(frames))
        self._propose()  # before the ends of leases, which nobody waits for
        self._landlord.turn()
        self._ask_reads()
        self._answer_ripe()
        self._background()
        self._outbox.flush()

    @property
    def idle(self) -> bool:
        """Nothing to do before something arrives."""
        return not (self._long.busy or self._sweeping or self._outbox.busy or self._landlord.busy or self._ranges.busy)

    @property
    def soon(self) -> bool:
        """There will be something to do in a moment, and nothing will tell us when: a client's queue is full, or leases
        end with rests in between."""
        return self._outbox.stuck or self._landlord.rests

    def _handle(self, item: Tick | Message) -> None:
        match item:
            case Tick():
                self._tick()
            case Status():
                self._status_changed(item)
            case ReadReady(session, context, index):
                if session == self.session:
                    self._reads.ready(context, index)
            case ReadFailed(session, context):
                if session == self.session:
                    self._reads.failed(context)
            case Rejected(session, number, reason):
                if session == self.session:
                    self._rejected(number, reason)
            case Asked(session, member, number, body):
                if session == self.session:
                    self._landlord.calls.asked(member, number, body)
            case Answered(session, number, body):
                if session == self.session:
                    self._landlord.calls.answered(number, body)
            case Attached(session):
                self._attached(session)
            case Fenced(epoch):
                if epoch > self.epoch:
                    raise Superseded(f"apply process {self.epoch} was replaced by {epoch}")
                if self.session:
                    self.session = 0
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
        if self.session:
            return  # the answer to an older asking: its entries begin where this store was then. Raft will fence us
        self.session = session
        self.status = Status(session, 0, 0, 0)
        self._reads.ask_again()
        self._landlord.calls.tick(None)

    def _status_changed(self, status: Status) -> None:
        if status.session != self.session:
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
        if not self.session or not self.status.leader:
            return False
        self.link.to_raft(Propose(self.session, number, data))
        return True

    # ---- committed entries

    def _apply(self, committed: list[Committed]) -> None:
        """Entries onto the store in one batch, then the answers of our own and the changes for watchers."""
        began_turn = self._clock()
        turn = self.keyspace.begin(prev=self.feed.wants_prev)
        own: list[tuple[int, list[Result]]] = []
        for message in committed:
            if message.session != self.session:
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
        took = time.perf_counter() - began
        self._landlord.changed(turn.leases, own[-1][0] if own else 0, self._clock() - began_turn)
        puts = self._count(len(committed), changes, took)
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
        if self._unreported > REPORT_BYTES and self.session:
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
        self.link.to_raft(Applied(self.session, self.keyspace.applied[0], self._flushes.durable))

    # ---- requests

    def begin_read(self, caller: Caller, payload: bytes, *, serializable: bool) -> None:
        if serializable and not self._reads.fresh:
            self.read(caller, payload)
        elif self._reads.waiting >= READS_MAX or self._reads.bytes + len(payload) > READS_BYTES_MAX:
            raise errors.TooManyRequests
        else:
            self._reads.add(Read(caller, payload, self.ticks), serializable=serializable)

    def await_read(self, caller: Caller, payload: bytes) -> None:
        self._reads.add(Read(caller, payload, self.ticks))

    def stream_ranges(self, caller: Caller, kind: int, payload: bytes) -> None:
        self._ranges.take(caller, kind, payload)

    def settled(self, grant: bytes) -> bytes:
        return self._landlord.settled(grant)

    @property
    def overloaded(self) -> bool:
        backlog = self.status.commit - self.keyspace.applied[0]
        return self._proposals.bytes > PENDING_BYTES_MAX or backlog > BACKLOG_ENTRIES_MAX

    # ---- writes

    def _propose(self) -> None:
        """All writes of this wake-up."""
        for batch, callers in self._admission.take_entries():
            self._proposals.add(batch, callers, self.ticks)

    def propose(self, method: int, request: Protobuf, *, once: bool = False) -> int:
        """An entry that no client waits for; returns its number (cluster.proposals)."""
        record = wire.encode(method, Kind.CALL, 0, 0, request.SerializeToString())
        return self._proposals.add(record, [Caller(b"", 0, method)], self.ticks, once=once)

    # ---- reads

    def confirm(self, caller: Caller) -> None:
        """Have it confirmed that this member leads, with the reads of this turn: they share one read index."""
        self.await_read(caller, b"")

    def _ask_reads(self) -> None:
        """One read index for all linearizable reads of this wake-up; without a leader they wait for one."""
        if self.session and self.status.leader:
            context = self._reads.ask(self.ticks)
            if context is not None:
                self.link.to_raft(ReadIndex(self.session, context))

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
            self._members.list_members(caller)
            return
        if caller.method == Method.SNAPSHOT:
            self._snapshot_step(caller, payload)
            return
        if caller.method == Method.RANGE_STREAM:
            self._ranges.begin(caller)
            return
        if self._long.must_wait(caller):
            if not self._long.wait(caller, payload):
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
            self._long.begin(caller, result)
        else:
            self.reply(caller, result)

    def _read_due(self, caller: Caller, payload: bytes) -> None:
        self.read(caller, payload, due=True)

    # ---- answers

    def reply(self, caller: Caller, result: Result) -> None:
        if result.status:
            payload = result.body
        else:
            payload = self.node.header(result.revision, self.status.term) + result.body
        self.answer(caller, result.status, payload)

    def fail(self, caller: Caller, error: errors.KvorumError) -> None:
        if caller.method == Method.RANGE_STREAM:
            self._ranges.drop(caller)
            record = wire.encode(caller.method, Kind.STREAM_CLOSE, error.code, caller.id, error.text.encode())
            self._outbox.put(caller.identity, record)
        else:
            self.answer(caller, error.code, error.text.encode())

    def answer(self, caller: Caller, status: int, payload: bytes) -> None:
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

    def _lease_list(self, caller: Caller, payload: bytes) -> None:
        parsed(pb.LeaseLeasesRequest, payload)
        self.await_read(caller, payload)

    def _hash(self, caller: Caller, payload: bytes) -> None:
        """Of what is here: whoever compares members doesn't want the leader's word for it."""
        parsed(wire.METHODS[Method(caller.method)].request, payload)
        self.begin_read(caller, payload, serializable=True)

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
            if not self._flushes.possible:
                raise NO_ROOM
            index = self.keyspace.applied[0]
            self._snapshots.begin(caller, index)
        except errors.KvorumError as error:
            self.fail(caller, error)
        else:
            if index > self._flushes.durable:
                self._flushes.begin(self.ticks)

    # ---- time

    def _tick(self) -> None:
        self.ticks += 1
        if self.session:
            self._report()
        else:
            self._attach()
        self._measure()
        self._expire()
        self._landlord.tick(self.ticks - self._timeout_ticks)
        self._proposals.resend(self.ticks, all=False)
        if self.ticks > FRESH_ELECTIONS * self.election_ticks:
            self._reads.begin_anyway()
        self._members.tick()
        self._flushes.tick(self.ticks)
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
        board.durable_index.set(self._flushes.durable)
        board.revision.set(keyspace.revision)
        board.compact_revision.set(keyspace.compacted)
        board.range_streams.set(len(self._ranges))
        for alarm in board.alarms:
            board.alarms[alarm].set(float(alarm in keyspace.alarms.raised))
        self._quota.tick()
        if not self._flushes.possible:
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

    # ---- what takes long

    def _background(self) -> None:
        for caller, payload in self._outbox.due():
            self.read(caller, payload, due=True)
        self._long.turn()
        if self._snapshots:
            self._snapshots.turn(self._flushes.durable)
        self._ranges.turn()
        if self._sweeping:
            hit("applyBeforeSweep")
            self._sweeping = self.keyspace.sweep()
            if not self._sweeping:
                for caller, revision in self._physical:
                    self.reply(caller, Result(0, revision, b""))
                self._physical.clear()


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
        engine = RocksEngine(Path(config.store_dir))
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
            link.wait(idle=applyd.idle, soon=applyd.soon)
            applyd.turn()
            exporter.bury()
    except Superseded as superseded:
        return process.fatal(1, str(superseded))
    except OSError as error:
        return process.fatal(exit_for(error), f"writing the store in {config.data_dir} failed: {error}")
    engine.close()
    return 0
