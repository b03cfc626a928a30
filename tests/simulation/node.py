"""A node: the shipped raft and apply processes as two actors that run their `turn()`, die, sleep and come back.

              frames             internal frames            batches
    network ─────────▶ RaftActor ◀─────────────▶ ApplyActor ◀───────▶ clients
                       core, Disk    local pipe    keyspace, LossyEngine ──▶ changes (what watch would get)

Something arrives, the process wakes a moment later and takes one turn; what arrived meanwhile is taken together. A
process that is paused takes nothing and finds everything when it goes on, with one tick for all the time it slept. A
killed one loses its memory; its disk and its store come back as disk.py and storage.memory have it.

The local pipe is in order and loses nothing while both ends live. When an end dies, what it had not read is gone, and
of what was on the way any first part may have arrived. What apply says while raft is down waits for the next raft, as
in a ZeroMQ socket that reconnects.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cluster import internal
from cluster.applyd import Applyd
from cluster.config import NodeConfig
from cluster.internal import Attached, Changes, Committed, Floor, Progress, Tick, WatchAck, WatchAttach, WatchAttached
from cluster.links import ClientFrame, frames_of
from cluster.metrics import ApplyBoard, RaftBoard
from cluster.node import Node as Identity
from cluster.raft import message as peer
from cluster.raft.core import Config, Raft
from cluster.raft.log import Log
from cluster.raftd import Raftd
from storage.entry import Entry
from storage.keyspace import Change, Keyspace
from storage.memory import LossyEngine
from storage.requests import Limits
from tests.simulation.disk import Disk, SimWal
from tests.simulation.network import Network
from tests.simulation.world import MILLISECOND, World

TICK = 100 * MILLISECOND
ELECTION_TICKS = 10


class Killed(BaseException):
    """A failpoint struck: the process is gone in the middle of its turn."""


Parcel = tuple[bytes, bytes]
"""A sender's name and what it says."""


class Store(LossyEngine):
    """Asked for its size at every tick: counts keys instead of bytes."""

    def size_bytes(self) -> int:
        return 100 * len(self._map)


class Pipe:
    """One direction of a conversation within a node."""

    def __init__(self, world: World, arrive: Callable[[bytes, bytes], None]) -> None:
        self.world, self.arrive = world, arrive
        self._flying: deque[Parcel] = deque()
        self._last = 0
        self._breaks = 0

    def send(self, source: bytes, frame: bytes) -> None:
        world, breaks = self.world, self._breaks
        self._flying.append((source, frame))
        self._last = max(self._last, world.now + world.between(20, 200))
        world.after(self._last - world.now, lambda: self._land(breaks))

    def _land(self, breaks: int) -> None:
        if breaks == self._breaks:
            self.arrive(*self._flying.popleft())

    def break_off(self) -> tuple[list[Parcel], list[Parcel]]:
        """An end died: what was on the way, as a first part and the rest. None of it will land by itself."""
        flying = list(self._flying)
        self._flying.clear()
        self._breaks += 1
        keep = self.world.rng.randint(0, len(flying))
        return flying[:keep], flying[keep:]


@dataclass
class Actor:
    """A process as the operating system sees it."""

    world: World
    name: str
    on_turn: Callable[[], None]
    alive: bool = False
    paused: bool = False
    runs: int = 0
    """How often it was started: its epoch, and what tells an event of a dead run from one of this."""
    tick_us: int = TICK
    tick_due: bool = False
    inbox: deque[tuple[bytes, object]] = field(default_factory=deque)
    _awake: bool = False

    def start(self) -> None:
        self.alive, self.paused, self._awake, self.tick_due = True, False, False, False
        self.runs += 1
        self.inbox.clear()
        self._schedule_tick(self.runs)
        self.wake()

    def stop(self) -> None:
        self.alive = False
        self.inbox.clear()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def receive(self, source: bytes, frame: object) -> None:
        if self.alive:
            self.inbox.append((source, frame))
            self.wake()

    def wake(self) -> None:
        if self.alive and not self._awake:
            self._awake = True
            run = self.runs
            self.world.after(self.world.between(10, self.world.wake_max), lambda: self._turn(run))

    def _turn(self, run: int) -> None:
        if run != self.runs or not self.alive:
            return
        self._awake = False
        if not self.paused:
            self.on_turn()

    def _schedule_tick(self, run: int) -> None:
        if run == self.runs and self.alive:
            self.world.after(self.tick_us, lambda: self._tick(run))

    def _tick(self, run: int) -> None:
        if run == self.runs and self.alive:
            self.tick_due = True
            self.wake()
            self._schedule_tick(run)

    def take_tick(self) -> bool:
        due, self.tick_due = self.tick_due, False
        return due


class RaftLink:
    """cluster.raftd.Link over the simulated network and the local pipe."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._attached = self._stranger = b""

    def receive(self) -> Iterator[object]:
        node, actor = self.node, self.node.raft
        inbox = actor.inbox
        while inbox:
            source, frame = inbox.popleft()
            assert isinstance(frame, bytes)
            node.world.saw(node.id, frame)
            if source:
                self._stranger = source
                yield internal.decode(frame)
            elif frame[0] == 0:
                yield Floor(int.from_bytes(frame[1:9], "little"), int.from_bytes(frame[9:], "little"))
            else:
                yield peer.decode(frame)
        if actor.take_tick():
            yield Tick()

    def send(self, messages: Sequence[peer.Message]) -> None:
        node = self.node
        for message in messages:
            node.watchman.said(node, message)
            node.network.send(node.id, message.to, peer.encode(message))

    def send_floor(self, index: int) -> None:
        node = self.node
        frame = b"\0" + node.id.to_bytes(8, "little") + index.to_bytes(8, "little")
        for other in node.members:
            if other != node.id:
                node.network.send(node.id, other, frame)

    def to_apply(self, message: internal.Message) -> None:
        if isinstance(message, Committed):
            self.node.watchman.fed(self.node, message.entries)
        self.node.raft_to_apply(self._attached, internal.encode(message))

    def to_stranger(self, message: internal.Message) -> None:
        if isinstance(message, Attached):
            self._attached = self._stranger
        self.node.raft_to_apply(self._stranger, internal.encode(message))


class ApplyLink:
    """cluster.applyd.Link over the local pipe and the clients' connections. It is the watch process, too."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._watch_session = 0

    def receive(self) -> Iterator[object]:
        node, actor = self.node, self.node.apply
        inbox, clients = actor.inbox, []
        while inbox:
            source, frame = inbox.popleft()
            if isinstance(frame, bytes):
                node.world.saw(-node.id, frame)
                if source:
                    clients.append(ClientFrame(source, frame))
                else:
                    yield internal.decode(frame)
            else:
                yield frame
        yield from clients
        if actor.take_tick():
            yield Tick()

    def to_raft(self, message: internal.Message) -> None:
        self.node.apply_to_raft(internal.encode(message))

    def to_watch(self, message: internal.Message) -> None:
        """The watch process is one that has always read everything at once."""
        decoded = internal.decode(internal.encode(message))
        if isinstance(decoded, WatchAttached):
            self._watch_session = decoded.session
        elif isinstance(decoded, Changes):
            assert decoded.session == self._watch_session
            self.node.watchman.changed(self.node, decoded.changes, decoded.revision)
        elif isinstance(decoded, Progress):
            self.node.apply.receive(b"", WatchAck(decoded.session, decoded.sequence))

    def reply(self, identity: bytes, records: Sequence[bytes]) -> None:
        for frame, _ in frames_of(records):
            self.node.reply(identity, frame)


class Watchman:
    """Who looks on and may object: tests.simulation.safety. This one objects to nothing."""

    def said(self, node: Node, message: peer.Message) -> None: ...
    def written(self, node: Node, entries: Sequence[Entry], before: int) -> None: ...
    def fed(self, node: Node, entries: Sequence[Entry]) -> None: ...
    def opened(self, node: Node) -> None: ...
    def raft_turned(self, node: Node) -> None: ...
    def apply_turned(self, node: Node) -> None: ...
    def changed(self, node: Node, changes: Sequence[Change], revision: int) -> None: ...
    def last_look(self, node: Node) -> None: ...


@dataclass(slots=True)
class Shells:
    """The classes that run: the shipped ones, or mutants of them."""

    raft: type[Raft] = Raft
    log: type[Log] = Log
    wal: type[SimWal] = SimWal
    raftd: type[Raftd] = Raftd
    applyd: type[Applyd] = Applyd
    keyspace: type[Keyspace] = Keyspace


class Node:
    """One member. `supervisor` decides when what died comes back."""

    def __init__(
        self,
        world: World,
        config: NodeConfig,
        network: Network,
        watchman: Watchman,
        shells: Shells,
        *,
        memory_bytes_max: int,
        append_bytes_max: int,
        uncommitted_bytes_max: int,
        timeout_ticks: int,
        restart: Callable[[Node, Actor], None],
        reply: Callable[[bytes, bytes], None],
    ) -> None:
        self.world, self.config, self.network, self.watchman, self.shells = world, config, network, watchman, shells
        self.id = config.member_id
        self.members = [member.id for member in config.members]
        self._memory_bytes_max, self._timeout_ticks = memory_bytes_max, timeout_ticks
        self._core_config = Config(
            id=self.id,
            voters=tuple(self.members),
            election_ticks=ELECTION_TICKS,
            append_bytes_max=append_bytes_max,
            uncommitted_bytes_max=uncommitted_bytes_max,
        )
        self._restart, self.reply = restart, reply
        self.disk = Disk(world, shells.wal)
        self.engine = Store()
        self.flush_min, self.flush_max = 5 * MILLISECOND, 200 * MILLISECOND
        self._flushing = False
        self.raft = Actor(world, f"raft {self.id}", self._raft_turn)
        self.apply = Actor(world, f"apply {self.id}", self._apply_turn)
        self.raftd: Raftd | None = None
        self.applyd: Applyd | None = None
        self._down = Pipe(world, lambda _, frame: self.apply.receive(b"", frame))
        self._up = Pipe(world, self._from_apply)
        self._backlog: list[Parcel] = []
        self.strike: dict[str, int] = {}
        """Failpoints that are armed: how many hits are still left before it strikes."""

    @property
    def term(self) -> int:
        """The term that its raft process is in; 0 while that is dead."""
        return self.raftd.core.term if self.raftd is not None else 0

    # ---- starting

    def start_raft(self) -> None:
        actor = self.raft
        assert not actor.alive
        wal, found = self.disk.open(actor.wake, self._writes)
        epoch = actor.runs + 1
        log = self.shells.log(
            wal,
            prev=found.prev,
            terms=found.terms,
            last_index=found.last_index,
            memory_bytes_max=self._memory_bytes_max,
        )
        chance = random.Random(f"{self.world.seed}/{self.id}/{epoch}")
        core = self.shells.raft(self._core_config, log, found.hard_state, chance)
        board = RaftBoard([id for id in self.members if id != self.id])
        board.open(None)
        link = RaftLink(self)
        self.raftd = self.shells.raftd(core, wal, link, board, election_ticks=ELECTION_TICKS, session=epoch << 32)
        actor.start()
        self.world.tell(lambda: f"{actor.name} starts at {found.hard_state} log {found.prev}..{found.last_index}")
        backlog, self._backlog = self._backlog, []
        for parcel in backlog:
            self._up.send(*parcel)

    def start_apply(self) -> None:
        actor = self.apply
        assert not actor.alive
        epoch = actor.runs + 1
        board = ApplyBoard()
        board.open(None)
        keyspace = self.shells.keyspace(self.engine)
        self.applyd = self.shells.applyd(
            keyspace,
            ApplyLink(self),
            Identity(self.config),
            board,
            epoch=epoch,
            limits=Limits(self.config.max_txn_ops, self.config.max_request_bytes),
            quota_bytes=self.config.quota_backend_bytes,
            election_ticks=ELECTION_TICKS,
            timeout_ticks=self._timeout_ticks,
        )
        self._flushing = False
        self.watchman.opened(self)
        actor.start()
        actor.receive(b"", WatchAttach(epoch))
        self.world.tell(lambda: f"{actor.name} starts at applied {keyspace.applied} revision {keyspace.revision}")

    # ---- dying

    def kill(self, actor: Actor, *, power: bool = False) -> None:
        """SIGKILL, or the machine's power. Does nothing to a dead process. The restart is up to the supervisor."""
        if not actor.alive:
            return
        self.world.tell(lambda: f"{actor.name} is killed{' by power loss' * power}")
        actor.stop()
        if actor is self.raft:
            self.raftd = None
            self.disk.crash(power=power)
            for _, frame in self._down.break_off()[0]:
                self.apply.receive(b"", frame)
            self._backlog = self._up.break_off()[1]
        else:
            self.watchman.last_look(self)
            self.applyd = None
            keep = self._surviving_batches()
            self.world.seen["store lost batches"] += keep < self.engine.unflushed
            self.engine.crash(keep)
            self._backlog.clear()
            self._down.break_off()
            for source, frame in self._up.break_off()[0]:
                self.raft.receive(source, frame)
        self._restart(self, actor)

    def _surviving_batches(self) -> int:
        tail = self.engine.unflushed
        return self.world.rng.choice((0, 0, tail, self.world.rng.randint(0, tail)))

    def hit(self, name: str) -> None:
        left = self.strike.get(name)
        if left is None:
            return
        if left:
            self.strike[name] = left - 1
            return
        del self.strike[name]
        raise Killed(name)

    # ---- turns

    def _raft_turn(self) -> None:
        shell = self.raftd
        assert shell is not None
        self.world.turning = self
        try:
            shell.turn()
        except Killed as point:
            self._struck(self.raft, str(point))
            return
        except OSError as error:  # the process ends with an exit code, and is started anew
            self._struck(self.raft, str(error))
            return
        self.watchman.raft_turned(self)
        if not shell.idle:
            self.raft.wake()

    def _apply_turn(self) -> None:
        shell = self.applyd
        assert shell is not None
        self.world.turning = self
        try:
            shell.turn()
        except Killed as point:
            self._struck(self.apply, str(point))
            return
        self.watchman.apply_turned(self)
        if self.engine.flushing and not self._flushing:
            self._flushing = True
            run = self.apply.runs
            self.world.after(self.world.between(self.flush_min, self.flush_max), lambda: self._flushed(run))
        if not shell.idle:
            self.apply.wake()

    def _writes(self, entries: Sequence[Entry]) -> None:
        assert self.raftd is not None
        before = entries[0].index - 1
        self.watchman.written(self, entries, self.raftd.core.log.term(before))

    def _struck(self, actor: Actor, why: str) -> None:
        self.world.tell(lambda: f"{actor.name} ends: {why}")
        self.kill(actor, power=self.world.happens(0.3))

    def _flushed(self, run: int) -> None:
        if run != self.apply.runs or not self.apply.alive:
            return
        self.engine.finish_flush()
        self._flushing = False
        if self.engine.flushing:
            self._flushing = True
            self.world.after(self.world.between(self.flush_min, self.flush_max), lambda: self._flushed(run))

    # ---- the local pipe

    def raft_to_apply(self, to: bytes, frame: bytes) -> None:
        if self.apply.alive and to == self._apply_name():
            self._down.send(b"", frame)

    def apply_to_raft(self, frame: bytes) -> None:
        self._up.send(self._apply_name(), frame)

    def _apply_name(self) -> bytes:
        return b"apply %d" % self.apply.runs

    def _from_apply(self, source: bytes, frame: bytes) -> None:
        if self.raft.alive:
            self.raft.receive(source, frame)
        else:
            self._backlog.append((source, frame))
