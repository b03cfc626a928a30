"""A node: the shipped raft, apply and watch processes, running their `turn()` on simulated links.

              frames            internal frames              internal frames
    network ─────────▶ raft ◀───────────────────▶ apply ◀───────────────────▶ watch ◀──▶ watching clients
                    core, Disk                  Keyspace, Store ◀──▶ clients    Air ──▶ those who listen

Each dies, sleeps and comes back by itself (pipes.py). What raft comes back to is its disk (disk.py), what apply comes
back to its store: a LossyEngine, which in a crash keeps any first part of what it had not flushed. Raft and apply are
looked at after every turn by a Watchman, and every committed change of a store is told to it in the moment of its
commit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster import internal
from cluster.applyd import Applyd
from cluster.broadcast import TOPIC_BYTES
from cluster.config import NodeConfig
from cluster.internal import Attached, Committed, Floor, Message, PeerAnswer, PeerAsk, Tick
from cluster.links import ClientFrame, Subscription, frames_of
from cluster.metrics import ApplyBoard, RaftBoard, WatchBoard
from cluster.node import Node as Identity
from cluster.raft import message as peer
from cluster.raft.core import Config, Raft
from cluster.raft.log import Log
from cluster.raftd import Raftd
from cluster.watchd import Watchd
from kvorum.watching import WatchCore
from storage.entry import Entry
from storage.keyspace import Change, Keyspace, Turn
from storage.memory import LossyEngine
from storage.requests import Limits
from tests.simulation.air import Air
from tests.simulation.disk import Disk, SimWal
from tests.simulation.network import Network
from tests.simulation.pipes import Actor, Conversation, Killed
from tests.simulation.world import MILLISECOND, SECOND, World

ELECTION_TICKS = 10
RESPONSE_BYTES_MAX = 500
"""Where answers to watchers are cut: small, so that it happens."""


_ASK, _ANSWER = b"\xfe", b"\xff"  # first bytes that no message of the core's has


class RaftLink:
    """cluster.raftd.Link."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._attached = self._stranger = b""

    @property
    def disk_spoke(self) -> bool:
        return self.node.disk.wal is not None and self.node.disk.wal.said

    def receive(self) -> Iterator[object]:
        for port, source, frame in self.node.raft.take():
            if port == "apply":
                self._stranger = source
                yield internal.decode(frame)
            elif frame[0] == 0:
                yield Floor(int.from_bytes(frame[1:9], "little"), int.from_bytes(frame[9:], "little"))
            elif frame[:1] in (_ASK, _ANSWER):
                kind = PeerAsk if frame[:1] == _ASK else PeerAnswer
                sender, number = (int.from_bytes(frame[at : at + 8], "little") for at in (1, 9))
                yield kind(sender, number, frame[17:])
            else:
                yield peer.decode(frame)
        if self.node.raft.take_tick():
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

    def send_ask(self, to: int, number: int, body: bytes) -> None:
        self._send_aside(_ASK, to, number, body)

    def send_answer(self, to: int, number: int, body: bytes) -> None:
        self._send_aside(_ANSWER, to, number, body)

    def _send_aside(self, what: bytes, to: int, number: int, body: bytes) -> None:
        head = what + self.node.id.to_bytes(8, "little") + number.to_bytes(8, "little")
        self.node.network.send(self.node.id, to, head + body)

    def to_apply(self, message: Message) -> None:
        if isinstance(message, Committed):
            self.node.watchman.fed(self.node, message.entries)
        self.node.with_raft.tell(self._attached, internal.encode(message))

    def to_stranger(self, message: Message) -> None:
        if isinstance(message, Attached):
            self._attached = self._stranger
        self.node.with_raft.tell(self._stranger, internal.encode(message))


class ApplyLink:
    """cluster.applyd.Link. As the real one, it takes raft first, then watch, then clients."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._watcher = b""

    def receive(self) -> Iterator[object]:
        parcels = self.node.apply.take()
        for port, _, frame in parcels:
            if port == "raft":
                yield internal.decode(frame)
        for port, source, frame in parcels:
            if port == "watch":
                self._watcher = source
                yield internal.decode(frame)
        for port, source, frame in parcels:
            if port == "clients":
                yield ClientFrame(source, frame)
        if self.node.apply.take_tick():
            yield Tick()

    def to_raft(self, message: Message) -> None:
        self.node.with_raft.ask(internal.encode(message))

    def to_watch(self, message: Message) -> None:
        self.node.with_watch.tell(self._watcher, internal.encode(message))

    def reply(self, identity: bytes, records: Sequence[bytes]) -> None:
        for frame, _ in frames_of(records):
            self.node.reply(identity, frame)


class WatchLink:
    """cluster.watchd.Link."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def receive(self) -> Iterator[object]:
        parcels = self.node.watch.take()
        for port, _, frame in parcels:
            if port == "apply":
                yield internal.decode(frame)
        for port, _, frame in parcels:
            if port == "air":
                yield Subscription(frame[1:], bool(frame[0]))
        for port, source, frame in parcels:
            if port == "clients":
                yield ClientFrame(source, frame)
        if self.node.watch.take_tick():
            yield Tick()

    def to_apply(self, message: Message) -> None:
        self.node.with_watch.ask(internal.encode(message))

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        return self.node.publish(identity, frame)

    def publish(self, frame: bytes) -> None:
        self.node.air.publish(frame)


class Watchman:
    """Who looks on and may object: tests.simulation.safety. This one objects to nothing."""

    def said(self, node: Node, message: peer.Message) -> None: ...
    def written(self, node: Node, entries: Sequence[Entry], before: int) -> None: ...
    def fed(self, node: Node, entries: Sequence[Entry]) -> None: ...
    def opened(self, node: Node) -> None: ...
    def raft_turned(self, node: Node) -> None: ...
    def apply_turned(self, node: Node) -> None: ...
    def changed(self, node: Node, changes: Sequence[Change], revision: int) -> None: ...


@dataclass(slots=True)
class Clock:
    """A member's: monotonic, and from one process of it to the next it begins anywhere. `rate` is how many seconds it
    counts in one; no two need agree."""

    world: World
    rate: float
    since: float

    def __call__(self) -> float:
        return self.since + self.now

    @property
    def now(self) -> float:
        """As a clock on the wall would show it that was set right when the world began."""
        return self.world.now / SECOND * self.rate


@dataclass(slots=True)
class Shells:
    """The classes that run: the shipped ones, or mutants of them."""

    raft: type[Raft] = Raft
    log: type[Log] = Log
    wal: type[SimWal] = SimWal
    raftd: type[Raftd] = Raftd
    applyd: type[Applyd] = Applyd
    watchd: type[Watchd] = Watchd
    keyspace: type[Keyspace] = Keyspace
    listener: type[WatchCore] = WatchCore
    """The core of clients that listen to broadcasts."""


@dataclass(slots=True)
class Sizes:
    """Limits that are given to the shipped classes when they are made."""

    memory_bytes: int
    append_bytes: int
    uncommitted_bytes: int
    timeout_ticks: int
    share_from: int


class Store(LossyEngine):
    """Asked for its size at every tick: counts keys instead of bytes."""

    def size_bytes(self) -> int:
        return 100 * len(self._map)


class Node:
    """One member.

    Args:
      died: told of each process that has ended; whether it comes back is decided there.
      reply: takes what apply says to the client of that name.
      publish: takes what watch says to a client; False if its queue is full, None if it is gone.
    """

    def __init__(
        self,
        world: World,
        config: NodeConfig,
        network: Network,
        watchman: Watchman,
        shells: Shells,
        sizes: Sizes,
        *,
        died: Callable[[Node, Actor], None],
        reply: Callable[[bytes, bytes], None],
        publish: Callable[[bytes, bytes], bool | None],
    ) -> None:
        self.world, self.config, self.network, self.watchman = world, config, network, watchman
        self._shells, self._sizes, self._died, self.reply, self.publish = shells, sizes, died, reply, publish
        self.id = config.member_id
        self.members = [member.id for member in config.members]
        self._rate = 1.0
        self.disk = Disk(world, shells.wal)
        self.engine = Store()
        self.flush_min, self.flush_max = 5 * MILLISECOND, 200 * MILLISECOND
        self._flushing = False
        self.raft = Actor(world, f"raft {self.id}", 3 * self.id, self._raft_turn)
        self.apply = Actor(world, f"apply {self.id}", 3 * self.id + 1, self._apply_turn)
        self.watch = Actor(world, f"watch {self.id}", 3 * self.id + 2, self._watch_turn)
        self.actors = (self.raft, self.apply, self.watch)
        self.air = Air(world, lambda frame: self.watch.receive("air", b"", frame))
        self.with_raft = Conversation(world, self.apply, "apply", self.raft, "raft")
        self.with_watch = Conversation(world, self.watch, "watch", self.apply, "apply")
        self.raftd: Raftd | None = None
        self.applyd: Applyd | None = None
        self.watchd: Watchd | None = None
        self.strike: dict[str, int] = {}
        """Failpoints that are armed: how many hits are still left before it strikes."""

    @property
    def term(self) -> int:
        """The term that its raft process is in; 0 while that is dead."""
        return self.raftd.core.term if self.raftd is not None else 0

    @property
    def rate(self) -> float:
        """Of its clock."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._rate = rate
        for actor in self.actors:
            actor.rate = rate

    # ---- starting

    def start(self, actor: Actor) -> None:
        """As the supervisor would. Does nothing to a living process."""
        if actor.alive:
            return
        if actor is self.raft:
            self._start_raft(actor)
        elif actor is self.apply:
            self._start_apply(actor)
        else:
            self._start_watch(actor)

    def _start_raft(self, actor: Actor) -> None:
        wal, found = self.disk.open(self._disk_said, self._writes)
        epoch, sizes = actor.runs + 1, self._sizes
        log = self._shells.log(
            wal,
            prev=found.prev,
            terms=found.terms,
            last_index=found.last_index,
            memory_bytes_max=sizes.memory_bytes,
        )
        config = Config(
            id=self.id,
            voters=tuple(self.members),
            election_ticks=ELECTION_TICKS,
            append_bytes_max=sizes.append_bytes,
            uncommitted_bytes_max=sizes.uncommitted_bytes,
        )
        chance = random.Random(f"{self.world.seed}/{self.id}/{epoch}")
        core = self._shells.raft(config, log, found.hard_state, chance)
        board = RaftBoard([id for id in self.members if id != self.id])
        board.open(None)
        self.raftd = self._shells.raftd(
            core, wal, RaftLink(self), board, election_ticks=ELECTION_TICKS, session=epoch << 32
        )
        actor.start()
        self.world.tell(lambda: f"{actor.name} starts at {found.hard_state} log {found.prev}..{found.last_index}")
        self.with_raft.server_started()

    def _start_apply(self, actor: Actor) -> None:
        board = ApplyBoard()
        board.open(None)
        since = self.world.rng.randrange(1 << 20)
        keyspace = self._shells.keyspace(self.engine)
        self._tell_commits(keyspace)
        self.applyd = self._shells.applyd(
            keyspace,
            ApplyLink(self),
            Identity(self.config),
            board,
            epoch=actor.runs + 1,
            limits=Limits(self.config.max_txn_ops, self.config.max_request_bytes),
            quota_bytes=self.config.quota_backend_bytes,
            election_ticks=ELECTION_TICKS,
            timeout_ticks=self._sizes.timeout_ticks,
            clock=Clock(self.world, self.rate, since),
            rng=random.Random(f"{self.world.seed}/{self.id}/{actor.runs}"),
        )
        self._flushing = False
        self.watchman.opened(self)
        actor.start()
        self.world.tell(lambda: f"{actor.name} starts at applied {keyspace.applied} revision {keyspace.revision}")
        self.with_watch.server_started()

    def _start_watch(self, actor: Actor) -> None:
        board = WatchBoard()
        board.open(None)
        self.watchd = self._shells.watchd(
            WatchLink(self),
            Identity(self.config),
            board,
            epoch=actor.runs + 1,
            response_bytes_max=RESPONSE_BYTES_MAX,
            progress_ticks=20,
            broadcast=self.config.advertise_broadcast,
            share_from=self._sizes.share_from,
            new_topic=lambda: self.world.rng.randbytes(TOPIC_BYTES),
        )
        actor.start()
        self.air.started()

    def _tell_commits(self, keyspace: Keyspace) -> None:
        commit = keyspace._commit

        def told(turn: Turn) -> list[Change]:
            changes = commit(turn)
            self.watchman.changed(self, changes, keyspace.revision)
            return changes

        keyspace._commit = told  # type: ignore[method-assign]

    def _writes(self, entries: Sequence[Entry]) -> None:
        assert self.raftd is not None
        before = entries[0].index - 1
        self.watchman.written(self, entries, self.raftd.core.log.term(before))

    # ---- dying

    def kill(self, actor: Actor, *, power: bool = False) -> None:
        """SIGKILL, or the machine's power. Does nothing to a dead process."""
        if not actor.alive:
            return
        self.world.tell(lambda: f"{actor.name} is killed{' by power loss' * power}")
        actor.stop()
        if actor is self.raft:
            self.raftd = None
            self.disk.crash(power=power)
            self.with_raft.server_died()
        elif actor is self.apply:
            self.applyd = None
            keep = self._surviving_batches()
            self.world.seen["store lost batches"] += keep < self.engine.unflushed
            self.engine.crash(keep)
            self.with_raft.caller_died()
            self.with_watch.server_died()
        else:
            self.watchd = None
            self.with_watch.caller_died()
            self.air.died()
        self._died(self, actor)

    def _surviving_batches(self) -> int:
        tail = self.engine.unflushed
        return self.world.rng.choice((0, 0, tail, self.world.rng.randint(0, tail)))

    def hit(self, name: str) -> None:
        """One of this node's processes passes a failpoint."""
        left = self.strike.get(name)
        if left is None:
            return
        if left:
            self.strike[name] = left - 1
            return
        del self.strike[name]
        raise Killed(name)

    def _ends(self, actor: Actor, why: str) -> None:
        self.world.seen["failpoint struck"] += 1
        self.world.tell(lambda: f"{actor.name} ends: {why}")
        self.kill(actor, power=self.world.happens(0.3))

    # ---- turns

    def _raft_turn(self) -> None:
        shell = self.raftd
        assert shell is not None
        self.world.turning = self
        try:
            shell.turn()
        except (Killed, OSError) as why:  # an OSError of the journal ends the process, which is started anew
            self._ends(self.raft, str(why))
            return
        self.watchman.raft_turned(self)
        if not shell.idle:
            self.raft.wake()
        self._disk_said()

    def _disk_said(self) -> None:
        """The disk has news: it wakes the process only while that waits for it, as in the loop of cluster.raftd."""
        wal, shell = self.disk.wal, self.raftd
        if wal is not None and wal.said and shell is not None and shell.core.waits_for_disk:
            self.raft.wake()

    def _apply_turn(self) -> None:
        shell = self.applyd
        assert shell is not None
        self.world.turning = self
        try:
            shell.turn()
        except Killed as why:
            self._ends(self.apply, str(why))
            return
        self.watchman.apply_turned(self)
        self._flush(self.apply.runs)
        if not shell.idle:
            self.apply.wake()

    def _watch_turn(self) -> None:
        assert self.watchd is not None
        self.world.turning = self
        try:
            self.watchd.turn()
        except Killed as why:
            self._ends(self.watch, str(why))

    def _flush(self, run: int) -> None:
        """A flush that was begun ends some time later."""
        if self.engine.flushing and not self._flushing:
            self._flushing = True
            self.world.after(self.world.between(self.flush_min, self.flush_max), lambda: self._flushed(run))

    def _flushed(self, run: int) -> None:
        if run == self.apply.runs and self.apply.alive:
            self.engine.finish_flush()
            self._flushing = False
            self._flush(run)
