"""Clients that listen to broadcasts: the shipped core of a watching client, with simulated connections below it.

    WatchCore ◀── stream ───▶ watch process      in order; full when its client doesn't read; broken when an end dies
       │ ▲                        │
       │ └── Ear ◀── Air ◀────────┘              XPUB: one copy for each ear that is tuned to the topic; whoever has
       ▼                                         too much unread, or has bad luck, doesn't get it, and isn't told
     reader: holds what it is given against the truth, event by event

What a reader is given of one watch must be exactly what the truth holds of its range from where it began: in order,
once, nothing left out, no revision in two parts, with what was before (RELIABILITY W1 to W5, W8), however often the
watch moves between stream and air and from member to member. Where a watch says it is, everything before has been given
(W6), and when all is quiet everything has (W7). It ends by compaction only (W9), and then goes on from there.

A connection that was cut in silence stays silent: the core must find out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.results import DeleteEvent, Event, WatchResponse
from kvorum.watching import Given, Session, State, Watch, WatchCore
from tests.checkers.model import inside
from tests.simulation.air import Air, Ear
from tests.simulation.safety import Safety
from tests.simulation.world import MILLISECOND, SECOND, World

QUEUE = 6
"""Frames that a stream's connection holds while its client doesn't read."""


@dataclass(eq=False)
class Line:
    """The connection of one session to a member's watch port."""

    session: Session
    member: int
    name: bytes
    arrived: deque[bytes] = field(default_factory=deque)
    flying: int = 0
    last_in: int = 0
    last_out: int = 0
    up: bool = False
    silent: bool = False
    """Cut off without anybody noticing: nothing passes any more."""
    trouble: str = ""
    open: bool = True


@dataclass(eq=False)
class Reader:
    """Who reads one watch, and how far the truth has been told to him."""

    watch: Watch
    next: int
    given: deque[Given] = field(default_factory=deque)
    behind: bool = False
    over: bool = False


class Listener:
    """One watching client with several watches.

    Args:
      core: the class of its core.
      addresses: watch port and broadcasts of each member.
      send: says something to a member's watch process; False if there is nobody.
      cut: members that clients cannot reach now.
    """

    def __init__(
        self,
        world: World,
        safety: Safety,
        id: int,
        core: type[WatchCore],
        addresses: dict[int, tuple[str, str]],
        airs: dict[int, Air],
        send: Callable[[int, bytes, bytes], bool],
        cut: set[int],
    ) -> None:
        self.world, self.safety, self.id, self._send, self._cut = world, safety, id, send, cut
        self._member_at = {address: member for member, (address, _) in addresses.items()}
        self._air_at = {address: airs[member] for member, (_, address) in addresses.items()}
        self.core = core(world.rng)
        self.heard = 0
        self.healed = False
        self.readers: list[Reader] = []
        self.line: Line | None = None
        self._ear: Ear | None = None
        self._lines = 0
        self._stirred = False
        self._woken_at = -1
        endpoints = [pb.Endpoint(member_id=member, watch=watch) for member, (watch, _) in addresses.items()]
        header = pb.ResponseHeader(cluster_id=77, member_id=1 + id % len(addresses))
        self.core.learn(pb.HelloResponse(members=endpoints, header=header), endpoints[0].watch)

    def start(self) -> None:
        self.world.after(self.world.between(0, SECOND), self._begin)

    def _begin(self) -> None:
        rng = self.world.rng
        for _ in range(rng.choice((1, 2, 3))):
            key, end = rng.choice(_RANGES)
            self.add(
                Watch(
                    key,
                    end,
                    start_revision=rng.choice((0, 1, 1, 2, self.safety.revision, self.safety.revision + 20)),
                    filters=rng.choice(((), (), (), ("noput",), ("nodelete",))),
                    prev_kv=rng.random() < 0.3,
                )
            )

    def add(self, watch: Watch) -> None:
        self.readers.append(Reader(watch, watch.next))
        self.core.add(watch, self._now)
        self._stir()

    @property
    def _now(self) -> float:
        return self.world.now / SECOND

    # ---- the connections

    @property
    def name(self) -> bytes:
        return self.line.name if self.line is not None else b""

    def offer(self, frame: bytes) -> bool:
        """A member sends on the stream's connection. False: it is full."""
        line = self.line
        assert line is not None
        self._look(line)
        if line.flying + len(line.arrived) >= QUEUE:
            self.world.seen["listener's queue full"] += bool(frame)
            return False
        line.flying += 1
        line.last_in = max(line.last_in, self.world.now + self.world.between(50, 2 * MILLISECOND))
        self.world.after(line.last_in - self.world.now, lambda: self._arrived(line, frame))
        return True

    def _look(self, line: Line) -> None:
        if line.member in self._cut:
            line.silent = True

    def _arrived(self, line: Line, frame: bytes) -> None:
        if not line.silent:
            line.flying -= 1
            line.arrived.append(frame)
            self._stir()

    def lost(self, member: int) -> None:
        """The member's watch process has died."""
        if self.line is not None and self.line.member == member:
            self._break(self.line, self.world.between(50, 5 * MILLISECOND))

    def heal(self) -> None:
        """What is silent is found out to be dead, by those below the core."""
        self.healed = True
        if self.line is not None and self.line.silent:
            self._break(self.line, self.world.between(50, SECOND))

    def _break(self, line: Line, delay: int) -> None:
        def broken() -> None:
            line.trouble = "connection lost"
            self._stir()

        self.world.after(delay, broken)

    def _dial(self, session: Session) -> None:
        self._lines += 1
        line = Line(session, self._member_at[session.endpoint], b"listener %d/%d" % (self.id, self._lines))
        self.line = line
        self.world.tell(lambda: f"listener {self.id} connects to {line.member}")
        self._look(line)
        if not line.silent:
            self.world.after(self.world.between(100, 5 * MILLISECOND), lambda: self._answered(line))

    def _answered(self, line: Line) -> None:
        if not self._send(line.member, line.name, b""):  # an empty batch says nothing
            line.trouble = "connection refused"
        else:
            line.up = True
            if not self.healed and self.world.happens(0.3):
                self._break(line, self.world.between(SECOND, 20 * SECOND))
        self._stir()

    def _hang_up(self, session: Session) -> None:
        if self.line is not None and self.line.session is session:
            self.line.open = False
            self.line = None
        if self._ear is not None:
            self._ear.close()
            self._ear = None

    def _say(self, line: Line, batch: bytes) -> None:
        def said() -> None:
            self._look(line)
            if line.open and not line.silent and not self._send(line.member, line.name, batch):
                line.trouble = line.trouble or "connection lost"
                self._stir()

        line.last_out = max(line.last_out, self.world.now + self.world.between(50, 2 * MILLISECOND))
        self.world.after(line.last_out - self.world.now, said)

    # ---- a turn, as kvorum.link.ListeningLines has it

    def _stir(self) -> None:
        if not self._stirred:
            self._stirred = True
            self.world.after(self.world.between(10, 300), self._turn)

    def _turn(self) -> None:
        self._stirred = False
        core = self.core
        again = True
        while again:
            again = self._receive()
            if self._now >= core.wake_at:
                core.tick(self._now)
            if core.opening or core.closing:
                for session in core.closing:
                    self._hang_up(session)
                for session in core.opening:
                    self._dial(session)
                core.closing.clear()
                core.opening.clear()
                again = True
            if core.current is not None:
                again |= self._speak(core.current)
        self._hand_over()
        self._sleep()

    def _receive(self) -> bool:
        line, heard = self.line, False
        if line is None:
            return False
        while line.arrived:
            self.core.received(line.session, line.arrived.popleft(), self._now)
            heard = True
        if line.up:
            self.core.connected(line.session, self._now)  # the second time it says nothing new
        if line.trouble:
            self.core.lost(line.session, self._now, line.trouble)
            heard = True
        return heard

    def _speak(self, session: Session) -> bool:
        core, line = self.core, self.line
        assert line is not None
        while line.up and (batch := core.take()):
            self._say(line, batch)
        if self._ear is None and core.tuning and session.broadcast:
            self._ear = Ear(self.world, self._air_at[session.broadcast], self._stir)
        ear, heard = self._ear, False
        if ear is None:
            return False
        for topic, wanted in core.tuning:
            ear.tune(topic, wanted)
        core.tuning.clear()
        while ear.unread:
            core.published(session, ear.unread.popleft(), self._now)
            heard = True
        return heard

    def _sleep(self) -> None:
        at = self.core.wake_at
        if at < 1e9 and round(at * SECOND) != self._woken_at:
            woken_at = self._woken_at = round(at * SECOND)

            def wake() -> None:
                if self._woken_at == woken_at:
                    self._woken_at = -1
                    self._stir()

            self.world.after(max(1, woken_at + 1 - self.world.now), wake)

    # ---- what the readers see

    def _hand_over(self) -> None:
        of = {reader.watch: reader for reader in self.readers}
        while self.core.given:
            given = self.core.given.popleft()
            of[given.watch].given.append(given)
        for reader in list(self.readers):
            if not reader.behind and not self.healed and reader.given and self.world.happens(0.02):
                reader.behind = True
                self.world.after(
                    self.world.between(10 * MILLISECOND, 3 * SECOND), lambda reader=reader: self._read_on(reader)
                )
            if not reader.behind or self.healed:
                self._read(reader)

    def _read_on(self, reader: Reader) -> None:
        reader.behind = False
        self._stir()

    def _read(self, reader: Reader) -> None:
        while reader.given:
            watch, what, size = reader.given.popleft()
            watch.read_bytes += size
            if isinstance(what, WatchResponse):
                self._events(reader, what.events)
            elif isinstance(what, errors.Compacted):
                self._compacted(reader, what.compact_revision)
                return
            else:
                self._check(reader, what is None, f"was ended: {what!r}")
        if reader.watch.state is State.PAUSED:
            self.world.seen["watch paused"] += 1
            self.core.caught_up(reader.watch, self._now)
            self._stir()
        self._bookmark(reader)

    def _check(self, reader: Reader, holds: bool, what: str) -> None:
        if not holds:
            self.safety.check(False, f"listener {self.id}, {reader.watch.asked}, next {reader.next}: {what}")

    def _events(self, reader: Reader, events: tuple[Event, ...]) -> None:
        self._check(reader, bool(events), "hears nothing, and did not want to")
        first, last = events[0].mod_revision, events[-1].mod_revision
        begin = reader.next or first  # "from now on" begins at what it shows first
        self._check(reader, first >= begin, f"hears of revision {first} again")
        self._check(reader, last in self.safety.truth, f"hears of revision {last}, which nobody has committed")
        expected = [event for revision in range(begin, last + 1) for event in self._wanted(reader, revision)]
        told = [(event.kv, isinstance(event, DeleteEvent)) for event in events]
        wanted = [(event.kv, event.type == pb.Event.DELETE) for event in expected]
        if told != wanted:
            self._check(reader, False, f"hears of {_listed(told)} instead of {_listed(wanted)}")
        for event in events:
            self._before(reader, event)
        reader.next = last + 1
        self.heard += len(events)
        self.world.seen["event heard from the air"] += reader.watch.state is State.TUNED

    def _before(self, reader: Reader, event: Event) -> None:
        """What was before the event may be missing if it wasn't asked for, or is compacted (W8)."""
        if not reader.watch.asked.prev_kv:
            self._check(reader, event.prev_kv is None, f"is told what was before {event.key!r}")
            return
        before = self.safety.before(event.key, event.mod_revision)
        missing = event.prev_kv is None and event.mod_revision <= self.safety.compacted
        if event.prev_kv != before and not missing:
            self._check(reader, False, f"before {event.kv} was {before}, it is told {event.prev_kv}")

    def _compacted(self, reader: Reader, revision: int) -> None:
        watch = reader.watch
        self._check(reader, watch.state is State.OVER, "was told of its end and lives")
        self._check(reader, revision > reader.next, f"was canceled without need at {revision}")
        self.world.seen["listener compacted"] += 1
        self.readers.remove(reader)
        filters = [("noput", "nodelete")[number] for number in watch.asked.filters]
        asked = watch.asked
        self.add(
            Watch(
                asked.key,
                asked.range_end or None,
                start_revision=revision,
                filters=filters,
                prev_kv=asked.prev_kv,
            )
        )

    def _bookmark(self, reader: Reader) -> None:
        """It could go on from where its watch says it is (W6)."""
        if reader.watch.next > reader.next > 0:
            for missed in range(reader.next, reader.watch.next):
                if self._wanted(reader, missed):
                    self._check(reader, False, f"is at {reader.watch.next} and has not heard of {missed}")
            reader.next = reader.watch.next

    def _wanted(self, reader: Reader, revision: int) -> list[pb.Event]:
        asked = reader.watch.asked
        return [
            event
            for event in self.safety.events_of(revision)
            if inside(event.kv.key, asked.key, asked.range_end) and event.type not in asked.filters
        ]

    @property
    def missing(self) -> int:
        """The first revision that one of its readers should have heard of and has not; 0 if there is none."""
        for reader in self.readers:
            begin = reader.next or reader.watch.next
            if not begin:
                return 1  # not even created
            for revision in range(begin, self.safety.revision + 1):
                if self._wanted(reader, revision):
                    return revision
        return 0


_RANGES: tuple[tuple[bytes, bytes | None], ...] = (
    (b"g", b"h"),
    (b"g0/", b"g00"),
    (b"g1/a", None),
    (b"\0", b"\0"),
    (b"t", b"u"),
    (b"g", b"\0"),
)


def _listed(told: list[tuple[pb.KeyValue, bool]]) -> str:
    return ", ".join(f"{kv.mod_revision} {kv.key!r}{' gone' if gone else '=' + repr(kv.value)}" for kv, gone in told)
