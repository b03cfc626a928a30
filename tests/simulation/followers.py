"""Clients that watch: what they hear is held against the truth, message by message.

    connect ──▶ create from `next` ──▶ created ──▶ events, progress ──▶ ... ──▶ the connection breaks ──▶ connect
                                        └─▶ canceled, compacted: begin again from the compaction point

Every message must bring exactly what lies between `next` and the newest revision in it, as far as it concerns the
follower's range: in order, once, nothing left out, no revision in two parts (RELIABILITY W1 to W5). A message without
events says that nothing up to its revision is outstanding (W6). When all is quiet, everybody must have heard
everything (W7). A follower reads slowly at times; then its connection is full, and the server must wait with the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from tests.checkers.history import brief
from tests.simulation.safety import Safety
from tests.simulation.world import MILLISECOND, SECOND, World

QUEUE = 6
"""Frames that a connection holds while its client doesn't read."""


class Follower:
    """One watching client with one watch. `send(member, name, frame)` is False if there is nobody to connect to."""

    def __init__(
        self,
        world: World,
        safety: Safety,
        id: int,
        members: list[int],
        keys: tuple[bytes, bytes],
        send: Callable[[int, bytes, bytes], bool],
    ) -> None:
        self.world, self.safety, self.id, self.members, self._send = world, safety, id, members, send
        self.key, self.end = keys
        self.member = members[id % len(members)]
        self.next = 1
        self.name = b""
        self.heard = 0
        self.healed = False
        self._connections = 0
        self._created = False
        self._unread: deque[bytes] = deque()
        self._reading = True
        self._flying = 0
        self._last = 0

    def start(self) -> None:
        self.world.after(self.world.between(0, SECOND), self._connect)

    # ---- the connection

    def _connect(self) -> None:
        rng = self.world.rng
        if rng.random() < 0.5:
            self.member = rng.choice(self.members)
        self._connections += 1
        self.name = b"follower %d/%d" % (self.id, self._connections)
        self._created, self._flying = False, 0
        self._unread.clear()
        create = pb.WatchCreateRequest(
            key=self.key, range_end=self.end, start_revision=self.next, progress_notify=rng.random() < 0.5
        )
        request = pb.WatchRequest(create_request=create)
        opening = wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 7, b"")
        frame = opening + wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 7, request.SerializeToString())
        self.world.tell(lambda: f"follower {self.id} watches at {self.member} from {self.next}")
        if not self._send(self.member, self.name, frame):
            self._break(100 * MILLISECOND)
        elif rng.random() < 0.3:
            self._later(self.world.between(SECOND, 20 * SECOND), self._break)

    def _break(self, wait: int = 0) -> None:
        """The connection is gone, from one end or the other; the next one goes on where it was."""
        self.name = b""
        self.world.after(wait or self.world.between(MILLISECOND, SECOND), self._connect)

    def _later(self, delay: int, action: Callable[[], None]) -> None:
        """Unless the connection is another by then."""
        name = self.name

        def act() -> None:
            if name == self.name:
                action()

        self.world.after(delay, act)

    def lost(self) -> None:
        """The member's watch process has died."""
        self._later(self.world.between(50, 5 * MILLISECOND), self._break)

    def offer(self, frame: bytes) -> bool:
        """The member sends. False: the connection is full."""
        if self._flying + len(self._unread) >= QUEUE:
            self.world.seen["watcher's queue full"] += bool(frame)
            return False
        if frame:
            self._flying += 1
            self._last = max(self._last, self.world.now + self.world.between(50, MILLISECOND))
            self._later(self._last - self.world.now, lambda: self._arrived(frame))
        return True

    def _arrived(self, frame: bytes) -> None:
        self._flying -= 1
        self._unread.append(frame)
        if self._reading and not self.healed and self.world.happens(0.02):
            self._reading = False
            self.world.after(self.world.between(10 * MILLISECOND, 3 * SECOND), self._read_on)
        if self._reading:
            self._read()

    def _read_on(self) -> None:
        self._reading = True
        self._read()

    def _read(self) -> None:
        while self._unread:
            for record in wire.decode(self._unread.popleft()):
                if record.kind == Kind.STREAM_CLOSE:
                    self._break()
                    return
                self._take(pb.WatchResponse.FromString(record.payload))
                if not self.name:
                    return

    # ---- what it hears

    def _check(self, holds: bool, what: str) -> None:
        self.safety.check(holds, f"follower {self.id} at member {self.member}, next {self.next}: {what}")

    def _take(self, response: pb.WatchResponse) -> None:
        if response.created:
            self._check(not self._created and not response.canceled, f"was told {brief(response)}")
            self._created = True
            return
        self._check(self._created, f"heard {brief(response)} before its watch was created")
        if response.canceled:
            self._check(response.compact_revision > self.next, f"was canceled without need: {brief(response)}")
            self.world.seen["watch canceled by compaction"] += 1
            self.next = response.compact_revision
            self._break()
        elif response.events:
            self._events(list(response.events))
        else:
            self._progress(response.header.revision)

    def _events(self, events: list[pb.Event]) -> None:
        last = events[-1].kv.mod_revision
        self._check(last >= self.next, f"hears of revision {last} again")
        self._check(last in self.safety.truth, f"hears of revision {last}, which nobody has committed")
        expected = [event for revision in range(self.next, last + 1) for event in self._wanted(revision)]
        self._check(events == expected, f"hears of {_listed(events)} instead of {_listed(expected)}")
        self.next = last + 1
        self.heard += len(events)

    def _progress(self, revision: int) -> None:
        for missed in range(self.next, revision + 1):
            self._check(not self._wanted(missed), f"is told of progress to {revision} and has not heard of {missed}")
        self.next = max(self.next, revision + 1)
        self.world.seen["watch progress"] += 1

    def _wanted(self, revision: int) -> list[pb.Event]:
        """What of a revision is in the follower's range."""
        return [event for event in self.safety.events_of(revision) if self.key <= event.kv.key < self.end]

    @property
    def missing(self) -> int:
        """The first revision that it should have heard of and has not; 0 if there is none."""
        for revision in range(self.next, self.safety.revision + 1):
            if self._wanted(revision):
                return revision
        return 0


def _listed(events: list[pb.Event]) -> str:
    return ", ".join(f"{event.kv.mod_revision} {event.kv.key.decode()}={event.kv.value.decode()}" for event in events)
