"""Engines without a disk: one that forgets nothing, and one that crashes on command.

`MemoryEngine` is the plainest thing that keeps the Engine contract; whatever runs on RocksDB runs on it, in the same
tests. `LossyEngine` is a MemoryEngine with a disk beside it, where the test decides what gets there and when:

    write ──▶ visible, tail [b1 b2 b3 ...]      crash(keep=2): b1 b2 were on disk, b3 is gone
    begin_flush(m) ... finish_flush() ──▶ everything written before begin_flush is on disk, flushed() == m

A crash keeps a prefix of the tail, any prefix: RocksDB flushes memtables of its own accord, so more than the last
explicit flush may survive, but never a batch without those before it, and never a part of one. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from sortedcontainers import SortedDict

Change = tuple[bytes, bytes | None]


class MemoryBatch:
    def __init__(self) -> None:
        self.changes: list[Change] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.changes.append((key, value))

    def delete(self, key: bytes) -> None:
        self.changes.append((key, None))


class MemoryEngine:
    """Nothing survives the process, so nothing is ever waiting to be flushed."""

    def __init__(self) -> None:
        self._map: SortedDict = SortedDict()
        self._flushed = 0

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._map.get(key)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._map.get(key) for key in keys]

    def _keys(self, start: bytes, end: bytes, reverse: bool = False) -> Iterator[bytes]:
        if start >= end:
            return iter(())
        found: Iterator[bytes] = self._map.irange(start, end, inclusive=(True, False), reverse=reverse)
        return found

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key, self._map[key]) for key in self._keys(start, end, reverse)])

    def scan_keys(self, start: bytes, end: bytes) -> Iterator[bytes]:
        return iter(list(self._keys(start, end)))

    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        for key in islice(self._keys(start, end), 1):
            return key, self._map[key]
        return None

    def batch(self) -> MemoryBatch:
        return MemoryBatch()

    def write(self, batch: MemoryBatch) -> None:
        _replay(self._map, batch.changes)

    def begin_flush(self, mark: int) -> None:
        assert mark >= self._flushed, (mark, self._flushed)
        self._flushed = mark

    def flushed(self) -> int:
        return self._flushed

    def size_bytes(self) -> int:
        return sum(len(key) + len(value) for key, value in self._map.items())

    def close(self) -> None:
        pass


class LossyEngine(MemoryEngine):
    """A MemoryEngine whose newest batches are lost in a crash, unless the test let a flush finish."""

    def __init__(self) -> None:
        super().__init__()
        self._disk: SortedDict = SortedDict()
        self._tail: list[list[Change]] = []
        self._running: tuple[int, int] | None = None  # mark, batches of the tail it covers
        self._waiting: int | None = None
        self._failed = False

    @property
    def unflushed(self) -> int:
        """How many batches a crash may take."""
        return len(self._tail)

    @property
    def flushing(self) -> bool:
        return self._running is not None

    def write(self, batch: MemoryBatch) -> None:
        super().write(batch)
        self._tail.append(list(batch.changes))

    def begin_flush(self, mark: int) -> None:
        assert mark >= self._flushed, (mark, self._flushed)
        if self._running is None:
            self._running = (mark, len(self._tail))
        else:
            self._waiting = mark

    def flushed(self) -> int:
        if self._failed:
            raise OSError("the flush failed")
        return self._flushed

    def finish_flush(self) -> None:
        """Let the flush under way succeed; the newest waiting mark, if any, is under way from now on."""
        assert self._running is not None
        assert not self._failed
        self._flushed, covered = self._running
        self._harden(covered)
        self._running = None
        if self._waiting is not None:
            mark, self._waiting = self._waiting, None
            self.begin_flush(mark)

    def fail_flush(self) -> None:
        """Let the flush under way fail: flushed() raises from now on."""
        assert self._running is not None
        self._failed = True

    def crash(self, keep: int = 0) -> None:
        """Lose all unflushed batches but the first `keep`, and be as newly opened on what is left."""
        assert 0 <= keep <= len(self._tail), (keep, len(self._tail))
        self._harden(keep)
        self._map = self._disk.copy()
        self._tail.clear()
        self._running, self._waiting, self._flushed, self._failed = None, None, 0, False

    def _harden(self, batches: int) -> None:
        for changes in self._tail[:batches]:
            _replay(self._disk, changes)
        del self._tail[:batches]


def _replay(onto: SortedDict, changes: list[Change]) -> None:
    for key, value in changes:
        if value is None:
            onto.pop(key, None)
        else:
            onto[key] = value
