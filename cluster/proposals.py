"""The writes of this member that are on their way through the log: their numbers, and who waits for them.

    add ──▶ pending ──settle──▶ answered from the result of applying it
              │  ▲
              │  └── sent again: a new leader, a new raft process, or long silence
              ├── passed by a higher number that was applied: dead under its own number, added anew
              ├── refused, at its only attempt: surely not done
              └── its time is up: perhaps done; never sent: surely not

A *batch* is what one wake-up proposes: an entry of the log, with this member, this process's incarnation and a number
in front. Sending it again under the same number is safe, because the store applies the numbers of an incarnation at
most once and only in rising order (storage.keyspace). For the same reason a batch is dead for ever once a higher
number of ours has been applied without it; only then does it get a new one. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from cluster.callers import Caller
from storage.codec import PROPOSAL_HEAD, pack_proposal


class Pending:
    """A batch whose outcome isn't known. Times are ticks; `attempts` counts the sends that may have taken effect."""

    __slots__ = ("attempts", "born", "callers", "data", "number", "once", "sent")

    def __init__(self, number: int, data: bytes, callers: list[Caller], born: int, once: bool) -> None:
        self.number, self.data, self.callers, self.born, self.once = number, data, callers, born, once
        self.sent = born
        self.attempts = 0


class Proposals:
    """All pending batches of one incarnation, by number.

    Args:
      send: propose (number, data) now; False if there is nobody to propose to.
      patience_ticks: silence after which a batch is sent again; doubled each time.
    """

    def __init__(self, member: int, epoch: int, send: Callable[[int, bytes], bool], patience_ticks: int) -> None:
        self._member, self._epoch, self._patience_ticks = member, epoch, patience_ticks
        self._propose = send
        self._number = 0
        self._pending: OrderedDict[int, Pending] = OrderedDict()
        self.bytes = 0
        """What all pending batches take."""

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, batch: bytes, callers: list[Caller], now: int, *, once: bool = False) -> int:
        """Returns its number. One that is to be proposed `once` gets no other: when a higher number has been applied,
        it has been applied before, or never will be."""
        self._number += 1
        data = pack_proposal(self._member, self._epoch, self._number, batch)
        pending = Pending(self._number, data, callers, now, once)
        self._pending[pending.number] = pending
        self.bytes += len(data)
        self._send(pending, now)
        return pending.number

    def is_own(self, origin: int, incarnation: int) -> bool:
        return origin == self._member and incarnation == self._epoch

    def settle(self, number: int, now: int) -> list[Caller]:
        """Batch `number` was applied: who waits for it, in the order of its records; nobody if they were told already.

        Batches before it that were not applied never will be under their numbers, and are added anew, but for those
        that were worth it only once.
        """
        while self._pending:
            first = next(iter(self._pending.values()))
            if first.number >= number:
                break
            self._forget(first)
            if not first.once:
                self.add(first.data[PROPOSAL_HEAD:], first.callers, now)
                self._pending[self._number].born = first.born
        pending = self._pending.get(number)
        if pending is None:
            return []
        self._forget(pending)
        return pending.callers

    def rejected(self, number: int, now: int, *, final: bool) -> list[Caller]:
        """An attempt at `number` was refused. If it was the only one, the batch is surely not in the log: then, when
        `final`, it is given up and its callers returned; else it counts as never sent and waits for the next leader."""
        pending = self._pending.get(number)
        if pending is None or pending.attempts != 1:
            return []
        if final:
            self._forget(pending)
            return pending.callers
        pending.attempts, pending.sent = 0, now
        return []

    def resend(self, now: int, *, all: bool) -> None:
        """Send again what may not have been heard: all of it, or what has waited for long. A batch that an impatient
        later one overtakes is added anew when that is applied."""
        for pending in self._pending.values():
            if all or now - pending.sent >= self._patience_ticks << min(pending.attempts, 6):
                self._send(pending, now)

    def expire(self, limit: int) -> Iterable[Pending]:
        """Give up the batches that were born at or before tick `limit`, oldest first."""
        for pending in [each for each in self._pending.values() if each.born <= limit]:
            self._forget(pending)
            yield pending

    def _send(self, pending: Pending, now: int) -> None:
        if self._propose(pending.number, pending.data):
            pending.attempts += 1
            pending.sent = now

    def _forget(self, pending: Pending) -> None:
        del self._pending[pending.number]
        self.bytes -= len(pending.data)
