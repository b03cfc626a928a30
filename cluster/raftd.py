"""The raft process: the consensus core between the journal, the peers and this node's apply process.

    peers ──▶ ┐                 ┌─▶ peers      what claims nothing about our disk, at once
    apply ──▶ ┤  Raft (pure)    ├─▶ journal    entries and hard state; its thread syncs, an eventfd tells when
    tick  ──▶ ┤                 ├─▶ peers      votes and acknowledgements: only after the journal said durable
    disk  ──▶ ┘                 └─▶ apply      committed entries, once they are durable here too; read indexes

`turn()` is one pass, and its order is the safety argument:
  1. Take in what arrived, the journal's completions last, so that what they allow leaves in this very turn.
  2. Feed apply with entries that are both committed and durable here: a store that has flushed an entry must never be
     ahead of the log it came from.
  3. Send what may go now. The leader's appends may: they promise nothing about our own disk.
  4. Hand to the journal what must be kept. The messages that depend on it wait in `_syncing` beside its position, and
     leave only when the journal says that this position is durable. A crash anywhere before that leaves nobody
     believing something that we could forget.
Nothing is retried after an error of the journal: the process ends (Exit.DISK_FAILED), because after a failed fsync
nothing is known about the page cache. A full disk is refused before anything was accepted (Exit.NO_SPACE) and may be
tried again.

Who still needs an old entry: members tell each other every few ticks up to where their own store is durable (Floor).
What is under everybody's floor will never be asked for again, and only that is released. A member that is down for
long thus holds the log back on the others, until snapshots can bring it up to date.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import zmq

from cluster import metrics
from cluster.config import NodeConfig
from cluster.exits import Exit
from cluster.internal import (
    Answer,
    Answered,
    Applied,
    Ask,
    Asked,
    Attach,
    Attached,
    Committed,
    Fenced,
    Floor,
    Message,
    MoveLeader,
    PeerAnswer,
    PeerAsk,
    Propose,
    ReadFailed,
    ReadIndex,
    ReadReady,
    Rejected,
    Status,
    Tick,
)
from cluster.links import RaftLink
from cluster.metrics import RaftBoard
from cluster.process import Process, exit_for
from cluster.raft import message as peer
from cluster.raft.core import Append, Config, ProposalDropped, Raft, Role
from cluster.raft.log import Log
from storage.entry import Entry, HardState
from storage.failpoint import hit
from storage.journal import Damaged, Journal, JournalFailed, JournalStats, NoSpace

WINDOW_BYTES = 16 << 20
"""Most bytes of entries on their way to apply. Past it apply is fed again only when it has caught up."""
SLICE_BYTES = 1 << 20
FLOOR_TICKS = 10
ROOM_BYTES_MIN = 12 << 20
"""A leader takes no proposal when the journal has less room than this, which is more than the largest entry."""


Input = Tick | Floor | PeerAsk | PeerAnswer | peer.Message | Message


class Wal(Protocol):
    """What the raft process needs of storage.journal.Journal."""

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> int: ...
    def durable(self) -> int: ...
    def release(self, index: int) -> None: ...
    def room(self) -> int: ...
    def stats(self) -> JournalStats: ...


class Link(Protocol):
    """The raft process's ends of its conversations."""

    def receive(self) -> Iterable[Input]:
        """All that has arrived. At most one Tick a call, and that one last: a process that slept does not count the
        time
        it slept as time in which nobody spoke."""
        ...

    @property
    def disk_spoke(self) -> bool:
        """The journal's descriptor was readable. It stays so until the journal is asked what is durable."""
        ...

    def send(self, messages: Sequence[peer.Message]) -> None:
        """To the peers named in them. May lose any of them."""
        ...

    def send_floor(self, index: int) -> None: ...

    def send_ask(self, to: int, number: int, body: bytes) -> None:
        """A question of this node's apply process for the one of `to`. May get lost, as its answer may."""
        ...

    def send_answer(self, to: int, number: int, body: bytes) -> None: ...

    def to_apply(self, message: Message) -> None:
        """To the apply process that attached last."""
        ...

    def to_stranger(self, message: Message) -> None:
        """To whoever sent the message being handled, attached or not."""
        ...


class LogLost(Exception):
    """The store has applied entries that the log doesn't have (or no longer has the next ones of)."""


class Raftd:
    """The state of the raft process beside its core: what is under way to the disk, and how far apply has been fed."""

    def __init__(
        self,
        core: Raft,
        wal: Wal,
        link: Link,
        board: RaftBoard,
        *,
        election_ticks: int,
        room_bytes_min: int = ROOM_BYTES_MIN,
        session: int = 0,
    ) -> None:
        self.core, self.wal, self.link, self.board = core, wal, link, board
        self._members = sorted(core.config.voters)
        self._election_ticks = election_ticks
        self._room_bytes_min = room_bytes_min
        self._syncing: deque[tuple[int, Append]] = deque()
        # The conversation with apply. Sessions only have to differ from those before, also from those of the process
        # before this one: `session` comes from the epoch.
        self._session = session
        self._attached = False
        self._epoch = 0
        self._fed = 0  # last entry sent in this session
        self._feeding: deque[tuple[int, int]] = deque()  # (last index, bytes) of slices not yet applied
        self._feeding_bytes = 0
        self._silent_ticks = 0
        self._status = Status(0, 0, 0, 0)
        self._heard: dict[int, int] = {}  # when each peer last spoke, in ticks
        self._wal_stats = wal.stats()
        self._floors = dict.fromkeys(self._members, 0)
        self._released = 0
        self._ticks = 0

    def turn(self) -> None:
        """One pass. Raises OSError from the journal: the process must end, see the module."""
        for item in self.link.receive():
            if isinstance(item, peer.Message):
                self._heard[item.sender] = self._ticks
                self.core.step(item)
            else:
                self._handle(item)
        self._collect_syncs()
        if self._attached:
            self._feed()  # first of all: a client may be waiting for it
        ready = self.core.ready()
        if ready.messages:
            hit("raftBeforeSend")
            self.link.send(ready.messages)
        if ready.append is not None:
            hit("raftBeforeSave")
            self.board.wal_batch_entries.observe(len(ready.append.entries))
            self._syncing.append((self.wal.append(ready.append.hard_state, ready.append.entries), ready.append))
            hit("raftAfterSave")
        if self._attached:
            for context, index in ready.reads:
                self.link.to_apply(ReadReady(self._session, context, index))
            for context in ready.failed_reads:
                self.board.read_indexes_failed.add()
                self.link.to_apply(ReadFailed(self._session, context))
            for number, reason in ready.rejected:
                self.board.proposals_failed.add()
                self.link.to_apply(Rejected(self._session, number, reason))
            self._tell_status()

    def _collect_syncs(self) -> None:
        if not self._syncing and not self.link.disk_spoke:
            return
        durable = self.wal.durable()
        while self._syncing and self._syncing[0][0] <= durable:
            hit("raftBeforeAcknowledge")
            self.core.appended(self._syncing.popleft()[1])

    # ---- inputs

    def _handle(self, item: Tick | Floor | PeerAsk | PeerAnswer | Message) -> None:
        match item:
            case Propose(session, number, data):
                if self._known(session):
                    self._propose(number, data)
            case ReadIndex(session, context):
                if self._known(session):
                    self.core.read_index(context)
            case Applied(session, index, durable):
                if self._known(session):
                    self._applied(index, durable)
            case Tick():
                self._tick()
            case Floor(sender, index):
                self._floor(sender, index)
            case Attach(epoch, applied):
                self._attach(epoch, applied)
            case Ask(session, number, body):
                if self._known(session) and self.core.leader not in (0, self.core.config.id):
                    self.link.send_ask(self.core.leader, number, body)
            case Answer(session, member, number, body):
                if self._known(session) and member in self._floors:
                    self.link.send_answer(member, number, body)
            case PeerAsk(sender, number, body):
                if self._attached:
                    self.link.to_apply(Asked(self._session, sender, number, body))
            case PeerAnswer(_, number, body):
                if self._attached:
                    self.link.to_apply(Answered(self._session, number, body))
            case MoveLeader(session, target):
                if self._known(session) and self.core.role is Role.LEADER and target in self._members:
                    self.core.transfer_leadership(target)
            case _:
                raise AssertionError(f"apply said {item!r}")

    def _known(self, session: int) -> bool:
        if self._attached and session == self._session:
            return True
        self.link.to_stranger(Fenced(self._epoch))
        return False

    def _attach(self, epoch: int, applied: int) -> None:
        if epoch < self._epoch:  # an old apply process that woke up: its successor owns the store
            self.link.to_stranger(Fenced(self._epoch))
            return
        log = self.core.log
        if not log.first_index - 1 <= applied <= log.last_index:
            raise LogLost(
                f"the store has applied up to entry {applied}, the log holds {log.first_index} to {log.last_index}: "
                "one of the two was replaced or lost. Remove this member's data directory and let it join anew"
            )
        self._session += 1
        self._epoch, self._attached, self._silent_ticks = epoch, True, 0
        self._fed = applied
        self._feeding.clear()
        self._feeding_bytes = 0
        self.core.eligible = True
        self.link.to_stranger(Attached(self._session))
        self._status = Status(self._session, 0, 0, 0)

    def _propose(self, number: int, data: bytes) -> None:
        if self.core.role is Role.LEADER and self.wal.room() < self._room_bytes_min:
            self.link.to_apply(Rejected(self._session, number, "no space"))
            return
        try:
            self.core.propose(data, number)
        except ProposalDropped as dropped:
            self.link.to_apply(Rejected(self._session, number, str(dropped)))

    def _applied(self, index: int, durable: int) -> None:
        self._silent_ticks = 0
        while self._feeding and self._feeding[0][0] <= index:
            self._feeding_bytes -= self._feeding.popleft()[1]
        if durable > self._floors[self.core.config.id]:
            self._floor(self.core.config.id, durable)

    def _floor(self, sender: int, index: int) -> None:
        if index <= self._floors.get(sender, index):
            return
        self._floors[sender] = index
        self._release()

    def _release(self) -> None:
        """After a restart the commit index may be behind the floors for a while: what is above it waits."""
        everywhere = min(*self._floors.values(), self.core.applicable)
        if everywhere > self._released:
            self._released = everywhere
            self.core.release(everywhere)
            self.wal.release(everywhere)

    def _tick(self) -> None:
        self._ticks += 1
        self._silent_ticks += 1
        # A node whose apply doesn't run can't answer anybody. It goes on voting and replicating, but must not lead.
        self.core.eligible = self._attached and self._silent_ticks <= self._election_ticks
        self.core.tick()
        if self.core.role is Role.LEADER and not self.core.eligible:
            successor = self.core.best_successor()
            if successor:
                self.core.transfer_leadership(successor)
        if self._ticks % FLOOR_TICKS == 0:
            self.link.send_floor(self._floors[self.core.config.id])
            self._release()
        if self._attached:
            self._tell_status(always=True)
        self._count()

    def _count(self) -> None:
        """What changes too often to be told each time."""
        core, board, before = self.core, self.board, self._wal_stats
        board.has_leader.set(core.leader != 0)
        board.is_leader.set(core.role is Role.LEADER)
        board.term.set(core.term)
        board.proposals_committed.set(core.commit)
        for peer_id, heard in self._heard.items():
            board.peer_active[peer_id].set(self._ticks - heard <= self._election_ticks)
        now = self._wal_stats = self.wal.stats()
        board.wal_write_bytes.set(now.bytes)
        seconds = now.sync_seconds - before.sync_seconds
        for i, count in enumerate(now.sync_buckets):
            fresh = count - before.sync_buckets[i]
            if fresh:  # within 2.4 %: the journal's buckets end at powers of two, these at multiples of a millisecond
                board.wal_fsync_seconds.add(2**i / 1.024e6, fresh, seconds)
                seconds = 0.0

    # ---- outputs to apply

    def _feed(self) -> None:
        while self._may_feed():
            entries = self.core.log.slice(self._fed + 1, self.core.applicable, SLICE_BYTES)
            self._fed = entries[-1].index
            size = sum(len(entry.data) for entry in entries)
            self._feeding.append((self._fed, size))
            self._feeding_bytes += size
            self.link.to_apply(Committed(self._session, entries))

    def _may_feed(self) -> bool:
        return self._attached and self._fed < self.core.applicable and self._feeding_bytes < WINDOW_BYTES

    def _tell_status(self, always: bool = False) -> None:
        core, before = self.core, self._status
        if always or core.term != before.term or core.leader != before.leader:
            if core.leader and core.leader != before.leader:
                self.board.leader_changes.add()
            self._status = Status(self._session, core.term, core.leader, core.commit)
            self.link.to_apply(self._status)

    @property
    def idle(self) -> bool:
        """Nothing to do before something arrives."""
        return not self.core.has_ready and not self._may_feed()


def main(argv: Sequence[str]) -> int:
    """Of (NODE_JSON, EPOCH), as cluster/part.py calls it. Returns the exit code."""
    process = Process("raft")
    node, epoch = NodeConfig.load(argv[0]), int(argv[1])
    voters = tuple(member.id for member in node.members)
    board = metrics.RaftBoard([id for id in voters if id != node.member_id])
    board.open(f"{metrics.directory(node.run_dir)}/raft")
    try:
        journal, found = Journal.open(Path(node.wal_dir), cluster_id=node.cluster_id, member_id=node.member_id)
    except Damaged as damage:
        return process.fatal(Exit.DAMAGED, str(damage))
    except OSError as error:
        return process.fatal(exit_for(error), f"cannot open the log in {node.wal_dir}: {error}")
    election_ticks = node.election_ms // node.heartbeat_ms
    log = Log(journal, prev=found.prev, terms=found.terms, last_index=found.last_index)
    config = Config(id=node.member_id, voters=voters, election_ticks=election_ticks)
    core = Raft(config, log, found.hard_state, random.Random(f"{node.member_id}/{epoch}"))
    try:
        link = RaftLink(zmq.Context(), node, board, journal.fileno())
    except OSError as error:
        return process.fatal(Exit.USAGE, str(error))
    raftd = Raftd(core, journal, link, board, election_ticks=election_ticks, session=epoch << 32)
    process.settle()
    try:
        while not process.stopping:
            link.wait(idle=raftd.idle, disk=core.waits_for_disk)
            raftd.turn()
    except NoSpace as full:
        return process.fatal(Exit.NO_SPACE, f"no space left for the log in {node.wal_dir}: {full}")
    except JournalFailed as failed:
        return process.fatal(Exit.DISK_FAILED, f"writing the log in {node.wal_dir} failed: {failed}")
    except LogLost as lost:
        return process.fatal(Exit.DAMAGED, str(lost))
    journal.close()
    return 0
