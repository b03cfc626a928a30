"""A journal on a disk that can be slow, full, broken, and crashed: what the real one promises and nothing more.

    append ──▶ gathered ──▶ [one sync under way] ──▶ synced      kill -9, power loss: any first part of the unsynced
                 └── unsynced records, in order ──┘               stays, what was synced is never lost
                                                                 fsync fails: OSError, for good; then as a crash

A write is torn at any record: an append is its hard state, then the place where a tail is cut off, then its entries one
by one, and a crash keeps any first part of the records that were not synced, as the real journal's torn tail leaves
them. What is read back after a restart is synced, as all that opening the real journal reports is durable. Space is
given back in pieces: what was released may be there for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage.entry import Entry, HardState
from storage.journal import JournalStats
from tests.simulation.world import MILLISECOND, World

ROOM_BYTES = 1 << 30


class Found(NamedTuple):
    """What opening gives, as storage.journal's Recovered."""

    hard_state: HardState
    prev: tuple[int, int]
    terms: list[tuple[int, int]]
    last_index: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The log ends at `index`; what was behind it was replaced."""

    index: int


Record = HardState | Cut | Entry


class Platter:
    """Hard state and log after some sequence of records."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.prev = (0, 0)
        self.entries: list[Entry] = []

    @property
    def last_index(self) -> int:
        return self.prev[0] + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.prev[1]

    def write(self, record: Record) -> None:
        if isinstance(record, HardState):
            self.hard_state = record
        elif isinstance(record, Cut):
            assert self.prev[0] <= record.index <= self.last_index, (record, self.prev, self.last_index)
            del self.entries[record.index - self.prev[0] :]
        else:
            assert record.index == self.last_index + 1, (record.index, self.last_index)
            self.entries.append(record)

    def entry(self, index: int) -> Entry | None:
        at = index - self.prev[0] - 1
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def release(self, index: int) -> None:
        count = index - self.prev[0]
        if count > 0:
            self.prev = (index, self.entries[count - 1].term)
            del self.entries[:count]


class Disk:
    """One member's disk. It outlives the processes; `open` gives a Wal on it, and closes the one before."""

    def __init__(self, world: World, wal: type[SimWal]) -> None:
        self.world, self._wal_class = world, wal
        self.synced = Platter()
        self.unsynced: list[Record] = []
        self.released = 0
        self.sync_min, self.sync_max = MILLISECOND // 2, 3 * MILLISECOND
        self.full = False
        self.breaking = False
        """The next sync fails."""
        self.wal: SimWal | None = None

    def open(self, wake: Callable[[], None], writes: Callable[[Sequence[Entry]], None]) -> tuple[SimWal, Found]:
        """What is on disk, and the way to write more. `wake` is called when something has become durable (or never
        will), `writes` with every entry that is to be written."""
        assert not self.unsynced, "opened without having been closed or crashed"
        platter = self.synced
        self.world.seen["opened without its beginning"] += self.released > 0
        self._give_back()
        terms: list[tuple[int, int]] = []
        for entry in platter.entries:
            if not terms or entry.term != terms[-1][1]:
                terms.append((entry.index, entry.term))
        self.wal = self._wal_class(self, wake, writes)
        return self.wal, Found(platter.hard_state, platter.prev, terms, platter.last_index)

    def release(self, index: int) -> None:
        assert index <= self.synced.last_index, (index, self.synced.last_index)
        self.released = max(self.released, index)
        self._give_back()

    def _give_back(self) -> None:
        """Whole segments are freed, so anything from nothing to all that was released may really be gone."""
        kept = self.synced.prev[0]
        self.synced.release(self.world.rng.randint(kept, max(self.released, kept)))

    def crash(self, *, power: bool) -> None:
        """The process is gone. Without power, nothing that was not synced is sure; a mere kill leaves more of it."""
        rng, pending = self.world.rng, self.unsynced
        if self.wal is not None:
            self.wal.closed = True
        self.wal = None
        if power or self.world.happens(0.5):
            keep = rng.choice((0, len(pending), *(rng.randint(0, len(pending)) for _ in range(3))))
        else:
            keep = len(pending)
        self.world.seen["write torn"] += 0 < keep < len(pending)
        self.world.seen["write lost"] += keep < len(pending)
        for record in pending[:keep]:
            self.synced.write(record)
        self.unsynced = []
        self.breaking = False


class SimWal:
    """What a raft process holds while it lives: the shape of storage.journal.Journal. `wake` is its eventfd."""

    def __init__(self, disk: Disk, wake: Callable[[], None], writes: Callable[[Sequence[Entry]], None]) -> None:
        self.disk, self._wake, self._writes = disk, wake, writes
        self.closed = False
        self._position = 0
        self._durable = 0
        self._last_index = disk.synced.last_index
        self._marks: list[tuple[int, int]] = []  # (position, records up to it), not yet durable
        self._syncing = False
        self.said = False
        """The descriptor is readable."""
        self._failed = False

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> int:
        self._check()
        if entries:
            self._writes(entries)
        records: list[Record] = [] if hard_state is None else [hard_state]
        if entries and entries[0].index <= self._last_index:
            records.append(Cut(entries[0].index - 1))
            self.disk.world.seen["log tail replaced"] += 1
        records += entries
        if entries:
            self._last_index = entries[-1].index
        self.disk.unsynced += records
        self._position += 1 + sum(32 + len(entry.data) for entry in entries)
        self._marks.append((self._position, len(records)))
        self._start_sync()
        return self._position

    def durable(self) -> int:
        self._check()
        self.said = False
        return self._durable

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Only of what has been reported durable."""
        self.disk.world.seen["log read from disk"] += 1
        found: list[Entry] = []
        for index in range(first, last + 1):
            entry = self.disk.synced.entry(index)
            assert entry is not None, f"entry {index} was read and is not there (any more)"
            if found and sum(len(one.data) for one in found) + len(entry.data) > max_bytes:
                break
            found.append(entry)
        return found

    def release(self, index: int) -> None:
        self.disk.world.seen["log released"] += 1
        self.disk.release(index)

    def stats(self) -> JournalStats:
        return JournalStats(0, 0, 0, 0, 0, 0, 0, 0, 0.0, [])

    def room(self) -> int:
        return 0 if self.disk.full else ROOM_BYTES

    def _check(self) -> None:
        assert not self.closed, "a dead process wrote"
        if self._failed:
            raise OSError("fsync failed")

    def _start_sync(self) -> None:
        """One sync for all that has gathered; what comes meanwhile waits for the next."""
        if self._syncing or not self._marks:
            return
        self._syncing = True
        covered = len(self._marks)
        disk = self.disk
        disk.world.after(disk.world.between(disk.sync_min, disk.sync_max), lambda: self._synced(covered))

    def _synced(self, covered: int) -> None:
        if self.closed:
            return
        disk = self.disk
        self.said = True
        if disk.breaking:
            self._failed = True
            self._wake()
            return
        records = sum(count for _, count in self._marks[:covered])
        self._durable = self._marks[covered - 1][0]
        del self._marks[:covered]
        for record in disk.unsynced[:records]:
            disk.synced.write(record)
        del disk.unsynced[:records]
        self._syncing = False
        self._start_sync()
        self._wake()
