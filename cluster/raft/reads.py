"""Linearizable reads without a log entry: who asked, in which round, and which rounds are confirmed.

    read arrives -> waiting -> (ready: one round for all that wait) -> heartbeats out -> a majority answered -> index
                       ^                                                                                 |
    a leader that has not committed in its term leaves them here                  commit index as the round opened

A read may be answered with the commit index of any moment after it arrived, provided that its leader was still the
leader at some moment after it arrived (Raft dissertation 6.4). Hence: a round counts only answers to heartbeats that
left after all of its reads had arrived; these go to no more members than are needed (leadership.py). Rounds have
ascending numbers, a heartbeat carries the newest, and an answer to round n confirms every round up to n. A read never
joins a round that has been opened. Leases (answering on the strength of a clock) are not done: a paused process would
answer with the past.

A follower asks its leader once for all that waits. The number of the question must never have been used before, not
even by an earlier run of this process: an answer to a question of before the crash would be an index from before the
read. So the numbers start at a random place of 63 bits.

Everything here is dropped on any change of term or role, and each local read ends once: answered or failed. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

READS_MAX = 4096
"""Questions (each for many reads) that a member keeps at a time; beyond it they fail at once."""


class Read(NamedTuple):
    """Member `sender` asks, and knows its question as `context`."""

    sender: int
    context: int


class Round(NamedTuple):
    number: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    reads: list[Read]


class Asked(NamedTuple):
    deadline: int
    contexts: list[int]


class Reads:
    """The reads of one member, as leader (`open`, `confirm`) or as follower (`ask`, `answered`, `expire`)."""

    def __init__(self, question: int) -> None:
        """`question`: where the numbers of a follower's questions start; see the module."""
        self._waiting: list[Read] = []
        self._rounds: deque[Round] = deque()
        self._asked: dict[int, Asked] = {}
        self._question = question
        self._count = 0
        self.round = 0
        """The newest round opened. It never restarts within a process, so no answer fits a round of another term."""

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, sender: int, context: int) -> bool:
        """False: there are too many already."""
        if self._count >= READS_MAX:
            return False
        self._count += 1
        self._waiting.append(Read(sender, context))
        return True

    def open(self, index: int) -> None:
        """Put all that waits into a new round, to be answered with `index`. The heartbeats must leave after this."""
        self.round += 1
        self._rounds.append(Round(self.round, index, self._waiting))
        self._waiting = []

    def confirm(self, number: int) -> list[tuple[Read, int]]:
        """A majority has answered round `number`: the reads of all rounds up to it, with their index."""
        confirmed: list[tuple[Read, int]] = []
        while self._rounds and self._rounds[0].number <= number:
            _, index, reads = self._rounds.popleft()
            confirmed += [(read, index) for read in reads]
        self._count -= len(confirmed)
        return confirmed

    def ask(self, deadline: int) -> int:
        """Put all that waits into one question; gives its number. It fails at `deadline` (a tick) if nobody answers."""
        self._question = (self._question + 1) & (1 << 64) - 1
        self._asked[self._question] = Asked(deadline, [read.context for read in self._waiting])
        self._waiting = []
        return self._question

    def answered(self, question: int) -> list[int]:
        """The contexts of a question, which is then forgotten; none if it is not known (any more)."""
        asked = self._asked.pop(question, None)
        if asked is None:
            return []
        self._count -= len(asked.contexts)
        return asked.contexts

    def expire(self, tick: int) -> list[int]:
        """The contexts whose deadline has come."""
        expired: list[int] = []
        while self._asked:
            question, asked = next(iter(self._asked.items()))
            if asked.deadline > tick:
                break
            expired += self.answered(question)
        return expired

    def drop(self, id: int) -> list[int]:
        """Forget everything; gives the contexts that member `id`, which is this one, asked for."""
        dropped = [context for asked in self._asked.values() for context in asked.contexts]
        for round in self._rounds:
            dropped += [read.context for read in round.reads if read.sender == id]
        dropped += [read.context for read in self._waiting if read.sender == id]
        self._waiting = []
        self._rounds.clear()
        self._asked.clear()
        self._count = 0
        return dropped
