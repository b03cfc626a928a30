"""What the processes of a node are in the operating system's eyes, and the pipes between them.

                 wakes a moment after something has arrived, takes one turn for all of it
    Actor        paused: takes nothing, and finds everything when it goes on, with one tick for all the time it slept
                 stopped: its memory is gone, and what lay unread before it

    Conversation     caller ──ask──▶ server ──tell──▶ caller

is a ZeroMQ DEALER that connects to a ROUTER within a node: in order, and nothing is lost while both ends live. When an
end dies, of what was on its way any first part may still arrive at the other. What a caller says while there is no
server waits for the next one, as a socket does that reconnects; what is told to a caller of before is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.simulation.world import MILLISECOND, World

TICK = 100 * MILLISECOND


class Killed(BaseException):
    """A failpoint struck: the process is gone in the middle of its turn."""


class Parcel(NamedTuple):
    """A frame that has arrived: at which of the process's sockets, from whom."""

    port: str
    source: bytes
    frame: bytes


@dataclass(eq=False)
class Actor:
    """A process as the operating system sees it. `number` is its node's, for the digest."""

    world: World
    name: str
    number: int
    on_turn: Callable[[], None]
    alive: bool = False
    paused: bool = False
    runs: int = 0
    """How often it was started: its epoch, and what tells an event of a dead run from one of this."""
    tick_us: int = TICK
    rate: float = 1.0
    """How many seconds its member's clock counts in one."""
    _tick_due: bool = False
    _inbox: deque[Parcel] = field(default_factory=deque)
    _awake: bool = False

    @property
    def identity(self) -> bytes:
        """What its connections of this run are known by."""
        return b"%s/%d" % (self.name.encode(), self.runs)

    def start(self) -> None:
        self.alive, self.paused, self._awake, self._tick_due = True, False, False, False
        self.runs += 1
        self._inbox.clear()
        self._schedule_tick(self.runs)
        self.wake()

    def stop(self) -> None:
        self.alive = False
        self._inbox.clear()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def receive(self, port: str, source: bytes, frame: bytes) -> None:
        if self.alive:
            self._inbox.append(Parcel(port, source, frame))
            self.wake()

    def take(self) -> list[Parcel]:
        """All that has arrived."""
        parcels = list(self._inbox)
        self._inbox.clear()
        for parcel in parcels:
            self.world.saw(self.number, parcel.frame)
        return parcels

    def take_tick(self) -> bool:
        due, self._tick_due = self._tick_due, False
        return due

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
            self.world.after(round(self.tick_us / self.rate), lambda: self._tick(run))

    def _tick(self, run: int) -> None:
        if run == self.runs and self.alive:
            self._tick_due = True
            self.wake()
            self._schedule_tick(run)


Sent = tuple[bytes, bytes]
"""A sender's name and what it says."""


class Pipe:
    """One direction."""

    def __init__(self, world: World, arrive: Callable[[bytes, bytes], None]) -> None:
        self.world, self.arrive = world, arrive
        self._flying: deque[Sent] = deque()
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

    def break_off(self) -> tuple[list[Sent], list[Sent]]:
        """An end died: what was on the way, as a first part and the rest. None of it will land by itself."""
        flying = list(self._flying)
        self._flying.clear()
        self._breaks += 1
        keep = self.world.rng.randint(0, len(flying))
        return flying[:keep], flying[keep:]


class Conversation:
    """Between two processes of a node. Each knows it as the port named after the other."""

    def __init__(self, world: World, caller: Actor, caller_port: str, server: Actor, server_port: str) -> None:
        self.caller, self.server = caller, server
        self._caller_port, self._server_port = caller_port, server_port
        self._up = Pipe(world, self._asked)
        self._down = Pipe(world, lambda _, frame: caller.receive(server_port, b"", frame))
        self._backlog: list[Sent] = []

    def ask(self, frame: bytes) -> None:
        self._up.send(self.caller.identity, frame)

    def tell(self, to: bytes, frame: bytes) -> None:
        if self.caller.alive and to == self.caller.identity:
            self._down.send(b"", frame)

    def server_started(self) -> None:
        backlog, self._backlog = self._backlog, []
        for sent in backlog:
            self._up.send(*sent)

    def server_died(self) -> None:
        for _, frame in self._down.break_off()[0]:
            self.caller.receive(self._server_port, b"", frame)
        self._backlog = self._up.break_off()[1]

    def caller_died(self) -> None:
        self._backlog.clear()
        self._down.break_off()
        for source, frame in self._up.break_off()[0]:
            self.server.receive(self._caller_port, source, frame)

    def _asked(self, source: bytes, frame: bytes) -> None:
        if self.server.alive:
            self.server.receive(self._caller_port, source, frame)
        else:
            self._backlog.append((source, frame))
