"""The engine on disk: RocksDB, one column family, without its own log.

The Raft log makes writes durable, so RocksDB's WAL is off and a write costs only a memtable. What is durable is what
has been flushed; a crash takes the memtables and leaves an exact prefix of the written batches, because

  - a batch goes into one memtable, whole, and memtables are flushed in the order they were filled;
  - there is ONE column family. With several, each is flushed at a time of its own (rocksdict 0.3.29 does so even with
    atomic_flush), and a crash would leave them at different moments. Opening a store that has others is refused.

    write ──▶ memtable ──(full, or begin_flush)──▶ SST file, synced ──▶ MANIFEST, synced        flushed() == mark

begin_flush hands the mark to a thread, which flushes everything written by then and more; RocksDB lets go of the GIL
meanwhile, and waits for the sync before it returns. A flush that failed once is never tried again: nobody knows what
the disk holds, so `flushed` raises for good and the process is meant to end.

A view is the store opened by a second process, to be read while the first goes on writing. It is what was on disk at
one moment: a prefix of the written batches, at least all that the owner knows to be flushed. Why that holds:

  - a file with data never changes, and MANIFEST only grows, by records with checksums. Where it ends is a version of
    the store that was installed whole, and after a flush is a later one than before;
  - all files of the version are opened at once and stay open, so what the owner deletes afterwards can be read until
    the view is closed, and is gone when the process is, however it ends;
  - what the owner deletes between the reading of MANIFEST and the opening, or writes just then, makes the opening fail.
    It is tried again.

A view takes no lock and leaves nothing behind (rocksdict writes its configuration once more, the same bytes to the same
place). A RocksDB checkpoint would do as well, but rocksdict flushes for it with the GIL held, 0.2 s for one memtable,
and its directory has to be cleaned up after a crash.

Memory is bounded: the memtables, the block cache with index and filter blocks in it, and a bounded number of open
files. Keys cost disk, not memory: with a million of them, and after as many puts, a process with nothing but a keyspace
has 75 MB resident.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from storage.engine import Batch

T = TypeVar("T")

MEMTABLE_BYTES = 16 << 20
MEMTABLES_MAX = 2
BLOCK_CACHE_BYTES = 16 << 20
OPEN_FILES_MAX = 256
VIEW_TRIES, VIEW_PAUSE_SECONDS = 20, 0.02


class StoreInUse(OSError):
    """Another process, or another engine in this one, has the store open."""


class NotOurStore(ValueError):
    """The directory holds a RocksDB store that is not laid out as this engine does."""


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    table.set_cache_index_and_filter_blocks(True)
    # In pieces: a whole index or filter that fell out of the cache costs 30 us to bring back, for one get.
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_pin_top_level_index_and_filter(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)
    table.set_format_version(5)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_write_buffer_number(MEMTABLES_MAX)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_max_background_jobs(2)
    options.set_level_compaction_dynamic_level_bytes(True)
    # Every flush covers the whole range of keys, so compacting level 0 rewrites all of level 1: keep that small.
    options.set_max_bytes_for_level_base(64 << 20)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_bytes_per_sync(1 << 20)  # spread the writing of a large file, so that its sync does not stall the log's
    options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5)  # swept space comes back soon
    # Else whoever lets go of a memtable or a file last frees it there and then: a reader, in the midst of a turn.
    options.set_avoid_unnecessary_blocking_io(True)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    return options


class RocksEngine:
    """Opens the store in directory `path`, making it if there is none; its parent must exist.

    Raises StoreInUse, NotOurStore, or OSError with RocksDB's own words for anything else that keeps it from opening.
    """

    @classmethod
    def view(cls, path: Path) -> RocksEngine:
        """What is on disk now, to be read only. Takes a file descriptor for each file of the store. Raises OSError."""
        options = _options()
        options.create_if_missing(False)
        options.set_max_open_files(-1)
        for left in reversed(range(VIEW_TRIES)):
            try:
                return cls(path, options, AccessType.read_only(False))
            except OSError:
                if not left:
                    raise
                time.sleep(VIEW_PAUSE_SECONDS)
        raise AssertionError

    def __init__(self, path: Path, options: Options | None = None, access: AccessType | None = None) -> None:
        if (path / "CURRENT").exists():
            families = _translated(lambda: Rdict.list_cf(str(path)))
            if families != ["default"]:
                raise NotOurStore(f"{path} has column families {families}; there must be one, 'default'")
        self._db: Rdict = _translated(
            lambda: Rdict(str(path), options or _options(), access_type=access or AccessType.read_write())
        )
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign,assignment]  # a property; the stub errs
        self._flusher = _Flusher(self._db)
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(key)
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return cast(list[bytes | None], self._db.get(list(keys)))

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if start >= end:
            return iter(())
        bound = _bound(end)
        cursor = self._db.iter(bound)  # sees the store as it is now
        if reverse:
            cursor.seek_to_last()
            return _backwards(cursor, start, bound)
        cursor.seek(start)
        return _pairs(cursor, bound)

    def scan_keys(self, start: bytes, end: bytes) -> Iterator[bytes]:
        if start >= end:
            return iter(())
        bound = _bound(end)
        cursor = self._db.iter(bound)
        cursor.seek(start)
        return _keys(cursor, bound)

    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        return next(self.scan(start, end), None)

    def batch(self) -> WriteBatch:
        return WriteBatch(raw_mode=True)

    def write(self, batch: Batch) -> None:
        assert isinstance(batch, WriteBatch)
        try:
            self._db.write(batch, self._unlogged)
        except Exception as error:
            raise _os_error(error) from error

    def begin_flush(self, mark: int) -> None:
        self._flusher.begin(mark)

    def flushed(self) -> int:
        return self._flusher.flushed()

    def size_bytes(self) -> int:
        files, memtables = "rocksdb.live-sst-files-size", "rocksdb.cur-size-all-mem-tables"
        return (self._db.property_int_value(files) or 0) + (self._db.property_int_value(memtables) or 0)

    def close(self) -> None:
        """Waits for a flush under way. Flushes nothing by promise, though RocksDB may. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._flusher.close()
            self._db.close()


def _bound(end: bytes) -> ReadOptions:
    """The end of an iterator, so that it never walks the deleted entries beyond it.

    It must live as long as the iterator, which holds a bare pointer into it that rocksdict (0.3.29) does not keep
    alive: without that, iterations end early, at whatever the memory holds by then. (Its lower bound sets the upper
    one, too.)
    """
    options = ReadOptions()
    options.set_iterate_upper_bound(end)
    return options


def _pairs(cursor: RdictIter, bound: ReadOptions) -> Iterator[tuple[bytes, bytes]]:
    valid, key, value, step = cursor.valid, cursor.key, cursor.value, cursor.next
    while valid():
        yield key(), value()
        step()
    cursor.status()  # an iterator also ends where the disk fails; only this tells the two apart
    del bound


def _backwards(cursor: RdictIter, start: bytes, bound: ReadOptions) -> Iterator[tuple[bytes, bytes]]:
    while cursor.valid() and (key := cursor.key()) >= start:
        yield key, cursor.value()
        cursor.prev()
    cursor.status()
    del bound


def _keys(cursor: RdictIter, bound: ReadOptions) -> Iterator[bytes]:
    valid, key, step = cursor.valid, cursor.key, cursor.next
    while valid():
        yield key()
        step()
    cursor.status()
    del bound


def _translated(act: Callable[[], T]) -> T:
    """rocksdict raises bare Exceptions: make them what they are."""
    try:
        return act()
    except Exception as error:
        text = str(error)
        if "lock" in text.lower() and "LOCK" in text:
            raise StoreInUse(text) from None
        raise _os_error(error) from error


def _os_error(error: Exception) -> OSError:
    """With the errno, where RocksDB's words are those of one that means something else than "the disk is broken"."""
    text = str(error)
    return OSError(errno.ENOSPC, text) if os.strerror(errno.ENOSPC) in text else OSError(text)


class _Flusher:
    """One thread, one flush at a time, the newest waiting mark next."""

    def __init__(self, db: Rdict) -> None:
        self._db = db
        self._wake = threading.Condition()
        self._waiting: int | None = None
        self._flushed = 0
        self._failure: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="rocks-flush", daemon=True)
        self._thread.start()

    def begin(self, mark: int) -> None:
        with self._wake:
            assert mark >= max(self._flushed, self._waiting or 0), (mark, self._flushed, self._waiting)
            self._waiting = mark
            self._wake.notify()

    def flushed(self) -> int:
        with self._wake:
            if self._failure is not None:
                raise _os_error(self._failure) from self._failure
            return self._flushed

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._waiting is None and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                mark, self._waiting = self._waiting, None
            try:
                self._db.flush(True)
            except Exception as failure:
                with self._wake:
                    self._failure = failure
                return
            with self._wake:
                assert mark is not None
                self._flushed = mark
