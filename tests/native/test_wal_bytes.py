"""Every byte of a log cut, every bit flipped: what comes back is an exact prefix of what was written, or a refusal."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from native import segments
from native._wal import ffi, lib
from storage.journal import Damaged

from .logs import Expected, State, build, copied, peek, random_calls, recover

HEADER = lib.WAL_HEADER_BYTES


class Log(NamedTuple):
    """A closed log of several segments."""

    directory: Path
    expected: Expected
    files: list[Path]

    @property
    def final(self) -> State:
        return self.expected.states[-1]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    directory = tmp_path_factory.mktemp("log") / "wal"
    expected = build(directory, random_calls(random.Random(20), 30))
    files = sorted(directory.glob("*.wal"))
    assert len(files) >= 3
    return Log(directory, expected, files)


def end_of(path: Path) -> int:
    """Where the records of a file end."""
    return next(s.end for s in segments.walk(path.parent) if isinstance(s, segments.Segment) and s.path == path)


def remove_last_mark(path: Path) -> int:
    """Make the last group look as a crash of the machine can leave it: synced, but nothing says so. Returns its end."""
    end = end_of(path)
    content = bytearray(path.read_bytes())
    assert content[end - 12] == lib.WAL_MARK
    content[end - 24 : end] = bytes(24)
    path.write_bytes(content)
    return end - 24


def damaged(directory: Path) -> Damaged | None:
    """What the directory is refused for."""
    try:
        peek(directory)
    except Damaged as damage:
        return damage
    return None


class Memory:
    """One segment in memory, to be changed and read thousands of times."""

    def __init__(self, path: Path, limit: int) -> None:
        self.content = bytearray(path.read_bytes())
        self.original = bytes(self.content)
        self.bytes = ffi.from_buffer(self.content)
        self.header = ffi.new("struct wal_header *")
        self.limit = limit
        assert lib.wal_header_read(self.bytes, len(self.content), self.header) == lib.WAL_HEADER_OK
        self.log_id, self.sequence = self.header.log_id, self.header.sequence

    def scan(self, size: int | None = None) -> tuple[int, Any]:
        scan = ffi.gc(ffi.new("struct wal_scan *"), lib.wal_scan_free)
        size = len(self.content) if size is None else size
        return lib.wal_scan_segment(self.bytes, size, self.header, self.limit, scan), scan

    def records(self, end: int) -> Iterator[tuple[int, int]]:
        """(offset, size) of the records as they can be read now, one after the other."""
        record, at = ffi.new("struct wal_record *"), HEADER
        while at < end:
            args = (self.bytes + at, len(self.content) - at, self.log_id, self.sequence, at, record)
            if lib.wal_record_read(*args) != lib.WAL_RECORD_OK:
                return
            yield at, record.total
            at += record.total

    def flip(self, bit: int) -> None:
        self.content[bit >> 3] ^= 1 << (bit & 7)


def test_the_last_segment_cut_at_every_byte_gives_an_exact_prefix(log: Log, tmp_path: Path) -> None:
    """RELIABILITY F12: all byte cuts. A cut header is refused: a segment gets its name after its header is synced."""
    last = log.files[-1]
    end, content = end_of(last), last.read_bytes()
    records = [line for line in segments.dump(log.directory) if line.type not in ("header", "mark")]
    before = [line for line in records if line.file != str(last)]
    ends = [line.offset + line.size for line in records[len(before) :]]
    assert len(ends) > 10
    with copied(log.directory, tmp_path / "wal") as directory:
        for length in range(end + 1):
            (directory / last.name).write_bytes(content[:length])
            if length < HEADER:
                assert damaged(directory) is not None
                continue
            whole = len(before) + sum(place <= length for place in ends)
            assert peek(directory) == log.expected.states[whole]


def test_an_earlier_segment_cut_anywhere_is_refused(log: Log, tmp_path: Path) -> None:
    """RELIABILITY F15. Its successor says where it ends, so losing any of it is seen, to the byte."""
    first = log.files[0]
    end, content = end_of(first), first.read_bytes()
    with copied(log.directory, tmp_path / "wal") as directory:
        for length in range(0, end, 7):
            (directory / first.name).write_bytes(content[:length])
            damage = damaged(directory)
            assert damage is not None
            assert damage.path.name == first.name
        (directory / first.name).write_bytes(content[:end])
        assert peek(directory) == log.final


def test_zeros_from_any_byte_on_are_a_torn_tail_only_in_the_last_segment(log: Log, tmp_path: Path) -> None:
    """RELIABILITY T4: preallocated zeros look like the end. In a segment with a successor they are damage."""
    for path, refused in ((log.files[-1], False), (log.files[0], True)):
        end, content = end_of(path), path.read_bytes()
        with copied(log.directory, tmp_path / "wal") as directory:
            for at in range(HEADER, end, 5):
                (directory / path.name).write_bytes(content[:at] + bytes(len(content) - at))
                if refused:
                    assert damaged(directory) is not None
                else:
                    assert peek(directory) in set(log.expected.states)


def test_garbage_from_any_byte_on_is_cut(log: Log, tmp_path: Path) -> None:
    """RELIABILITY section 6, torn tails: garbage after any byte of the last records is never taken for a record."""
    last, dice = log.files[-1], random.Random(5)
    end, content, states = end_of(last), last.read_bytes(), set(log.expected.states)
    with copied(log.directory, tmp_path / "wal") as directory:
        for at in range(max(HEADER, end - 600), end):
            (directory / last.name).write_bytes(content[:at] + dice.randbytes(len(content) - at))
            assert peek(directory) in states


@pytest.mark.parametrize("number", [0, 1, -1], ids=["first", "middle", "last"])
def test_no_flipped_bit_is_ever_served_as_data(log: Log, number: int) -> None:
    """RELIABILITY F13. Every bit of a segment: each record that still reads is, byte for byte, one that was written."""
    path = log.files[number]
    end = end_of(path)
    memory = Memory(path, 0 if number == -1 else end)
    written = list(memory.records(end))
    assert len(written) > 5
    starts = [at for at, _ in written]
    for bit in range(HEADER * 8, end * 8):
        memory.flip(bit)
        verdict, scan = memory.scan()
        hit = max(at for at in starts if at <= bit >> 3)
        assert scan.end == hit, bit  # everything before the flipped record reads, and it does not
        if number != -1 or hit != starts[-1]:
            assert verdict == lib.WAL_DAMAGED, bit  # something behind it shows that it had been synced
        else:
            assert verdict in (lib.WAL_CLEAN, lib.WAL_TORN)  # the last mark: it holds nothing
        memory.flip(bit)
    assert bytes(memory.content) == memory.original
    assert memory.scan()[0] == lib.WAL_CLEAN


def test_a_flip_in_a_header_is_refused(log: Log) -> None:
    """Every bit of a header: its checksum covers all 512 bytes."""
    memory = Memory(log.files[1], 0)
    header = ffi.new("struct wal_header *")
    for bit in range(HEADER * 8):
        memory.flip(bit)
        assert lib.wal_header_read(memory.bytes, len(memory.content), header) != lib.WAL_HEADER_OK
        memory.flip(bit)


def test_a_flip_behind_the_end_changes_nothing(log: Log) -> None:
    """What has not been written yet, or was written in an earlier life of the file, has no say."""
    memory = Memory(log.files[-1], 0)
    end = memory.scan()[1].end
    assert end < len(memory.content)
    for bit in range(end * 8, len(memory.content) * 8):
        memory.flip(bit)
        verdict, scan = memory.scan()
        assert (verdict, scan.end) == (lib.WAL_CLEAN, end)
        memory.flip(bit)


def test_a_flip_in_a_last_group_without_a_mark_is_cut_or_refused_but_never_served(log: Log, tmp_path: Path) -> None:
    """The one case that can't be told from a torn write (WAL.md, "What a flip can do"): power gone right after a sync.

    Losing the group is then possible, inventing or changing a record is not; and what came before the group stays.
    """
    with copied(log.directory, tmp_path / "wal") as directory:
        last = directory / log.files[-1].name
        end = remove_last_mark(last)
        memory = Memory(last, 0)
        starts = [at for at, _ in memory.records(end)]
        verdict, scan = memory.scan()
        assert (verdict, scan.end) == (lib.WAL_CLEAN, end)
        base = scan.base
        outcomes = set()
        for bit in range(HEADER * 8, end * 8):
            memory.flip(bit)
            verdict, scan = memory.scan()
            assert scan.end == max(at for at in starts if at <= bit >> 3)
            if scan.end < base:
                assert verdict == lib.WAL_DAMAGED
            outcomes.add(verdict)
            memory.flip(bit)
        assert lib.WAL_DAMAGED in outcomes
        assert outcomes & {lib.WAL_CLEAN, lib.WAL_TORN}


def test_a_flipped_log_is_refused_or_whole_when_really_opened(log: Log, tmp_path: Path) -> None:
    """The same through the journal: a bit of every 61st byte of every file, wherever it lies."""
    refused = 0
    with copied(log.directory, tmp_path / "wal") as directory:
        for path in log.files:
            content = path.read_bytes()
            for at in range(0, len(content), 61):
                flipped = bytearray(content)
                flipped[at] ^= 1 << (at % 8)
                (directory / path.name).write_bytes(flipped)
                damage = damaged(directory)
                if damage is None:
                    assert recover(directory) == log.final
                else:
                    refused += 1
                    assert damage.path.name == path.name
                    assert damage.offset <= at
                    with pytest.raises(Damaged, match=re.escape(f"{path.name}, offset {damage.offset}: ")):
                        recover(directory)
                (directory / path.name).write_bytes(content)
            for name in (path.name for path in directory.iterdir() if not (log.directory / path.name).exists()):
                (directory / name).unlink()
    assert refused > 50
