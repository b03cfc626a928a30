"""The journal: the replicated log and hard state of one member, durable. The raft process's only way to its disk.

                                append()                    release()
                                   |                            |
                                   v                            v
     index        [ spans: which segment, which offset, four bytes an entry ]      <- read()
     segments     [ 7 |........] [ 8 |.........] [ 9 |....            ]  [ spare ]  [ spare ]
                                                      ^ durable()  ^ handed over

The C writer (native/wal.h) writes and syncs in a thread of its own; this side checks what is handed over, remembers
where it lies, and reads it back. Nothing here waits for a disk except `open`, `read` and `close`.

- Order on disk is order of hand-over, and what survives a crash is a prefix of it, never less than `durable()` said.
  Within one call the hard state comes first: entries of a term never survive without the term.
- An append at or below the last index replaces the tail. A record says so before the new entries, so every prefix of
  the log means something, and a segment never depends on an older one: its header repeats the hard state and the
  index and term where it begins. That is why whole segments may go.
- What may go is said in the log itself before any file goes, so that a missing file can be told from a released one.
- A failed write or sync is final: every later call raises JournalFailed. The process must end, since the only way to
  learn what the disk holds is to read it again. A full disk is no failure: NoSpace is raised before anything of the
  call is accepted, and later calls may succeed.

What damage is, how it is told from a crash, and what remains undetectable: native/segments.py and native/WAL.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from native import segments
from native._wal import ffi, lib
from native.segments import Damaged, dump, verify
from storage.entry import Entry, HardState
from storage.failpoint import hit
from storage.places import Places, Span

__all__ = ["Damaged", "Journal", "JournalFailed", "JournalStats", "NoSpace", "Recovered", "Released", "dump", "verify"]

ENTRY_OVERHEAD_BYTES = 48
"""At most this much is written for an entry besides its data. An entry is never split over two segments."""
CALL_OVERHEAD_BYTES = 128
"""And at most this much more for a call of `append`."""
_ROWS = 64
_DATA_AT = lib.WAL_RECORD_BYTES + lib.WAL_ENTRY_BYTES
_ENTRY_HEAD = struct.Struct("<IB7xQQB")  # from the record's length on: length, type, zeros and base, term, index, kind
_ENTRY_HEAD_AT = 8


class NoSpace(OSError):
    """The disk is full. Nothing of the call was accepted; all that was accepted before stays good."""


class JournalFailed(OSError):
    """A write or sync failed. Final: nothing more becomes durable through this journal."""


class Released(KeyError):
    """The entry is not kept: released, or not yet durable."""


class Recovered(NamedTuple):
    """What the disk remembers.

    `prev` is (index, term) of the entry before the first kept one, (0, 0) in a new log. `terms` are runs (first index,
    term) of the kept entries, ascending in both, none if none are kept. `last_index` is prev's if none are kept.
    """

    hard_state: HardState
    prev: tuple[int, int]
    terms: list[tuple[int, int]]
    last_index: int


class JournalStats(NamedTuple):
    """Counts since opening. `sync_buckets[i]` of the groups' syncs took less than 2**i microseconds and not less than
    half of that (the last one: all longer ones); `sync_seconds` is their sum."""

    appends: int
    groups: int
    syncs: int
    bytes: int
    segments: int
    prepared: int
    recycled: int
    removed: int
    sync_seconds: float
    sync_buckets: list[int]


class Journal:
    """See the module. One process, one thread; `open` makes it. Offsets, positions and sequences never fall.

    A position counts the calls that had something to append. `fileno()` is for a poller: readable when `durable()` has
    risen, or the journal has failed.
    """

    def __init__(self, directory: Path, lock: int, writer: Any, places: Places, log_id: int, oldest: int) -> None:
        self._directory = directory
        self._lock = lock
        self._writer = writer
        self._places = places
        self._log_id = log_id
        self._oldest = oldest  # segments below it have been released
        self._files: dict[int, int] = {}  # sequence -> descriptor, of segments that were read from
        self._unsettled: deque[tuple[int, int]] = deque()  # (position, first index) not known to be durable
        self._hard = ffi.new("struct wal_hard *")
        self._rows = ffi.new("struct wal_entry[]", _ROWS)
        self._position = ffi.new("uint64_t *")
        self._record = ffi.new("struct wal_record *")

    @classmethod
    def open(
        cls, directory: Path, *, cluster_id: int, member_id: int, segment_bytes: int = 64 << 20
    ) -> tuple[Journal, Recovered]:
        """Read the log in `directory` and go on writing it; a new one is begun where there is none.

        All that is reported as recovered is durable when this returns. A torn tail is cut.

        Args:
          cluster_id, member_id: what every segment must carry.
          segment_bytes: size of segments made from now on, a multiple of 8 from 4 KiB to 1 GiB. An entry and its
            overhead must fit into one.
        Raises:
          Damaged: what is on disk is not what was written there, or is another member's. Nothing was changed.
          NoSpace: there is no room for a first segment, or to give a cut-off last one its size back.
          JournalFailed: the disk refused a write or sync.
          OSError: the directory is held by another process (EWOULDBLOCK) or can't be read.
        """
        if not (lib.WAL_SEGMENT_BYTES_MIN <= segment_bytes <= lib.WAL_SEGMENT_BYTES_MAX) or segment_bytes % 8:
            raise ValueError(f"segment_bytes {segment_bytes}: a multiple of 8 from 4 KiB to 1 GiB")
        directory.mkdir(0o700, parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _take_lock(lock, directory)
            return cls._open_locked(directory, lock, cluster_id, member_id, segment_bytes)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _open_locked(
        cls, directory: Path, lock: int, cluster_id: int, member_id: int, segment_bytes: int
    ) -> tuple[Journal, Recovered]:
        names = segments.listing(directory)
        last, places = _load(directory, (cluster_id, member_id))
        spares = _usable_spares(directory, names.spares, segment_bytes)
        numbers = ffi.new("uint64_t[]", spares)
        start = ffi.new("struct wal_start *")
        start.cluster_id, start.member_id, start.capacity = cluster_id, member_id, segment_bytes
        start.log_id = int.from_bytes(os.urandom(8), "little")
        start.spares, start.spare_count = numbers, len(spares)
        start.next_spare = names.spares[-1] + 1 if names.spares else 1
        hard = HardState()
        if last is None:
            _sync_names_above(directory)
        else:
            _remove_leftovers(directory, names.segments, last.oldest)
            header, hard = last.header, HardState(*last.hard)
            start.log_id, start.sequence, start.last_capacity = header.log_id, header.sequence, header.capacity
            start.end, start.dirty, start.base, start.chain = last.end, last.dirty, last.base, last.chain
            start.oldest, (start.last_index, start.last_term) = last.oldest, last.last
            start.hard.term, start.hard.vote, start.hard.commit = hard
        error = ffi.new("int *")
        writer = lib.wal_open(lock, start, error)
        if writer == ffi.NULL:
            kind = NoSpace if error[0] in (errno.ENOSPC, errno.EDQUOT) else JournalFailed
            raise kind(error[0], os.strerror(error[0]), str(directory))
        journal = cls(directory, lock, writer, places, start.log_id, last.oldest if last else 1)
        return journal, Recovered(hard, places.prev, places.terms, places.last_index)

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> int:
        """Hand over the hard state, if given, then the entries, as one piece. Returns the position to wait for.

        Data is copied. Entries must be consecutive, their terms not falling, the first index at most last + 1; an index
        at or below the last one replaces the log from there on. With nothing to append it returns the last position.
        Waits only if the segment and the next one are used up before a third is prepared.

        Raises:
          NoSpace: no room, and the disk gave none. Nothing was accepted; a later call may succeed.
          JournalFailed: see the class.
          ValueError: entries that do not follow, reach below the first kept one, or do not fit into a segment.
        """
        hit("journalBeforeAppend")
        writer, places = self._open_writer(), self._places
        count = len(entries)
        rows = self._rows if count <= _ROWS else ffi.new("struct wal_entry[]", count)
        prev_term = 0
        if count:
            first = entries[0].index
            if not places.prev[0] < first <= places.last_index + 1:
                raise ValueError(f"entry {first} is not in {places.prev[0] + 1}..{places.last_index + 1}")
            prev_term = places.term(first - 1)
            for i, (term, index, kind, data) in enumerate(entries):
                row = rows[i]
                row.term, row.index, row.kind = term, index, kind
                row.data, row.length = ffi.from_buffer("uint8_t[]", data), len(data)
        hard = ffi.NULL
        if hard_state is not None:
            hard = self._hard
            hard.term, hard.vote, hard.commit = hard_state
        error = lib.wal_append(writer, hard, prev_term, rows, count, self._position)
        if error:
            self._refuse(error)
        position: int = self._position[0]
        if count:
            if first <= places.last_index:
                places.cut(first - 1, prev_term)
            for i, entry in enumerate(entries):
                row = rows[i]
                offset: int = row.offset
                end = (offset + _DATA_AT + len(entry.data) + 7) & ~7
                places.add(entry.index, entry.term, row.sequence, offset, end)
            self._unsettled.append((position, first))
        hit("journalAfterAppend")
        return position

    def durable(self) -> int:
        """The newest position that is on disk with all before it. Clears the descriptor. Raises JournalFailed."""
        writer = self._open_writer()
        lib.wal_clear(writer)
        if lib.wal_failed(writer):
            self._refuse(0)
        position: int = lib.wal_durable(writer)
        self._settle(position)
        return position

    def _settle(self, position: int) -> None:
        while self._unsettled and self._unsettled[0][0] <= position:
            self._unsettled.popleft()

    def fileno(self) -> int:
        """Readable when `durable()` has news. For polling only: `durable()` reads it."""
        fd: int = lib.wal_fileno(self._open_writer())
        return fd

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Entries from `first` on: at least one, none above `last`, stopping before the data passes `max_bytes`.

        Only durable entries are given, so there may be fewer. Checksums are verified. Reads from the page cache or the
        disk: bound `max_bytes`.

        Raises:
          Released: `first` is before the first kept entry, or not durable (yet).
          Damaged: the disk gave back something else than was written.
        """
        writer = self._open_writer()
        self._settle(lib.wal_durable(writer))
        stable = min((index for _, index in self._unsettled), default=self._places.last_index + 1) - 1
        if not self._places.prev[0] < first <= stable:
            raise Released(first)
        entries: list[Entry] = []
        index, last, left = first, min(last, stable), max_bytes
        while index <= last and (left > 0 or not entries):
            batch = self._read_some(self._places.find(index), index, last, left, need_one=not entries)
            if not batch:
                break
            entries += batch
            index += len(batch)
            left -= sum(len(entry.data) for entry in batch)
        return entries

    def _read_some(self, span: Span, first: int, last: int, max_bytes: int, *, need_one: bool) -> list[Entry]:
        """Entries of one span by one read from the file. The read covers a little more than `max_bytes` of records."""
        offsets, at = span.offsets, first - span.first
        start, count = offsets[at], min(last, span.last) - first + 1
        until = bisect_right(offsets, start + max_bytes + ENTRY_OVERHEAD_BYTES, at + 1, at + count)
        end = offsets[until] if until < len(offsets) else span.end
        content = self._read_bytes(span.sequence, start, end - start)
        entries: list[Entry] = []
        for place in offsets[at:until]:
            entry = self._decode(content, place - start, span.sequence, place, first + len(entries))
            max_bytes -= len(entry.data)
            if max_bytes < 0 and (entries or not need_one):
                break
            entries.append(entry)
        return entries

    def _decode(self, content: bytes, at: int, sequence: int, offset: int, index: int) -> Entry:
        verdict = lib.wal_record_read(
            ffi.from_buffer(content) + at, len(content) - at, self._log_id, sequence, offset, self._record
        )
        if verdict == lib.WAL_RECORD_OK and self._record.type == lib.WAL_ENTRY:
            length, _, term, found, kind = _ENTRY_HEAD.unpack_from(content, at + _ENTRY_HEAD_AT)
            if found == index:
                return Entry(term, index, kind, content[at + _DATA_AT : at + lib.WAL_RECORD_BYTES + length])
        path = self._directory / segments.segment_name(sequence)
        raise Damaged(path, offset, f"entry {index} can no longer be read, though it was written here")

    def _read_bytes(self, sequence: int, offset: int, size: int) -> bytes:
        path = self._directory / segments.segment_name(sequence)
        fd = self._files.get(sequence)
        if fd is None:
            fd = self._files[sequence] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        content = os.pread(fd, size, offset)
        while len(content) < size:
            more = os.pread(fd, size - len(content), offset + len(content))
            if not more:
                raise Damaged(path, offset + len(content), "the file is shorter than it was")
            content += more
        return content

    def release(self, index: int) -> None:
        """Entries up to `index` are no longer needed: segments that hold no others become spares or are removed.

        Happens in the background, whole segments only, never the newest one; so entries at or below `index` may well
        stay readable. The caller keeps what those entries made durable elsewhere. Raises JournalFailed.
        """
        writer, places = self._open_writer(), self._places
        needed = places.needed_from(index)
        if needed is None:
            needed = lib.wal_newest(writer)
        if needed <= self._oldest:
            return
        hit("journalBeforeRelease")
        error = lib.wal_release(writer, needed)
        if error:
            self._refuse(error)
        self._oldest = needed
        places.forget_before(needed)
        for sequence in [sequence for sequence in self._files if sequence < needed]:
            os.close(self._files.pop(sequence))
        hit("journalAfterRelease")

    @property
    def first_index(self) -> int:
        """The oldest entry kept; last index + 1 if there is none."""
        return self._places.prev[0] + 1

    @property
    def last_index(self) -> int:
        """The newest entry handed over."""
        return self._places.last_index

    def room(self) -> int:
        """Bytes that can be appended whatever the disk says, overheads (see the constants above) included.

        What the segment has left or what a prepared one holds, whichever is more: the two together are not certain,
        since an entry is not split. 0 once the journal has failed.
        """
        room: int = lib.wal_room(self._open_writer())
        return room

    def stats(self) -> JournalStats:
        raw = ffi.new("struct wal_stats *")
        lib.wal_stats(self._open_writer(), raw)
        return JournalStats(
            raw.appends,
            raw.groups,
            raw.syncs,
            raw.bytes,
            raw.segments,
            raw.prepared,
            raw.recycled,
            raw.removed,
            raw.sync_nanoseconds / 1e9,
            list(raw.sync_buckets),
        )

    def settle(self) -> None:
        """Wait until the writer has nothing left to do, preparing and recycling included. For tests and tools.

        Raises JournalFailed."""
        if lib.wal_settle(self._open_writer()):
            self._refuse(0)

    def close(self) -> None:
        """Write and sync all that was handed over, and let go of the directory. A second call does nothing.

        Raises JournalFailed if not everything became durable; the journal is closed all the same.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        failed = lib.wal_close(writer)
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        os.close(self._lock)
        if failed:
            raise JournalFailed(failed, os.strerror(failed), str(self._directory))

    def _open_writer(self) -> Any:
        if self._writer is None:
            raise ValueError("the journal is closed")
        return self._writer

    def _refuse(self, error: int) -> NoReturn:
        """Raise what an errno of the writer means."""
        failed = lib.wal_failed(self._writer)
        if failed:
            raise JournalFailed(failed, os.strerror(failed), str(self._directory))
        if error in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(error, os.strerror(error), str(self._directory))
        if error == errno.ENOMEM:
            raise MemoryError
        if error == errno.EMSGSIZE:
            raise ValueError("an entry does not fit into a segment")
        raise ValueError("the entries' indexes or terms do not follow")


def _load(directory: Path, ids: tuple[int, int]) -> tuple[segments.Segment | None, Places]:
    """Read all segments. Raises Damaged at the first thing that is wrong."""
    last: segments.Segment | None = None
    places = Places((0, 0))
    for segment in segments.walk(directory, ids):
        if isinstance(segment, Damaged):
            raise segment
        if last is None:
            places = Places(segment.header.prev)
        for run in segment.runs:
            below = run.first - 1
            if below >= places.prev[0] and places.term(below) != run.prev_term:
                raise Damaged(
                    segment.path, 0, f"it says that entry {below} is of term {run.prev_term}, which it is not"
                )
            if below < places.last_index:
                places.cut(below, run.prev_term)
            if run.offsets:
                places.add_many(run.first, run.term, segment.header.sequence, run.offsets, segment.end)
        last = segment
    return last, places


def _sync_names_above(directory: Path) -> None:
    """Make the directory's own name durable, and those of the ones above it that may be as new, as far as we may."""
    for above in directory.resolve().parents:
        try:
            fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return  # not ours, so not made by us
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _take_lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "the log is in use by another process", str(directory)) from None


def _usable_spares(directory: Path, numbers: list[int], segment_bytes: int) -> list[int]:
    """Spares of the right size with all their blocks; the others are removed."""
    usable: list[int] = []
    for number in numbers:
        path = directory / segments.spare_name(number)
        stat = path.stat()
        if stat.st_size == segment_bytes and stat.st_blocks * 512 >= segment_bytes and len(usable) < lib.WAL_SPARES_MAX:
            usable.append(number)
        else:
            path.unlink()
    return usable


def _remove_leftovers(directory: Path, sequences: list[int], oldest: int) -> None:
    """Remove segments that the log itself says are not needed: a crash stopped their recycling."""
    for sequence in sequences:
        if sequence < oldest:
            (directory / segments.segment_name(sequence)).unlink()
