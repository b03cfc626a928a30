"""Whether this member knows of a leader, and which streams shall not live on without one.

    hasleader: true ──▶ a call, or a stream that begins: refused at once while there is no leader
                    ──▶ a stream that is open: ended when there was none for LEADERLESS_ELECTIONS election timeouts

As in etcd, where the second is three looks that far apart, so between two and three of them: who comes again costs the
other members more than who waits, and most elections are over by then. Pure: time is ticks.
"""

from __future__ import annotations

LEADERLESS_ELECTIONS = 3


class Leadership:
    def __init__(self, election_ticks: int) -> None:
        self.known = True
        self._patience = LEADERLESS_ELECTIONS * election_ticks
        self._without = 0  # ticks
        self._needing: dict[int, None] = {}

    def __len__(self) -> int:
        """Streams that need a leader."""
        return len(self._needing)

    def needed_by(self, stream: int) -> None:
        self._needing[stream] = None

    def forget(self, stream: int) -> None:
        """It has ended. Others are ignored."""
        self._needing.pop(stream, None)

    def tick(self) -> list[int]:
        """The streams to be ended now; they are forgotten."""
        self._without = 0 if self.known else self._without + 1
        if self._without < self._patience:
            return []
        ended, self._needing = list(self._needing), {}
        return ended
