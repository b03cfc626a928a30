"""The journal: what the raft process may rely on, and what each failure of the disk does to it."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from native import segments
from native._wal import lib
from storage import failpoint
from storage.entry import Entry, HardState
from storage.journal import (
    CALL_OVERHEAD_BYTES,
    ENTRY_OVERHEAD_BYTES,
    Damaged,
    Journal,
    JournalFailed,
    NoSpace,
    Recovered,
    Released,
)
from tests.native.disk import ALLOCATE, CREATE, RENAME, SYNC, SYNC_DIR, WRITE, Disk, Nth, Op, watched
from tests.native.logs import Expected, open_journal, random_call, recover, state_of
from tests.native.memory import in_memory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """As ever, but in memory if possible; `disk_path` is on the disk."""
    with in_memory(tmp_path) as path:
        yield path


@pytest.fixture
def disk_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal with segments of 64 KiB."""
    opened, _ = open_journal(tmp_path / "wal", 64 << 10)
    yield opened
    opened.close()


def entries(first: int, count: int, *, term: int = 1, size: int = 100) -> list[Entry]:
    return [Entry(term, index, 0, b"%08d" % index * (size // 8)) for index in range(first, first + count)]


def wait(journal: Journal, position: int) -> None:
    """As the raft process does: sleep on the descriptor, then ask."""
    while journal.durable() < position:
        assert select.select([journal.fileno()], [], [], 30)[0], "the journal says nothing"


# ---- what was appended comes back


def test_a_new_log_is_empty_and_begins_at_one(tmp_path: Path) -> None:
    journal, found = open_journal(tmp_path / "deep" / "down" / "wal")
    assert found == Recovered(HardState(), (0, 0), [], 0)
    assert (journal.first_index, journal.last_index, journal.durable()) == (1, 0, 0)
    assert (tmp_path / "deep" / "down" / "wal").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "deep" / "down" / "wal").iterdir()} == {0o600}
    journal.close()


def test_what_was_appended_is_there_after_opening_again(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    journal.append(HardState(3, 2, 0), [Entry(2, 1, 0, b"a"), Entry(3, 2, 255, b""), Entry(3, 3, 0, b"c" * 1000)])
    journal.append(HardState(3, 2, 2), [])
    journal.close()
    journal, found = open_journal(tmp_path / "wal")
    assert found == Recovered(HardState(3, 2, 2), (0, 0), [(1, 2), (2, 3)], 3)
    assert journal.read(1, 3, 1 << 20) == [Entry(2, 1, 0, b"a"), Entry(3, 2, 255, b""), Entry(3, 3, 0, b"c" * 1000)]
    journal.close()


def test_a_random_life_with_restarts_ends_as_the_model_says(disk_path: Path) -> None:
    """Replaced tails, new terms, segments of every filling, opened again thirty times."""
    dice, expected = random.Random(7), Expected()
    for _ in range(30):
        journal, found = open_journal(disk_path / "wal")
        assert state_of(journal, found) == expected.states[-1]
        for _ in range(dice.randint(0, 12)):
            call = random_call(dice, expected.states[-1])
            journal.append(call.hard, call.entries)
            expected.call(call)
        journal.close()
    assert recover(disk_path / "wal") == expected.states[-1]


def test_the_newest_of_two_entries_with_one_index_counts(journal: Journal, tmp_path: Path) -> None:
    """Raft paper 5.3: a conflicting entry and all that follow it are replaced."""
    journal.append(HardState(1, 1, 0), entries(1, 5))
    journal.append(HardState(2, 0, 0), entries(3, 1, term=2))
    wait(journal, journal.append(None, entries(4, 1, term=2)))
    assert journal.last_index == 4
    assert [entry.term for entry in journal.read(1, 9, 1 << 20)] == [1, 1, 2, 2]
    journal.close()
    reopened, found = open_journal(tmp_path / "wal")
    assert (found.terms, found.last_index) == ([(1, 1), (3, 2)], 4)
    reopened.close()


def test_a_tail_can_be_cut_down_to_the_very_first_entry(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    journal.append(HardState(1, 1, 0), entries(1, 40))
    journal.append(HardState(2, 1, 0), entries(1, 1, term=2))
    journal.close()
    journal, found = open_journal(tmp_path / "wal")
    assert (found.prev, found.terms, found.last_index) == ((0, 0), [(1, 2)], 1)
    journal.close()


def test_an_entry_of_eight_mebibytes_fits_into_a_segment_far_smaller_than_usual(tmp_path: Path) -> None:
    """DESIGN section 2: a batch is at most 8 MiB, and a log entry holds one with a little around it."""
    journal, _ = open_journal(tmp_path / "wal", 24 << 20)
    big = Entry(1, 1, 0, random.Random(1).randbytes((8 << 20) + 4096))
    wait(journal, journal.append(None, [big, big._replace(index=2)]))
    assert journal.read(1, 1, 1) == [big]
    journal.close()


def test_an_entry_that_fits_into_no_segment_is_refused(journal: Journal) -> None:
    largest = (64 << 10) - lib.WAL_HEADER_BYTES - lib.WAL_MARK_RESERVE - lib.WAL_RELEASE_RESERVE - 40
    with pytest.raises(ValueError, match="does not fit"):
        journal.append(None, [Entry(1, 1, 0, bytes(largest + 8))])
    wait(journal, journal.append(None, [Entry(1, 1, 0, bytes(largest))]))
    assert journal.read(1, 1, 1)[0].data == bytes(largest)


def test_one_call_may_need_many_segments(tmp_path: Path) -> None:
    """It waits for as many spares as it takes, and is one piece all the same."""
    journal, _ = open_journal(tmp_path / "wal")
    wait(journal, journal.append(HardState(1, 1, 0), entries(1, 10, size=3000)))
    journal.settle()
    assert journal.stats().segments == 10
    assert [entry.index for entry in journal.read(1, 10, 1 << 20)] == list(range(1, 11))
    journal.close()
    assert len(recover(tmp_path / "wal").entries) == 10


def test_more_segments_than_there_may_be_spares_are_refused(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    with pytest.raises(ValueError, match="fit"):
        journal.append(None, entries(1, lib.WAL_SPARES_MAX + 2, size=3000))
    assert journal.append(None, entries(1, 1)) == 1
    journal.close()


# ---- what may be asked


@pytest.mark.parametrize(
    "wrong",
    [
        entries(7, 1),  # a hole
        entries(0, 1),
        [Entry(1, 6, 0, b""), Entry(1, 8, 0, b"")],
        [Entry(2, 6, 0, b""), Entry(1, 7, 0, b"")],  # a term that falls
        [Entry(0, 6, 0, b"")],  # and one below the last
        entries(3, 1, term=0),
    ],
)
def test_entries_that_do_not_follow_are_refused_and_change_nothing(journal: Journal, wrong: list[Entry]) -> None:
    before = journal.append(None, entries(1, 5))
    with pytest.raises(ValueError, match=r"follow|is not in"):
        journal.append(HardState(9, 9, 9), wrong)
    assert journal.last_index == 5
    assert journal.append(None, entries(6, 1)) == before + 1


def test_numbers_out_of_range_are_refused_and_change_nothing(journal: Journal) -> None:
    for bad in (Entry(1, 1, 256, b""), Entry(1, 1, -1, b""), Entry(1 << 64, 1, 0, b"")):
        with pytest.raises(OverflowError):
            journal.append(None, [bad])
    with pytest.raises(OverflowError):
        journal.append(HardState(1, -1, 0), entries(1, 1))
    assert (journal.last_index, journal.append(None, entries(1, 1))) == (0, 1)


def test_nothing_to_append_is_no_position(journal: Journal) -> None:
    position = journal.append(None, entries(1, 1))
    assert journal.append(None, []) == position
    wait(journal, position)
    assert journal.stats().appends == 1


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    journal.close()
    journal.close()
    for call in (journal.durable, journal.room, journal.fileno, lambda: journal.append(None, entries(1, 1))):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("size", [0, 4088, 4100, (1 << 30) + 8])
def test_a_segment_size_that_makes_no_sense_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        open_journal(tmp_path / "wal", size)


# ---- reading


def test_reading_stops_before_it_passes_the_bytes_but_gives_at_least_one(journal: Journal) -> None:
    wait(journal, journal.append(None, entries(1, 50, size=80)))
    assert [e.index for e in journal.read(1, 50, 0)] == [1]
    assert [e.index for e in journal.read(1, 50, 79)] == [1]
    assert [e.index for e in journal.read(7, 50, 240)] == [7, 8, 9]
    assert [e.index for e in journal.read(7, 50, 239)] == [7, 8]
    assert [e.index for e in journal.read(7, 8, 1 << 20)] == [7, 8]
    assert len(journal.read(1, 99, 1 << 20)) == 50


def test_reading_goes_over_segments_and_around_other_records(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    for index in range(1, 120):
        journal.append(HardState(1, 1, index - 1), entries(index, 1))
    journal.settle()
    assert journal.stats().segments > 3
    for first, last, size in ((1, 119, 1 << 20), (30, 90, 1 << 20), (17, 119, 2000)):
        got = journal.read(first, last, size)
        assert got == entries(first, len(got))
        assert len(got) == min(last - first + 1, max(1, size // 96))
    journal.close()


def test_only_durable_entries_are_read(tmp_path: Path) -> None:
    """What is being written, or replaced, might not be there after a crash: nobody else may have seen it from us."""
    gate, syncing = threading.Event(), threading.Event()

    def slow_sync(op: Op) -> int:
        if op.kind == SYNC and op.name.endswith(".wal") and armed:
            syncing.set()
            gate.wait(30)
        return 0

    armed = False
    with watched(Disk(slow_sync)):
        journal, _ = open_journal(tmp_path / "wal", 64 << 10)
        wait(journal, journal.append(None, entries(1, 10)))
        armed = True
        position = journal.append(None, entries(6, 10, term=2))
        assert syncing.wait(30)
        assert [e.index for e in journal.read(1, 15, 1 << 20)] == [1, 2, 3, 4, 5]
        with pytest.raises(Released):
            journal.read(6, 15, 1 << 20)
        assert journal.durable() == position - 1
        gate.set()
        wait(journal, position)
        assert journal.read(6, 15, 1 << 20) == entries(6, 10, term=2)
        journal.close()


def test_an_entry_that_rotted_is_not_given_out(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    wait(journal, journal.append(None, entries(1, 3)))
    path = tmp_path / "wal" / segments.segment_name(1)
    at = path.read_bytes().index(b"00000002")
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"X")
    assert journal.read(1, 1, 1 << 20) == entries(1, 1)
    with pytest.raises(Damaged, match=r"0000000000000001\.wal, offset .* entry 2 can no longer be read"):
        journal.read(1, 3, 1 << 20)
    os.truncate(path, at)
    with pytest.raises(Damaged, match="shorter than it was"):
        journal.read(1, 3, 1 << 20)
    journal.close()


# ---- durability and group commit


def test_what_gathers_during_a_sync_is_synced_once(tmp_path: Path) -> None:
    """DESIGN section 5, group commit: 1000 calls while one sync is under way are one more write and one more sync."""
    gate, syncing = threading.Event(), threading.Event()

    def slow_sync(op: Op) -> int:
        if op.kind == SYNC and op.name.endswith(".wal") and armed:
            syncing.set()
            gate.wait(30)
        return 0

    armed = False
    with watched(Disk(slow_sync, keep_data=False)) as disk:
        journal, _ = open_journal(tmp_path / "wal", 1 << 20)
        journal.settle()
        before, armed = journal.stats(), True
        journal.append(HardState(1, 1, 0), entries(1, 1))
        assert syncing.wait(30)
        for index in range(2, 1002):
            position = journal.append(None, entries(index, 1))
        assert journal.durable() == 0
        seen = len(disk.ops)
        gate.set()
        wait(journal, position)
        journal.settle()
        after = journal.stats()
        writes = [op for op in disk.ops[seen:] if op.kind == WRITE and op.length > 100]
        journal.close()
    assert after.groups - before.groups == 2
    assert after.appends - before.appends == 1001
    assert len(writes) == 1


def test_positions_rise_by_one_and_the_descriptor_wakes_for_each_group(journal: Journal) -> None:
    assert [journal.append(None, entries(index, 1)) for index in range(1, 6)] == [1, 2, 3, 4, 5]
    wait(journal, 5)
    journal.settle()
    assert journal.durable() == 5
    assert not select.select([journal.fileno()], [], [], 0)[0]


def test_a_process_that_is_killed_loses_nothing_that_it_called_durable(disk_path: Path) -> None:
    """RELIABILITY D1: the log's part of it. Killed five times in the middle of appending, with small segments."""
    program = """
import select, sys
from storage.entry import Entry, HardState
from tests.native.logs import open_journal
from pathlib import Path
journal, found = open_journal(Path(sys.argv[1]))
index = found.last_index
print("durable", index, flush=True)
while True:
    for _ in range(3):
        index += 1
        position = journal.append(HardState(1, 1, index - 1), [Entry(1, index, 0, b"%d" % index * 9)])
    while journal.durable() < position:
        select.select([journal.fileno()], [], [])
    print("durable", index, flush=True)
"""
    durable = 0
    for turn in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(disk_path / "wal")], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for _ in range(20 + 17 * turn):
                line = process.stdout.readline()
            process.kill()
            for late in process.stdout:
                if late.endswith("\n"):
                    line = late
        durable = int(line.split()[1])
        state = recover(disk_path / "wal")
        assert state.entries[-1].index >= durable
        assert all(entry.data == b"%d" % entry.index * 9 for entry in state.entries)


# ---- letting go


def test_whole_segments_are_released_and_their_files_used_again(disk_path: Path) -> None:
    journal, _ = open_journal(disk_path / "wal")
    for index in range(1, 200):
        journal.append(HardState(1, 1, index - 1), entries(index, 1))
    journal.settle()
    journal.release(100)
    journal.settle()
    first = journal.first_index
    assert 60 < first <= 101
    with pytest.raises(Released):
        journal.read(first - 1, 199, 100)
    assert journal.read(first, 199, 1 << 20) == entries(first, 200 - first)
    stats = journal.stats()
    assert stats.recycled >= 1
    assert len(list((disk_path / "wal").glob("*.wal"))) == stats.segments - stats.recycled - stats.removed
    journal.close()
    journal, found = open_journal(disk_path / "wal")
    assert (found.prev, found.terms, found.last_index) == ((first - 1, 1), [(first, 1)], 199)
    assert found.hard_state == HardState(1, 1, 198)
    journal.close()


def test_the_newest_segment_is_never_released(journal: Journal) -> None:
    wait(journal, journal.append(HardState(1, 1, 0), entries(1, 5)))
    journal.release(5)
    journal.settle()
    assert journal.first_index == 1
    assert len(journal.read(1, 5, 1 << 20)) == 5


def test_releasing_everything_keeps_the_place_where_the_log_goes_on(tmp_path: Path) -> None:
    """The last segment may hold no entry at all; its header still knows index and term."""
    journal, _ = open_journal(tmp_path / "wal")
    journal.append(HardState(4, 1, 0), entries(1, 30, term=4))
    while journal.stats().segments < 3:
        journal.append(HardState(5, 1, 30), [])
        journal.settle()
    journal.release(30)
    assert journal.first_index == 31
    with pytest.raises(ValueError, match="is not in"):
        journal.append(None, entries(30, 1, term=5))
    journal.append(HardState(5, 2, 30), [])
    journal.close()
    journal, found = open_journal(tmp_path / "wal")
    assert found == Recovered(HardState(5, 2, 30), (30, 4), [], 30)
    journal.append(None, entries(31, 1, term=5))
    journal.close()
    assert recover(tmp_path / "wal").entries[-1] == entries(31, 1, term=5)[0]


def test_a_cut_below_a_released_segment_s_successor_stays_readable(tmp_path: Path) -> None:
    """Entries 1..60 fill several segments; the tail from 20 on is replaced, which lies in a later segment whose header
    knows only of 60. After releasing 19 the log must begin with 20 of the new term."""
    journal, _ = open_journal(tmp_path / "wal")
    journal.append(HardState(1, 1, 0), entries(1, 60))
    while journal.stats().segments < 5:
        journal.append(HardState(1, 1, 0), [])
        journal.settle()
    journal.append(HardState(2, 1, 0), entries(20, 3, term=2))
    journal.settle()
    journal.release(19)
    journal.settle()
    assert (journal.first_index, journal.last_index) == (20, 22)
    journal.close()
    journal, found = open_journal(tmp_path / "wal")
    assert (found.prev, found.terms, found.last_index) == ((19, 1), [(20, 2)], 22)
    assert journal.read(20, 22, 1 << 20) == entries(20, 3, term=2)
    with pytest.raises(ValueError, match="is not in"):
        journal.append(None, entries(19, 1, term=2))
    journal.close()


# ---- failures


def live(directory: Path, durable: Callable[[int], None]) -> None:
    """Open a log and append, wait, append, through two dozen segments. `durable` is told each index that is on disk."""
    journal, _ = open_journal(directory)
    try:
        for index in range(1, 75):
            wait(journal, journal.append(HardState(1, 1, index - 1), entries(index, 1, size=1000)))
            durable(index)
    except JournalFailed:
        _everything_fails(journal)
        raise


FAILURES = {
    "sync": lambda op: op.kind == SYNC,
    "sync_dir": lambda op: op.kind == SYNC_DIR,
    "write": lambda op: op.kind == WRITE,
    "rename": lambda op: op.kind == RENAME,
    "create": lambda op: op.kind == CREATE,
    "allocate": lambda op: op.kind == ALLOCATE,
}


@pytest.mark.parametrize("n", range(1, 21))
@pytest.mark.parametrize("what", FAILURES)
def test_the_nth_failure_is_final_and_loses_nothing_durable(tmp_path: Path, what: str, n: int) -> None:
    """RELIABILITY F11, D4, T3. Wherever it strikes: errno kept, nothing durable afterwards, every later call fails."""
    policy = Nth(n, errno.EIO, FAILURES[what])
    reported: list[int] = [0]
    with watched(Disk(policy, keep_data=False)), pytest.raises(JournalFailed) as failure:
        live(tmp_path / "wal", reported.append)
    assert failure.value.errno == errno.EIO
    assert policy.struck.is_set()
    state = recover(tmp_path / "wal")
    last = state.entries[-1].index if state.entries else 0
    assert reported[-1] <= last <= reported[-1] + 1
    assert state.entries == tuple(entries(1, last, size=1000))


def _everything_fails(journal: Journal) -> None:
    """A journal that failed once never works again, and never counts anything durable."""
    position = lib.wal_durable(journal._writer)
    calls = (
        journal.durable,
        journal.settle,
        lambda: journal.append(HardState(9, 9, 9), []),
        lambda: journal.append(None, entries(journal.last_index + 1, 1)),
    )
    for _ in range(2):
        for call in calls:
            with pytest.raises(JournalFailed) as failure:
                call()
            assert failure.value.errno == errno.EIO
    assert journal.room() == 0
    assert lib.wal_durable(journal._writer) == position
    with pytest.raises(JournalFailed):
        journal.close()


def test_a_sync_that_fails_once_and_then_succeeds_is_not_believed(tmp_path: Path) -> None:
    """RELIABILITY D4: the kernel may report a failed write-back once and call the pages clean afterwards."""
    policy = Nth(0, errno.EIO, lambda op: op.kind == SYNC and op.name.endswith(".wal"))
    with watched(Disk(policy)) as disk:
        journal, _ = open_journal(tmp_path / "wal", 64 << 10)
        wait(journal, journal.append(None, entries(1, 1)))
        journal.settle()
        policy.n = policy.count + 1
        position = journal.append(None, entries(2, 1))
        with pytest.raises(JournalFailed, match="Input/output error"):
            wait(journal, position)  # a failure is news too, perhaps behind an older one
        syncs = sum(op.kind == SYNC for op in disk.ops)
        with pytest.raises(JournalFailed):
            journal.append(None, entries(3, 1))
        with pytest.raises(JournalFailed):
            journal.close()
        assert sum(op.kind == SYNC for op in disk.ops) == syncs  # never tried again


def test_what_was_never_vouched_for_is_written_again_on_opening(tmp_path: Path) -> None:
    """RELIABILITY D4: after a failed sync the page cache may hold, as clean, what the disk never got. Syncing it proves
    nothing; so the new process writes it once more before it calls it recovered."""
    policy = Nth(0, errno.EIO, lambda op: op.kind == SYNC and op.name.endswith(".wal"))
    with watched(Disk(policy)):
        journal, _ = open_journal(tmp_path / "wal", 64 << 10)
        wait(journal, journal.append(None, entries(1, 1)))
        journal.settle()
        policy.n = policy.count + 1
        journal.append(None, entries(2, 1))
        with pytest.raises(JournalFailed):
            journal.settle()
        with pytest.raises(JournalFailed):
            journal.close()
    with watched(Disk()) as disk:
        journal, found = open_journal(tmp_path / "wal", 64 << 10)
        assert found.last_index == 2
        kinds = [op.kind for op in disk.ops if op.name.endswith(".wal")]
        assert kinds.index(WRITE) < kinds.index(SYNC)
        assert entries(2, 1)[0].data in next(op.data for op in disk.ops if op.kind == WRITE)
        journal.close()


@pytest.mark.parametrize("piece", [1, 7, 4095])
def test_short_writes_and_interruptions_are_carried_on(tmp_path: Path, piece: int) -> None:
    """RELIABILITY T3: a write may do less than it was asked to, and any call may be interrupted."""
    turn = 0

    def grudging(op: Op) -> int:
        nonlocal turn
        turn += 1
        if turn % 3 == 0 and op.kind in (SYNC, SYNC_DIR, WRITE, ALLOCATE, CREATE):
            return errno.EINTR
        return -piece if op.kind == WRITE and op.name.endswith(".wal") else 0

    with watched(Disk(grudging)):
        journal, _ = open_journal(tmp_path / "wal")
        for index in range(1, 60):
            journal.append(HardState(1, 1, 0), entries(index, 1))
        journal.close()
    assert recover(tmp_path / "wal").entries == tuple(entries(1, 59))


class Full:
    """A policy: while `full`, the disk gives no space for new files, and says so at `kind` of their changes."""

    def __init__(self, error: int, kind: int) -> None:
        self.full, self.error, self.kind = False, error, kind

    def __call__(self, op: Op) -> int:
        new = op.kind == self.kind and (op.kind not in (WRITE, SYNC) or op.name.endswith(".tmp"))
        return self.error if self.full and new else 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", [CREATE, ALLOCATE, WRITE, SYNC])
def test_a_full_disk_is_refused_before_anything_is_accepted(tmp_path: Path, kind: int, error: int) -> None:
    """RELIABILITY F16. What fits goes on, what does not is refused whole, and when space comes back so does the log."""
    policy = Full(error, kind)
    with watched(Disk(policy, keep_data=False)):
        journal, _ = open_journal(tmp_path / "wal")
        journal.settle()
        policy.full = True
        accepted = 0
        while True:
            room = journal.room()
            batch = entries(accepted + 1, 3, size=200)
            try:
                position = journal.append(HardState(1, 1, accepted), batch)
            except NoSpace as caught:
                refusal = caught
                break
            accepted += 3
        assert refusal.errno == error
        assert room < 3 * (200 + ENTRY_OVERHEAD_BYTES) + CALL_OVERHEAD_BYTES  # room() had said so
        assert accepted > 20  # the current segment and the spare
        assert journal.last_index == accepted
        wait(journal, position)
        journal.append(HardState(1, 7, 0), [])  # a small one still fits
        policy.full = False
        with pytest.raises(NoSpace):
            journal.append(None, entries(accepted + 1, 30, size=200))
        journal.settle()
        wait(journal, journal.append(None, entries(accepted + 1, 3, size=200)))
        journal.close()
    state = recover(tmp_path / "wal")
    assert (state.hard, state.entries) == (HardState(1, 7, 0), tuple(entries(1, accepted + 3, size=200)))


def fill_up(journal: Journal, first: int, shift: int) -> int:
    """Append smaller and smaller things until nothing fits, one of `shift` bytes among them. Returns the last index."""
    for size, times in ((1000, 99), (shift, 1), (104, 99), (8, 99), (0, 99)):
        for _ in range(times):
            try:
                journal.append(None, entries(first, 1, size=size))
            except NoSpace:
                break
            first += 1
            journal.settle()
    while True:
        try:
            journal.append(HardState(1, 1, 0), [])
        except NoSpace:
            return first - 1
        journal.settle()


@pytest.mark.parametrize("shift", range(0, 96, 8))
def test_releasing_makes_room_on_a_full_disk(tmp_path: Path, shift: int) -> None:
    """What frees space must not need any: the release has bytes of its own at the end of each segment."""
    policy = Full(errno.ENOSPC, ALLOCATE)
    with watched(Disk(policy, keep_data=False)):
        journal, _ = open_journal(tmp_path / "wal")
        journal.append(None, entries(1, 60))
        journal.settle()
        policy.full = True
        last = fill_up(journal, 61, shift)
        for _ in range(5):
            assert journal.room() < ENTRY_OVERHEAD_BYTES
            journal.release(last)
            journal.settle()
            assert fill_up(journal, last + 1, shift) > last
            last = journal.last_index
        journal.close()
    assert recover(tmp_path / "wal").entries[-1].index == last


def test_a_first_segment_that_finds_no_space_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    policy = Full(errno.ENOSPC, ALLOCATE)
    policy.full = True
    with watched(Disk(policy)):
        with pytest.raises(NoSpace):
            open_journal(tmp_path / "wal")
        policy.full = False
        journal, found = open_journal(tmp_path / "wal")
        assert found.last_index == 0
        journal.close()


def test_the_disk_that_was_full_is_asked_again_without_being_told(tmp_path: Path) -> None:
    """room() is what a leader looks at before it takes proposals: it must come back by itself."""
    policy = Full(errno.ENOSPC, ALLOCATE)
    refused = threading.Event()
    asked_again = threading.Event()

    def watch(op: Op) -> int:
        answer = policy(op)
        if answer:
            (asked_again if refused.is_set() else refused).set()
        return answer

    with watched(Disk(watch, keep_data=False)):
        journal, _ = open_journal(tmp_path / "wal")
        journal.settle()
        policy.full = True
        journal.append(None, entries(1, 20, size=200))
        assert refused.wait(30)
        assert asked_again.wait(30)
        journal.close()


# ---- one process at a time, and the right one


def test_a_second_opener_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    """RELIABILITY T9: an old process that wakes up must find the door locked."""
    journal, _ = open_journal(tmp_path / "wal")
    with pytest.raises(BlockingIOError, match="in use by another process"):
        open_journal(tmp_path / "wal")
    journal.append(None, entries(1, 1))
    journal.close()
    assert len(recover(tmp_path / "wal").entries) == 1


def test_another_member_s_log_is_refused(tmp_path: Path) -> None:
    """RELIABILITY F15: a swapped disk."""
    open_journal(tmp_path / "wal")[0].close()
    for cluster, member in ((1, 0xA2), (0xC1, 2)):
        with pytest.raises(Damaged, match=r"it is of cluster 0xc1, member 0xa2, not of"):
            Journal.open(tmp_path / "wal", cluster_id=cluster, member_id=member)


def test_segments_of_another_size_are_read_and_new_ones_made(tmp_path: Path) -> None:
    sizes = (4096, 8192, 4096, 16384)
    last = 0
    for size in sizes:
        journal, found = open_journal(tmp_path / "wal", size)
        assert found.last_index == last
        for index in range(last + 1, last + 101):
            journal.append(HardState(1, 1, last), entries(index, 1))
        journal.close()
        last += 100
    assert {path.stat().st_size for path in (tmp_path / "wal").glob("*.wal")} == set(sizes)
    journal, _ = open_journal(tmp_path / "wal", 8192)
    assert journal.read(1, last, 1 << 20) == entries(1, last)
    journal.release(last)
    journal.settle()
    journal.close()
    assert {path.stat().st_size for path in (tmp_path / "wal").glob("*.spare")} <= {8192}


def test_a_log_of_many_entries_takes_four_bytes_of_memory_for_each(tmp_path: Path) -> None:
    """So that millions of entries are a few megabytes. Small ones in large calls: it isn't the disk that is tested."""
    journal, _ = open_journal(tmp_path / "wal", 4 << 20)
    for first in range(1, 200_001, 2000):
        journal.append(None, [Entry(1, index, 0, b"") for index in range(first, first + 2000)])
    journal.close()
    journal, found = open_journal(tmp_path / "wal", 4 << 20)
    assert (found.terms, found.last_index) == ([(1, 1)], 200_000)
    assert sum(len(span.offsets) * span.offsets.itemsize for span in journal._places.spans) == 800_000
    assert journal.read(123_456, 123_456, 1)[0].index == 123_456
    journal.close()


# ---- where tests strike


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("journalBeforeAppend", False),
        ("journalAfterAppend", None),  # handed over, not waited for
        ("journalBeforeRelease", True),
        ("journalAfterRelease", True),
    ],
)
def test_a_crash_at_each_failpoint_leaves_a_log_that_opens(tmp_path: Path, name: str, there: bool | None) -> None:
    program = """
import sys
from pathlib import Path
from storage import failpoint
from storage.entry import Entry
from tests.native.logs import open_journal
journal, _ = open_journal(Path(sys.argv[1]))
for index in range(1, 60):
    journal.append(None, [Entry(1, index, 0, bytes(100))])
journal.settle()
failpoint.arm(sys.argv[2] + ":panic")
journal.append(None, [Entry(1, 60, 0, b"last")])
journal.settle()
journal.release(40)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "wal"), name], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    last = recover(tmp_path / "wal").entries[-1].index
    assert last in ((59, 60) if there is None else (60,) if there else (59,))


def test_an_error_at_a_failpoint_is_an_error_of_the_journal(journal: Journal) -> None:
    failpoint.arm("journalBeforeAppend:error(EIO)")
    try:
        with pytest.raises(OSError, match="journalBeforeAppend"):
            journal.append(None, entries(1, 1))
    finally:
        failpoint.arm("")
    assert journal.append(None, entries(1, 1)) == 1
