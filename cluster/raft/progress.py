"""What a leader believes about one member's log, and how much it dares to send.

                    accepted
          PROBE ----------------> REPLICATE
            ^                         |
            +-------------------------+
                 rejected: a hole

    PROBE      where the logs part is not known. One message at a time, from `next`; another one after an answer, or
               after the answer to a heartbeat (the probe was lost).
    REPLICATE  the logs agree up to `match`; `next` runs ahead of it without waiting for answers, as far as the window
               of messages in flight allows.

`match` only grows within a term, and only by what the member said is on its disk. All else here is a guess that costs a
message when it is wrong, never an entry. Pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"


class Inflight:
    """The appends sent and not yet answered: a window bounded by count and by bytes.

    The bytes may be passed by the last message put in, so that one larger than the whole window can still be sent.
    """

    __slots__ = ("_bytes", "_bytes_max", "_count_max", "_sent")

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._sent: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._count_max = count_max
        self._bytes_max = bytes_max

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def full(self) -> bool:
        return len(self._sent) >= self._count_max or self._bytes >= self._bytes_max

    def add(self, last_index: int, size: int) -> None:
        assert not self.full
        assert not self._sent or self._sent[-1][0] < last_index, (self._sent[-1], last_index)
        self._sent.append((last_index, size))
        self._bytes += size

    def free_to(self, index: int) -> None:
        """Everything up to `index` has been answered, or an answer to something later has come."""
        sent = self._sent
        while sent and sent[0][0] <= index:
            self._bytes -= sent.popleft()[1]

    def clear(self) -> None:
        self._sent.clear()
        self._bytes = 0


@dataclass(slots=True)
class Progress:
    """One member, seen by the leader. For the leader itself only `match` and `read_round` mean something."""

    next: int
    inflight: Inflight
    match: int = 0
    state: ProgressState = ProgressState.PROBE
    paused: bool = False
    """PROBE: the one message is out."""
    ping: bool = False
    """REPLICATE: an append is due even if it is empty, for its answer tells whether something was lost."""
    nudged: bool = True
    """The answer to the present heartbeat has already led to a ping; one is enough (reads make many heartbeats)."""
    active: bool = False
    """It was heard since the quorum was last checked."""
    told: int = 0
    """The commit index that it should know of from what was sent."""
    read_round: int = 0
    """The newest round of reads that it has confirmed."""

    def accepted(self, index: int) -> bool:
        """It holds all up to `index` on disk. False if that is no news."""
        probing = self.state is ProgressState.PROBE
        news = index > self.match
        self.match = max(self.match, index)
        self.inflight.free_to(index)
        if probing and index == self.match:
            self.state = ProgressState.REPLICATE
            self.inflight.clear()
            self.paused = False
            self.next = self.match + 1
        self.next = max(self.next, self.match + 1)
        return news

    def rejected(self, index: int, probe: int) -> None:
        """Nothing matches at `index`; the best guess is `probe`. Old answers are known by what they reject."""
        if self.state is ProgressState.REPLICATE:
            if index > self.match:
                self.to_probe(self.match + 1)
        elif index == self.next - 1:
            self.to_probe(max(min(index, probe + 1), self.match + 1))

    def suspect_loss(self, last_index: int) -> None:
        """It lives, and what it has not answered may be lost: ask."""
        self.paused = False
        self.ping = self.state is ProgressState.REPLICATE and self.match < last_index

    def to_probe(self, next: int) -> None:
        self.state = ProgressState.PROBE
        self.next = next
        self.paused = False
        self.ping = False
        self.told = min(self.told, self.match)
        self.inflight.clear()
