"""Between the raft processes: frames that are lost, late, doubled, out of order, held back, or cut off one way.

    send ──▶ blocked? lost? ──▶ [clogged: waits here] ──▶ delay ──▶ deliver (perhaps twice)

A real ZeroMQ connection is kinder (in order, never twice); the core is held to more than it will meet. One promise of
the transport is kept, because the core leans on it and says so (cluster.raft.core.Ready): what forwards or refuses a
proposal is never doubled. Everything is per direction, so a partition may be one-way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.raft.message import MessageType
from tests.simulation.world import MILLISECOND, World

_ONCE = (MessageType.PROPOSE, MessageType.PROPOSE_REPLY)
_TYPE_AT = 1
"""Where a peer frame says its type (cluster.raft.message)."""


@dataclass(slots=True)
class Weather:
    """How bad it is now, the same for all pairs."""

    loss: float = 0.0
    twice: float = 0.0
    reorder: bool = False
    delay_min: int = MILLISECOND // 5
    delay_max: int = MILLISECOND


class Network:
    """`deliver(to, sender, frame)` is what happens to a frame that arrives."""

    def __init__(self, world: World, deliver: Callable[[int, int, bytes], None]) -> None:
        self.world, self.deliver = world, deliver
        self.climate = Weather()
        """What the weather returns to."""
        self.weather = self.climate
        self.blocked: set[tuple[int, int]] = set()
        self.clogged: dict[tuple[int, int], list[bytes]] = {}
        self._last: dict[tuple[int, int], int] = {}

    def send(self, sender: int, to: int, frame: bytes) -> None:
        world, weather = self.world, self.weather
        if (sender, to) in self.blocked or world.happens(weather.loss):
            return
        waiting = self.clogged.get((sender, to))
        if waiting is not None:
            waiting.append(frame)
            return
        self._carry(sender, to, frame)
        if world.happens(weather.twice) and frame[_TYPE_AT] not in _ONCE:
            self._carry(sender, to, frame)

    def _carry(self, sender: int, to: int, frame: bytes) -> None:
        world, weather = self.world, self.weather
        arrival = world.now + world.between(weather.delay_min, weather.delay_max)
        if not weather.reorder:
            arrival = self._last[sender, to] = max(arrival, self._last.get((sender, to), 0))
        world.after(arrival - world.now, lambda: self._arrive(sender, to, frame))

    def _arrive(self, sender: int, to: int, frame: bytes) -> None:
        if (sender, to) not in self.blocked:
            self.deliver(to, sender, frame)

    # ---- how it goes wrong

    def clog(self, sender: int, to: int) -> None:
        """Hold back what is sent from now on: a connection that is alive and doesn't move."""
        self.clogged.setdefault((sender, to), [])

    def unclog(self, sender: int, to: int) -> None:
        for frame in self.clogged.pop((sender, to), []):
            self._carry(sender, to, frame)

    def heal(self) -> None:
        self.climate = self.weather = Weather()
        self.blocked.clear()
        for sender, to in list(self.clogged):
            self.unclog(sender, to)
