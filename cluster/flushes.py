"""When the apply process has its store flushed, and how much of it is on disk.

    applied ──▶ FLUSH_ENTRIES more, or FLUSH_TICKS later, or somebody needs it ──▶ engine.begin_flush ──▶ durable

Until then a crash takes the store back, and the log brings it forward again: a flush bounds how much log that takes,
and lets the log go of what nobody's store will ask for (cluster/raftd.py). A flush that fails ends the process, so
while the disk has little room none is begun. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from storage.keyspace import Keyspace

FLUSH_ROOM_BYTES = 40 << 20
"""A flush is put off while there is less than this, which all memtables fit into: a failed one ends the process."""
FLUSH_ENTRIES = 20_000
FLUSH_TICKS = 300


class Flushes:
    """Args:
    disk_free_bytes: how much room there is on the store's disk, as of the last tick.
    """

    def __init__(self, keyspace: Keyspace, disk_free_bytes: Callable[[], int]) -> None:
        self._keyspace, self._disk_free_bytes = keyspace, disk_free_bytes
        self._floor = self._from = keyspace.applied[0]  # what was on disk when the store was opened
        self._tick = 0

    @property
    def durable(self) -> int:
        """The store on disk has applied up to this entry, at least. Raises OSError once a flush has failed."""
        return max(self._floor, self._keyspace.engine.flushed())

    @property
    def possible(self) -> bool:
        return self._disk_free_bytes() >= FLUSH_ROOM_BYTES

    def tick(self, tick: int) -> None:
        entries = self._keyspace.applied[0] - self._from
        due = entries >= FLUSH_ENTRIES or (entries and tick - self._tick >= FLUSH_TICKS)
        if due and self.possible:
            self.begin(tick)

    def begin(self, tick: int) -> None:
        """Of all that is applied now. To be called only while `possible`."""
        self._from, self._tick = self._keyspace.applied[0], tick
        self._keyspace.engine.begin_flush(self._from)
