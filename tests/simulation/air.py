"""Broadcasts of a member (XPUB) and the connections of those who listen (SUB): what libzmq promises and nothing more.

    watch process ──▶ Air ──▶ every Ear that is tuned to the topic      too much unread there, or bad luck: dropped,
                       ▲                                                and nobody is told
                       └── subscriptions, told to the watch process: each one that begins, and the end of the last

An ear connects anew by itself when the watch process was started again, and says again what it wants to hear; the new
process has never heard of those topics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tests.simulation.world import MILLISECOND, SECOND, World

AIR_QUEUE = 8
"""Publications that a connection holds while its listener doesn't read."""


class Air:
    """A member's broadcasts (XPUB, verbose).

    Args:
      heard: takes what XPUB says to the watch process: a byte that says yes or no, and a topic.
    """

    def __init__(self, world: World, heard: Callable[[bytes], None]) -> None:
        self.world, self._heard = world, heard
        self.loss = self.breaks = 0.0
        """How likely a publication is dropped, and a connection to break within some seconds."""
        self.up = False
        self._tuned: dict[bytes, dict[Ear, None]] = {}
        self._ears: dict[Ear, None] = {}

    def publish(self, frame: bytes) -> None:
        for ear in self._tuned.get(frame[:16], ()):
            ear.offer(frame)

    def join(self, ear: Ear) -> None:
        self._ears[ear] = None

    def leave(self, ear: Ear) -> None:
        self._ears.pop(ear, None)
        self.lose(ear)

    def lose(self, ear: Ear) -> None:
        """Its connection is gone."""
        for topic in list(self._tuned):
            self.tune(ear, topic, False)

    def tune(self, ear: Ear, topic: bytes, wanted: bool) -> None:
        """Every subscription is told, and the end of the last one."""
        if wanted:
            self._tuned.setdefault(topic, {})[ear] = None
            self._heard(b"\1" + topic)
        elif ear in self._tuned.get(topic, ()):
            del self._tuned[topic][ear]
            if not self._tuned[topic]:
                del self._tuned[topic]
                self._heard(b"\0" + topic)

    def started(self) -> None:
        self.up = True
        for ear in list(self._ears):
            ear.reconnect()

    def died(self) -> None:
        self.up = False
        self._tuned.clear()
        for ear in self._ears:
            ear.broken()


class Ear:
    """A listener's connection to a member's air. It reconnects by itself; what it misses nobody tells it."""

    def __init__(self, world: World, air: Air, stir: Callable[[], None]) -> None:
        self.world, self.air, self._stir = world, air, stir
        self.topics: dict[bytes, None] = {}
        self.unread: deque[bytes] = deque()
        self._flying = 0
        self._connection = 0
        self._last_in = self._last_out = 0
        self._up = False
        air.join(self)
        if air.up:
            self.reconnect()

    def tune(self, topic: bytes, wanted: bool) -> None:
        if wanted:
            self.topics[topic] = None
        else:
            self.topics.pop(topic, None)
        if self._up:
            self._say(topic, wanted)

    def _say(self, topic: bytes, wanted: bool) -> None:
        world = self.world
        self._last_out = max(self._last_out, world.now + world.between(50, 2 * MILLISECOND))
        self._later(self._last_out - world.now, lambda: self.air.tune(self, topic, wanted))

    def reconnect(self) -> None:
        self._later(self.world.between(MILLISECOND, SECOND), self._connected)

    def _connected(self) -> None:
        if self.air.up and not self._up:
            self._up = True
            for topic in self.topics:
                self._say(topic, True)
            if self.world.happens(self.air.breaks):
                self._later(self.world.between(SECOND, 20 * SECOND), self._dropped)

    def _dropped(self) -> None:
        self.world.seen["ear reconnected"] += 1
        self.broken()
        self.air.lose(self)
        self._later(self.world.between(100 * MILLISECOND, 3 * SECOND), self._connected)

    def broken(self) -> None:
        """What was on its way is gone, in both directions; what has arrived can still be read."""
        self._connection += 1
        self._flying, self._up = 0, False

    def close(self) -> None:
        self.broken()
        self.air.leave(self)
        self.unread.clear()

    def offer(self, frame: bytes) -> None:
        world = self.world
        if self._flying + len(self.unread) >= AIR_QUEUE or world.happens(self.air.loss):
            world.seen["publication dropped"] += 1
            return
        self._flying += 1
        self._last_in = max(self._last_in, world.now + world.between(50, 2 * MILLISECOND))
        self._later(self._last_in - world.now, lambda: self._arrived(frame))

    def _arrived(self, frame: bytes) -> None:
        self._flying -= 1
        self.unread.append(frame)
        self._stir()

    def _later(self, delay: int, action: Callable[[], None]) -> None:
        """Unless the connection is another by then."""
        connection = self._connection

        def act() -> None:
            if connection == self._connection:
                action()

        self.world.after(delay, act)
