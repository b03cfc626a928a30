"""The newest changes, kept by the watch process so that apply needn't be asked for what is only just behind.

    a block = the changes that were delivered together, up to and including some revision

Whole revisions only, without a gap: all changes behind `floor` are here. Within a bound of bytes, the oldest blocks go
first. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cluster.broadcast import Seen


class Ring:
    """Args:
    bytes_max: what the changes may take, without what Python adds to them.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._blocks: list[Sequence[Seen]] = []
        self._ends: list[int] = []  # of each block, the revision that it reaches
        self._sizes: list[int] = []
        self._bytes = 0
        self.floor = 0

    def restart(self, floor: int) -> None:
        """Nothing is known of the changes up to `floor`."""
        self._blocks.clear()
        self._ends.clear()
        self._sizes.clear()
        self._bytes, self.floor = 0, floor

    def add(self, block: Sequence[Seen], revision: int) -> None:
        """All changes from the end of the block before to `revision`."""
        size = sum(len(seen.event) + len(seen.prev) for seen in block)
        self._blocks.append(block)
        self._ends.append(revision)
        self._sizes.append(size)
        self._bytes += size
        gone = 0
        while self._bytes > self._bytes_max:
            self._bytes -= self._sizes[gone]
            gone += 1
        if gone:
            self.floor = self._ends[gone - 1]
            del self._blocks[:gone], self._ends[:gone], self._sizes[:gone]

    def since(self, revision: int, bytes_max: int) -> tuple[list[Seen], int, int]:
        """The changes from the block on that holds `revision`: (changes, the revision they reach, bytes).

        At least one block, then as many as fit. `revision` is behind the floor and not newer than the newest block.
        """
        assert self.floor < revision <= self._ends[-1], (self.floor, revision)
        at = bisect_left(self._ends, revision)
        changes, size = list(self._blocks[at]), self._sizes[at]
        while at + 1 < len(self._ends) and size + self._sizes[at + 1] <= bytes_max:
            at += 1
            changes += self._blocks[at]
            size += self._sizes[at]
        return changes, self._ends[at], size
