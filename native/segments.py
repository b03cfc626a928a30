"""A directory of log segments as it lies on disk: read, checked against itself, told to people.

    0000000000000007.wal  0000000000000008.wal  0000000000000009.wal   00000000000000a1.spare   spare.tmp
      |  header: how 6 ended   |  header: how 7 ended   |                  |                       |
      |  records ...           |  records ...           |  records, end    ready for later         being prepared
      +------------------------+------------------------+-- oldest: 7

Every segment but the last must end exactly where and how (chain of checksums) its successor's header says; the oldest
must be the one that the last segment names as the oldest needed. So a segment that is missing, shortened, swapped,
copied over another, or of another member is found here, and everything found is `Damaged`: nothing is repaired, since
whatever is wrong with what had been synced is no work of a crash. The one thing a crash does leave is a torn tail in
the last segment; `wal_scan_segment` in wal_read.c tells the two apart, and the writer cuts it.

What can't be seen from here: that the newest segments are gone, or that the whole directory is an old copy. The raft
process compares the log with the store for that. Reads only; `locked` takes and drops the lock to see whether it can.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from native._wal import ffi, lib

ADVICE = (
    "Nothing was changed. Do not delete segments to make it start: what this member has promised would be lost. "
    "Keep a copy of the directory, look at it with `kvorum wal verify`, put back the undamaged file if the disk or a "
    "copy of this very state has it, or remove the member from the cluster and add it again with an empty directory."
)
_SEGMENT = re.compile(r"([0-9a-f]{16})\.wal")
_SPARE = re.compile(r"([0-9a-f]{16})\.spare")
_TYPES = {
    lib.WAL_ENTRY: "entry",
    lib.WAL_HARD_STATE: "hard state",
    lib.WAL_CUT: "cut",
    lib.WAL_MARK: "mark",
    lib.WAL_RELEASE: "release",
}


class Damaged(Exception):
    """What is on disk is not what was written there. Names file and offset, and what to do."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(f"{path}, offset {offset}: {what}. {ADVICE}")
        self.path, self.offset, self.what = path, offset, what


class Header(NamedTuple):
    """A segment's header; the fields are described in WAL.md."""

    cluster_id: int
    member_id: int
    log_id: int
    sequence: int
    oldest: int
    prev: tuple[int, int]  # (index, term)
    hard: tuple[int, int, int]  # (term, vote, commit)
    capacity: int
    prev_end: int
    prev_chain: int


class Run(NamedTuple):
    """Consecutive entries of one term. Entries from `first` on that came before them no longer count.

    `prev_term` is the term of the entry before `first`. Without offsets a run says only where the log was cut.
    """

    first: int
    prev_term: int
    term: int
    offsets: array[int]


class Segment(NamedTuple):
    """A sound segment: its header, and what its records make of it."""

    path: Path
    header: Header
    runs: list[Run]
    records: int
    end: int
    last: tuple[int, int]  # (index, term) of the last entry
    hard: tuple[int, int, int]
    oldest: int
    base: int
    chain: int
    dirty: int


class Listing(NamedTuple):
    """The names in a log's directory: sequences of segments and numbers of spares, ascending."""

    segments: list[int]
    spares: list[int]


class Finding(NamedTuple):
    """One line of `verify`. `ok` is false for damage."""

    file: str
    offset: int
    ok: bool
    text: str


class Dumped(NamedTuple):
    """One line of `dump`: a record, or (type "header") what a segment begins with. `data` is an entry's data."""

    file: str
    offset: int
    size: int
    type: str
    fields: dict[str, int]
    data: bytes


def segment_name(sequence: int) -> str:
    return f"{sequence:016x}.wal"


def spare_name(number: int) -> str:
    return f"{number:016x}.spare"


def listing(directory: Path) -> Listing:
    segments, spares = [], []
    for name in os.listdir(directory):
        if found := _SEGMENT.fullmatch(name):
            segments.append(int(found[1], 16))
        elif found := _SPARE.fullmatch(name):
            spares.append(int(found[1], 16))
    return Listing(sorted(segments), sorted(spares))


def locked(directory: Path) -> bool:
    """Whether a running process holds the log."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return True
    finally:
        os.close(fd)
    return False


def walk(directory: Path, ids: tuple[int, int] | None = None) -> Iterator[Segment | Damaged]:
    """The segments that count, oldest first, each checked in itself and against its neighbours.

    Args:
      ids: cluster id and member id that all of them must carry; None to take any.
    Damage is yielded in place of the segment it was found in; what follows is still looked at. Raises OSError.
    """
    reader = _Reader()
    present = listing(directory).segments
    if not present:
        return
    headers = {sequence: reader.header(directory / segment_name(sequence), sequence, ids) for sequence in present}
    newest = present[-1]
    last = reader.scan(directory, headers[newest], 0)
    oldest = last.oldest if isinstance(last, Segment) else present[0]
    before: Segment | None = None
    for sequence in range(oldest, newest + 1):
        path = directory / segment_name(sequence)
        header = headers.get(sequence)
        if header is None:
            yield Damaged(path, 0, f"the file is missing, while segments from {oldest:#x} to {newest:#x} are needed")
            before = None
            continue
        segment = last
        if sequence != newest:
            after = headers.get(sequence + 1)
            segment = reader.scan(directory, header, after.prev_end if isinstance(after, Header) else 0)
        if isinstance(segment, Segment) and before is not None:
            segment = _follows(segment, before)
        yield segment
        before = segment if isinstance(segment, Segment) else None


def _follows(segment: Segment, before: Segment) -> Segment | Damaged:
    """`segment` if its header vouches for `before`, as it is."""
    header = segment.header
    if header.log_id != before.header.log_id:
        return Damaged(segment.path, 0, f"it is of another log than {before.path.name}")
    said = (header.prev_end, header.prev_chain, header.prev, header.hard)
    if said != (before.end, before.chain, before.last, before.hard):
        return Damaged(segment.path, 0, f"it does not continue {before.path.name}: one of the two was replaced")
    return segment


class _Reader:
    """Reads whole segments into one buffer, since each is as large as all others."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def read(self, path: Path, size: int) -> int:
        """Fill the buffer with the first `size` bytes of a file. Returns how many there are."""
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        with open(path, "rb", buffering=0) as file, memoryview(self._buffer) as view:
            have = 0
            while have < size:
                got = file.readinto(view[have:size])
                if not got:
                    break
                have += got
            return have

    def header(self, path: Path, sequence: int, ids: tuple[int, int] | None) -> Header | Damaged:
        have = self.read(path, lib.WAL_HEADER_BYTES)
        raw = ffi.new("struct wal_header *")
        verdict = lib.wal_header_read(ffi.from_buffer(self._buffer), have, raw)
        if verdict == lib.WAL_HEADER_NEWER:
            return Damaged(path, 0, "it was written by a newer version of kvorum, which is the one to start")
        if verdict != lib.WAL_HEADER_OK:
            why = {lib.WAL_HEADER_SHORT: "is cut off", lib.WAL_HEADER_FOREIGN: "is not of a segment"}
            return Damaged(path, 0, f"the header {why.get(verdict, 'is damaged')}")
        if raw.sequence != sequence:
            return Damaged(path, 0, f"it holds segment {raw.sequence:#x}, so it was renamed or copied")
        if ids is not None and ids != (raw.cluster_id, raw.member_id):
            whose = f"cluster {raw.cluster_id:#x}, member {raw.member_id:#x}"
            return Damaged(path, 0, f"it is of {whose}, not of cluster {ids[0]:#x}, member {ids[1]:#x}")
        return _header(raw)

    def scan(self, directory: Path, header: Header | Damaged, limit: int) -> Segment | Damaged:
        """Read a segment; `limit` is where it must end, 0 if nothing is known about that."""
        if isinstance(header, Damaged):
            return header
        path = directory / segment_name(header.sequence)
        have = self.read(path, limit or header.capacity)
        raw, scan = ffi.new("struct wal_header *"), ffi.new("struct wal_scan *")
        bytes_ = ffi.from_buffer(self._buffer)
        if lib.wal_header_read(bytes_, have, raw) != lib.WAL_HEADER_OK:
            return Damaged(path, 0, "the header changed while it was being read")
        try:
            verdict = lib.wal_scan_segment(bytes_, have, raw, limit, scan)
            if verdict < 0:
                raise MemoryError
            if verdict in (lib.WAL_CLEAN, lib.WAL_TORN):
                return _segment(path, header, scan)
            return Damaged(path, scan.end, _describe(verdict, scan, limit))
        finally:
            lib.wal_scan_free(scan)


def _describe(verdict: int, scan: Any, limit: int) -> str:
    if verdict == lib.WAL_NEWER:
        return "the record is of a type that only a newer version of kvorum knows, which is the one to start"
    if verdict == lib.WAL_DISORDER:
        return "the record is sound but does not fit the ones before it"
    if limit:
        return f"the record is unreadable, while the next segment says that records go on until offset {limit}"
    return f"the record is unreadable, while the one at offset {scan.witness} was written after it had been synced"


def _header(raw: Any) -> Header:
    return Header(
        raw.cluster_id,
        raw.member_id,
        raw.log_id,
        raw.sequence,
        raw.oldest,
        (raw.prev_index, raw.prev_term),
        _hard(raw.hard),
        raw.capacity,
        raw.prev_end,
        raw.prev_chain,
    )


def _hard(raw: Any) -> tuple[int, int, int]:
    return raw.term, raw.vote, raw.commit


def _segment(path: Path, header: Header, scan: Any) -> Segment:
    places: array[int] = array("I")
    if scan.place_count:
        places.frombytes(ffi.buffer(scan.places, scan.place_count * places.itemsize))
    runs, at = [], 0
    for i in range(scan.run_count):
        run = scan.runs[i]
        runs.append(Run(run.first, run.prev_term, run.term, places[at : at + run.count]))
        at += run.count
    return Segment(
        path,
        header,
        runs,
        scan.records,
        scan.end,
        (scan.last_index, scan.last_term),
        _hard(scan.hard),
        scan.oldest,
        scan.base,
        scan.chain,
        scan.dirty,
    )


def verify(directory: Path) -> Iterator[Finding]:
    """Check a log offline, changing nothing: a finding for each file that counts, and notes. Raises OSError."""
    if locked(directory):
        yield Finding(
            str(directory), 0, True, "in use: what is said about the last segment may be of a write in progress"
        )
    names = listing(directory)
    needed: list[int] = []
    for found in walk(directory):
        if isinstance(found, Damaged):
            needed.append(int(found.path.stem, 16))
            yield Finding(str(found.path), found.offset, False, found.what)
            continue
        needed.append(found.header.sequence)
        entries = sum(len(run.offsets) for run in found.runs)
        text = f"{found.records} records, {entries} entries, last {found.last[0]} of term {found.last[1]}"
        yield Finding(str(found.path), found.end, True, text)
        if found.dirty:
            text = f"a torn group of writes up to offset {found.dirty}, never acknowledged: the next start cuts it"
            yield Finding(str(found.path), found.end, True, text)
    for sequence in names.segments:
        if needed and sequence < needed[0]:
            yield Finding(
                str(directory / segment_name(sequence)), 0, True, "no longer needed: the next start removes it"
            )
    for number in names.spares:
        yield Finding(str(directory / spare_name(number)), 0, True, "spare")


def dump(directory: Path) -> Iterator[Dumped]:
    """All readable records of all segments in the order they were written, damaged ones left out. Raises OSError.

    A segment is read up to its first unreadable record; `verify` says what that is.
    """
    reader = _Reader()
    for sequence in listing(directory).segments:
        path = directory / segment_name(sequence)
        header = reader.header(path, sequence, None)
        if isinstance(header, Damaged):
            continue
        fields = {
            "cluster": header.cluster_id,
            "member": header.member_id,
            "log": header.log_id,
            "sequence": sequence,
            "oldest": header.oldest,
            "prev index": header.prev[0],
            "prev term": header.prev[1],
            **dict(zip(("term", "vote", "commit"), header.hard, strict=True)),
            "capacity": header.capacity,
        }
        yield Dumped(str(path), 0, lib.WAL_HEADER_BYTES, "header", fields, b"")
        have = reader.read(path, header.capacity)
        yield from _dump_records(str(path), bytes(reader._buffer[:have]), header)


def _dump_records(file: str, content: bytes, header: Header) -> Iterator[Dumped]:
    record = ffi.new("struct wal_record *")
    whole = ffi.from_buffer(content)
    at = lib.WAL_HEADER_BYTES
    while at < len(content):
        verdict = lib.wal_record_read(whole + at, len(content) - at, header.log_id, header.sequence, at, record)
        if verdict != lib.WAL_RECORD_OK:
            return
        payload = content[at + lib.WAL_RECORD_BYTES : at + lib.WAL_RECORD_BYTES + record.length]
        fields, data = _fields(record.type, payload)
        yield Dumped(file, at, record.total, _TYPES.get(record.type, f"type {record.type}"), fields, data)
        at += record.total


def _fields(type_: int, payload: bytes) -> tuple[dict[str, int], bytes]:
    names, data = {
        lib.WAL_ENTRY: (("term", "index", "kind"), payload[lib.WAL_ENTRY_BYTES :]),
        lib.WAL_HARD_STATE: (("term", "vote", "commit"), b""),
        lib.WAL_CUT: (("index", "term"), b""),
        lib.WAL_RELEASE: (("oldest",), b""),
    }.get(type_, ((), payload))
    layout = "<QQB" if type_ == lib.WAL_ENTRY else f"<{len(names)}Q"
    if len(payload) < struct.calcsize(layout):
        return {}, payload
    return dict(zip(names, struct.unpack_from(layout, payload), strict=True)), data
