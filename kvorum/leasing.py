"""Keeping leases alive: when to ask, and when a lease must be taken for lost. Without a clock, a thread or a socket.

    hold ──▶ held ──due, every third of its TTL──▶ asked ──answered──▶ held
              │                                     └──no answer──▶ asked again, soon
              ├── answered with TTL 0: it is gone ──▶ lost
              └── its time is up, counted from before the last answered question was asked ──▶ lost

The time is counted from the asking, so it never ends later here than at the cluster: while a lease is not lost, nobody
else has seen it end, however long an answer took. (A process that is paused between looking at the lease and acting on
it can still act too late; only a condition in the write itself helps against that, kvorum.recipes.lock.)

Whoever drives it passes a monotonic `now` in seconds. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

RETRY_SECONDS_MAX = 1.0


class Held:
    """One lease that is kept alive."""

    __slots__ = ("asking", "deadline", "id", "lost", "next", "ttl")

    def __init__(self, id: int, ttl: float, asked: float) -> None:
        self.id, self.ttl = id, ttl
        self.deadline = asked + ttl
        self.next = asked + ttl / 3
        self.asking = False
        self.lost = False


class Question(NamedTuple):
    """A renewal to be sent now. `timeout`: seconds after which it is better to ask again than to wait."""

    held: Held
    timeout: float


class LeaseCore:
    """All leases of one client that are kept alive."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, id: int, ttl: float, asked: float) -> Held:
        """Keep a lease alive that was granted, or last renewed, for `ttl` seconds by a question asked at `asked`."""
        held = self._held[id] = Held(id, ttl, asked)
        return held

    def drop(self, held: Held) -> None:
        """Keep it alive no longer. It isn't lost, for nobody wants it."""
        if self._held.get(held.id) is held:
            del self._held[held.id]

    def due(self, now: float) -> list[Question]:
        """The renewals to be sent now, together."""
        found = []
        for held in self._held.values():
            if not held.asking and held.next <= now:
                held.asking = True
                found.append(Question(held, max(0.05, min(held.deadline - now, held.ttl / 3))))
        return found

    def answered(self, held: Held, ttl: float, asked: float) -> None:
        """The answer to a renewal asked at `asked`."""
        held.asking = False
        if ttl > 0:
            held.ttl = ttl
            held.deadline = max(held.deadline, asked + ttl)
            held.next = asked + ttl / 3
        else:
            held.deadline = held.next = 0.0

    def failed(self, held: Held, now: float) -> None:
        """Nobody answered: try again soon, for there may be another node."""
        held.asking = False
        held.next = now + min(RETRY_SECONDS_MAX, held.ttl / 20)

    def expired(self, now: float) -> list[Held]:
        """The leases that are lost since this was last asked."""
        gone = [held for held in self._held.values() if held.deadline <= now]
        for held in gone:
            held.lost = True
            del self._held[held.id]
        return gone

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None while nothing is held."""
        times = [min(held.deadline, held.deadline if held.asking else held.next) for held in self._held.values()]
        return max(0.0, min(times) - now) if times else None
