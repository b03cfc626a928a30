"""The power goes after any change to the disk: what was durable is there, in order, and nothing else is.

A journal works on a watched disk (disk.py) and notes when each call was handed over and when each position was
reported durable. For every prefix of its changes, and for several choices of the sectors and names that were not
synced, the directory is laid out as the power loss left it and read again. It must stand for a prefix of the records:
none that was not handed over, all that had been reported.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from native import segments
from native._wal import lib
from storage.entry import Entry, HardState
from storage.journal import Journal

from .disk import REMOVE, RENAME, SYNC, SYNC_DIR, WRITE, Crash, Disk, Op, crash, watched
from .logs import SMALL, Call, Expected, State, open_journal, peek, random_call, state_of, steps


def work(journal: Journal, disk: Disk, dice: random.Random, expected: Expected, calls: int) -> None:
    """Append at random, now and then waiting, now and then releasing, and close."""
    released = journal.first_index - 1
    for _ in range(calls):
        call = random_call(dice, expected.states[-1], floor=released)
        expected.call(call)
        disk.note("handed", len(expected.states) - 1)
        journal.append(call.hard, call.entries)
        if dice.random() < 0.4:
            journal.settle()
        disk.note("durable", expected.records_at[journal.durable()])
        if dice.random() < 0.15:
            released = max(released, journal.last_index - 8)
            journal.release(released)
    journal.close()
    disk.note("durable", len(expected.states) - 1)


def noted(ops: list[Op], name: str) -> int:
    """The highest record number that was noted as `name`."""
    return max((op.offset for op in ops if op.name == name), default=0)


def same_log(found: State, expected: State) -> bool:
    """Equal, but for entries that were released: they may be missing at the front."""
    if not found.entries:
        return found.hard == expected.hard
    first = found.entries[0].index
    return found.hard == expected.hard and found.entries == tuple(e for e in expected.entries if e.index >= first)


def records_found(found: State, expected: Expected, at_least: int, at_most: int) -> int:
    """How many records `found` stands for."""
    for n in range(at_most, at_least - 1, -1):
        if same_log(found, expected.states[n]):
            return n
    brief = (found.hard, [(entry.index, entry.term) for entry in found.entries])
    raise AssertionError(f"not a state between record {at_least} and {at_most}: {brief}")


@pytest.mark.parametrize("seed", range(4))
def test_every_moment_of_a_life_with_switches_and_recycling(tmp_path: Path, seed: int) -> None:
    """RELIABILITY F10, F12, D2: at every step of appending, switching segments, preparing and recycling them."""
    dice = random.Random(seed)
    disk, expected = Disk(), Expected()
    with watched(disk):
        journal, _ = open_journal(tmp_path / "wal")
        work(journal, disk, dice, expected, 90)
    assert sum(op.kind in (RENAME, REMOVE) and op.name.endswith(".wal") for op in disk.ops) > 1  # segments did go
    torn = 0
    for k in range(len(disk.ops) + 1):
        durable, handed = noted(disk.ops[:k], "durable"), noted(disk.ops[:k], "handed")
        for survival in ((0.0, 0.9), (0.5, 1.0))[k % 2]:
            left = crash(disk.ops[:k], {}, dice, survival)
            if not left.files:
                assert durable == 0
                continue
            directory = tmp_path / "left"
            left.put(directory)
            try:
                records_found(peek(directory), expected, durable, handed)
                torn += any(isinstance(s, segments.Segment) and s.dirty for s in segments.walk(directory))
            finally:
                shutil.rmtree(directory)
    assert torn  # groups were torn, and told from damage; how many depends on what the writer gathered into one


@pytest.mark.parametrize("seed", range(20))
def test_crash_after_crash_and_in_the_middle_of_repair(tmp_path: Path, seed: int) -> None:
    """RELIABILITY section 2, compound failures. Each life ends at some change to the disk, by a power loss or, leaving
    unsynced what is unsynced, by the death of the process. The next one opens what is left, and the power may go at
    any step of that too: what was durable stays, nothing new appears, and what opening reports is durable from then on.
    """
    dice = random.Random(100 + seed)
    before: dict[str, bytes] = {}  # durable
    earlier: list[Op] = []  # changes of processes that died since, perhaps not all durable
    expected, durable = Expected(), 0
    for life in range(8):
        directory = tmp_path / f"life{life}"
        crash(earlier, before, None).put(directory)
        disk = Disk()
        disk.ops += earlier
        with watched(disk):
            journal, found = open_journal(directory)
            begin = len(expected.states) - 1
            assert same_log(state_of(journal, found), expected.states[begin])
            _any_step_of_opening(disk.ops, len(earlier), before, expected, durable, tmp_path, dice)
            opened = len(disk.ops)
            work(journal, disk, dice, expected, 16)
        ops = disk.ops[: dice.randint(opened, len(disk.ops))]
        durable, handed = max(begin, noted(ops, "durable")), max(begin, noted(ops, "handed"))
        power_loss = dice.random() < 0.6
        left = crash(ops, before, dice if power_loss else None, dice.choice((0.0, 0.3, 0.7, 1.0)))
        left.put(tmp_path / "left")
        state = peek(tmp_path / "left")
        n = records_found(state, expected, durable, handed)
        if power_loss:
            before, earlier, durable = left.files, [], 0
            expected.states = [state]
        else:
            earlier = ops
            del expected.states[n + 1 :]
        expected.records_at = [len(expected.states) - 1]
        shutil.rmtree(tmp_path / "left")
        shutil.rmtree(directory)


def _any_step_of_opening(
    ops: list[Op],
    earlier: int,
    before: dict[str, bytes],
    expected: Expected,
    durable: int,
    tmp_path: Path,
    dice: random.Random,
) -> None:
    """The power goes in the middle of opening, or right after it: then all that was found is durable."""
    found = len(expected.states) - 1
    for k in range(earlier, len(ops) + 1):
        for survival in (0.0, 0.5, 1.0):
            left = crash(ops[:k], before, dice, survival)
            if left.files:
                left.put(tmp_path / "opening")
                records_found(peek(tmp_path / "opening"), expected, found if k == len(ops) else durable, found)
                shutil.rmtree(tmp_path / "opening")


def test_a_name_that_only_the_page_cache_knew_is_durable_after_opening(tmp_path: Path) -> None:
    """RELIABILITY F10, and ALICE's findings on renames: the process dies after the rename of a new segment and before
    the sync of the directory. The next one finds the segment, writes to it and calls that durable; then the power goes.
    """
    disk = Disk()
    with watched(disk):
        journal, _ = open_journal(tmp_path / "first")
        for index in range(1, 40):
            journal.append(HardState(1, 1, 0), [Entry(1, index, 0, bytes(200))])
        journal.close()
    renamed = max(i for i, op in enumerate(disk.ops) if op.kind == RENAME and op.to.endswith(".wal"))
    assert disk.ops[renamed + 1].kind == SYNC_DIR
    again = Disk()
    again.ops += disk.ops[: renamed + 1]
    crash(again.ops, {}, None).put(tmp_path / "second")
    with watched(again):
        journal, found = open_journal(tmp_path / "second")
        last = found.last_index + 1
        journal.append(None, [Entry(2, last, 0, b"new")])
        journal.settle()
        left = crash(again.ops, {}, random.Random(1), 0.0)
        journal.close()
    left.put(tmp_path / "third")
    assert peek(tmp_path / "third").entries[-1] == Entry(2, last, 0, b"new")


def test_a_torn_record_that_was_cut_never_comes_back(tmp_path: Path) -> None:
    """RELIABILITY T4. Of a group of three the first is torn; what replaces it has its size, index and term. The other
    two, sound and of the same segment, then lie right behind it and would follow. They must stay dead."""
    disk = Disk()
    with watched(disk):
        journal, _ = open_journal(tmp_path / "first")
        journal.append(HardState(1, 1, 0), [Entry(1, 1, 0, b"kept")])
        journal.settle()
        journal.append(None, [Entry(1, 2 + i, 0, bytes([65 + i]) * 1000) for i in range(3)])
        journal.close()
    writes = [i for i, op in enumerate(disk.ops) if op.kind == WRITE and op.name.endswith(".wal")]
    group = max(i for i in writes if disk.ops[i].length > 2000)
    assert disk.ops[group + 1].kind == SYNC
    left = crash(disk.ops[: group + 1], {}, random.Random(1), 1.0).files
    name = segments.segment_name(1)
    content = bytearray(left[name])
    at = disk.ops[group].offset
    content[at + 600 : at + 700] = bytes(100)  # a sector of the first record never arrived
    left[name] = bytes(content)
    Crash(left).put(tmp_path / "second")
    found = next(s for s in segments.walk(tmp_path / "second") if isinstance(s, segments.Segment))
    assert (found.end, found.dirty) == (at, at + disk.ops[group].length)

    new = [Entry(1, 1, 0, b"kept"), Entry(1, 2, 0, b"x" * 1000)]
    again = Disk()
    with watched(again):
        journal, recovered = open_journal(tmp_path / "second")
        assert recovered.last_index == 1
        journal.append(None, new[1:])
        journal.settle()
        journal.close()
    written = next(i for i, op in enumerate(again.ops) if b"x" * 1000 in op.data)
    for k in range(written + 1, len(again.ops) + 1):
        crash(again.ops[:k], left, random.Random(k), 1.0).put(tmp_path / str(k))
        assert list(peek(tmp_path / str(k)).entries) == new


def test_a_recycled_file_s_old_records_are_never_read(tmp_path: Path) -> None:
    """RELIABILITY T4. All records of one size, so that an old one lies exactly where the next new one will."""
    directory = tmp_path / "wal"
    journal, _ = open_journal(directory)
    index = 0

    def fill(segments_wanted: int) -> None:
        nonlocal index
        begun = journal.stats().segments
        while journal.stats().segments < begun + segments_wanted:
            index += 1
            journal.append(HardState(1, 1, 0), [Entry(1, index, 0, b"%08d" % index * 20)])
            journal.settle()

    fill(4)
    journal.release(index)
    journal.settle()
    assert journal.stats().recycled == 1
    fill(2)
    journal.close()
    newest = sorted(directory.glob("*.wal"))[-1]
    scan = next(s for s in segments.walk(directory) if isinstance(s, segments.Segment) and s.path == newest)
    behind = newest.read_bytes()[scan.end :]
    assert len(behind) > 2000
    assert behind.count(lib.WAL_ENTRY) > 10
    assert any(behind)  # an old life is there
    assert scan.dirty == 0  # and has no say
    _, found = reopened = open_journal(directory)
    assert found.last_index == index
    assert reopened[0].read(index, index, 1 << 20)[0].data == b"%08d" % index * 20
    reopened[0].close()


def test_expected_states_are_what_steps_say() -> None:
    """The judge itself: a call that replaces a tail goes through the cut log, entry by entry."""
    log = State(HardState(1), tuple(Entry(1, i, 0, b"") for i in (1, 2, 3)))
    seen = list(steps(log, Call(HardState(2), [Entry(2, 2, 0, b"a"), Entry(2, 3, 0, b"b")])))
    assert [(s.hard.term, len(s.entries), s.entries[-1].term) for s in seen] == [
        (2, 3, 1),
        (2, 1, 1),
        (2, 2, 2),
        (2, 3, 2),
    ]
    assert SMALL >= lib.WAL_SEGMENT_BYTES_MIN
