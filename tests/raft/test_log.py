"""The log against a dumb one: a list of entries that never forgets, and a count of how much of it is on disk."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.log import ENTRY_OVERHEAD_BYTES, Log, entry_bytes
from storage.entry import Entry
from tests.raft.harness import PROPERTY


@dataclass
class DumbLog:
    """All entries from index 1, in a list. `written` is what a disk holds: the store that the real log reads from."""

    entries: list[Entry]
    prev: int
    stable: int
    committed: int
    taken: int
    written: dict[int, Entry] = field(default_factory=dict)

    def term(self, index: int) -> int:
        return self.entries[index - 1].term if index else 0

    def matches(self, index: int, term: int) -> bool:
        return self.prev <= index <= len(self.entries) and self.term(index) == term

    def accept(self, entries: list[Entry]) -> bool:
        """True if something was cut."""
        cut = False
        for entry in entries:
            if entry.index <= len(self.entries):
                if self.term(entry.index) == entry.term:
                    continue
                cut = True
                del self.entries[entry.index - 1 :]
                self.stable = min(self.stable, len(self.entries))
                self.taken = min(self.taken, len(self.entries))
            self.entries.append(entry)
        return cut

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """LogStore. Only what is stable is read through it."""
        assert 0 < first <= last <= self.stable, (first, last, self.stable)
        return fitting([self.written[index] for index in range(first, last + 1)], max_bytes)


def fitting(entries: list[Entry], max_bytes: int) -> list[Entry]:
    found = entries[:1]
    for entry in entries[1:]:
        if sum(map(entry_bytes, [*found, entry])) > max_bytes:
            break
        found.append(entry)
    return found


def make(terms: list[int], prev: int, memory_bytes_max: int) -> tuple[Log, DumbLog]:
    entries = [Entry(term, at + 1, 0, b"old") for at, term in enumerate(terms)]
    last = len(entries)
    dumb = DumbLog(entries, prev, last, prev, last, {entry.index: entry for entry in entries})
    runs = [
        (entry.index, entry.term)
        for entry in entries[prev:]
        if entry.index == prev + 1 or entry.term != terms[entry.index - 2]
    ]
    log = Log(dumb, prev=(prev, dumb.term(prev)), terms=runs, last_index=last, memory_bytes_max=memory_bytes_max)
    return log, dumb


OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 1), st.integers(0, 40)),
    st.tuples(st.just("accept"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("commit"), st.integers(0, 12)),
    st.tuples(st.just("release"), st.integers(0, 12)),
    st.tuples(st.just("take")),
    st.tuples(st.just("sync")),
)


@PROPERTY
@given(
    st.lists(st.integers(1, 3), max_size=6).map(sorted),
    st.integers(0, 6),
    st.sampled_from([0, 100, 1000]),
    st.lists(OPERATIONS, max_size=25),
)
def test_the_log_is_a_list_of_entries_whatever_is_done_to_it(
    terms: list[int], prev: int, memory_bytes_max: int, operations: list[tuple]
) -> None:
    """Appends, conflicts, commits, releases, writes that complete, and a tail so small that it is always trimmed."""
    log, dumb = make(terms, min(prev, len(terms)), memory_bytes_max)
    pending: list[tuple[list[Entry], int, int]] = []
    epoch = 0  # counts truncations: as the core sees it, a write speaks only for the log that it was taken from
    for operation, *numbers in operations:
        last = len(dumb.entries)
        if operation == "append":
            later, size = numbers
            entry = Entry(max(log.last_term, 1) + later, last + 1, 0, bytes(size))
            log.append([entry])
            dumb.entries.append(entry)
        elif operation == "accept":
            # A leader's log, which shares all but the last `back` entries with ours, sends from up to `before` entries
            # earlier on: what is shared and `own` ones of its own, of the old last term or a `later` one.
            back, before, own, later = numbers
            shared = max(last - back, dumb.committed)
            index = max(shared - before, dumb.committed)
            term = max(log.last_term, 1) + later
            sent = [*dumb.entries[index:shared], *(Entry(term, shared + 1 + at, 0, b"new") for at in range(own))]
            assert log.accept(index, dumb.term(index), sent) == index + len(sent)
            epoch += dumb.accept(sent)
            assert log.accept(last + 9, term, sent) is None
            assert log.accept(index, dumb.term(index) + 1, sent) is None
        elif operation == "commit":
            index = min(numbers[0], last)
            log.commit_to(index)
            dumb.committed = max(dumb.committed, index)
        elif operation == "release":
            index = min(numbers[0], dumb.committed, dumb.stable)
            log.release(index)
            dumb.prev = max(dumb.prev, index)
            dumb.written = {i: e for i, e in dumb.written.items() if i > index}  # gone at once, as it may be
        elif operation == "take":
            assert log.has_unsaved == (dumb.taken < last)
            taken = log.take_unsaved()
            assert taken == dumb.entries[dumb.taken :]
            dumb.taken = last
            pending.append((taken, last, epoch))
        elif pending:
            taken, written_to, of_epoch = pending.pop(0)
            for entry in taken:
                dumb.written = {i: e for i, e in dumb.written.items() if i < entry.index} | {entry.index: entry}
            if of_epoch == epoch:
                log.stable_to(written_to)
                dumb.stable = max(dumb.stable, written_to)
        check(log, dumb)


def check(log: Log, dumb: DumbLog) -> None:
    last = len(dumb.entries)
    assert (log.first_index, log.last_index, log.last_term) == (dumb.prev + 1, last, dumb.term(last))
    assert (log.stable_index, log.committed) == (dumb.stable, dumb.committed)
    for index in range(dumb.prev, last + 1):
        assert log.term(index) == dumb.term(index)
    for index in range(last + 2):
        for term in {0, log.last_term, log.last_term + 1, dumb.term(min(index, last))}:
            assert log.matches(index, term) == dumb.matches(index, term)
            expected = index
            if index > dumb.prev:
                expected = min(index, last)
                while expected > dumb.prev and dumb.term(expected) > term:
                    expected -= 1
            assert log.agreeing(index, term) == expected
    for first in range(dumb.prev + 1, last + 2):
        for to, max_bytes in ((last, 1 << 20), (last, 0), (last, 100), ((first + last) // 2, 70)):
            assert log.slice(first, max(to, first - 1), max_bytes) == fitting(dumb.entries[first - 1 : to], max_bytes)


def test_the_tail_is_trimmed_to_its_limit_once_it_is_stable() -> None:
    """Bounded memory: what is on disk is dropped, oldest first; what is not, never."""
    log, dumb = make([], 0, memory_bytes_max=10_000)
    for index in range(1, 101):
        entry = Entry(1, index, 0, bytes(1000 - ENTRY_OVERHEAD_BYTES))
        log.append([entry])
        dumb.entries.append(entry)
        dumb.written[index] = entry
    assert log.memory_bytes == 100_000
    log.take_unsaved()
    dumb.stable = 40
    log.stable_to(40)
    assert log.memory_bytes == 60_000
    dumb.stable = 100
    log.stable_to(100)
    assert 8_000 <= log.memory_bytes <= 10_000
    assert log.slice(1, 100, 1 << 20) == dumb.entries


def test_what_was_read_from_disk_before_a_crash_can_be_sliced_in_pieces_to_the_end() -> None:
    """CommitPaginationAfterRestart: going on after the last entry one got misses none."""
    log, dumb = make([1] * 10, 0, memory_bytes_max=0)

    class Stingy:
        def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
            return dumb.read(first, last, max_bytes // 2)

    log = Log(Stingy(), terms=[(1, 1)], last_index=10)
    for index in range(11, 15):
        entry = Entry(1, index, 0, b"new")
        log.append([entry])
        dumb.entries.append(entry)
    found: list[Entry] = []
    while len(found) < 14:
        found += log.slice(len(found) + 1, 14, 200)
    assert found == dumb.entries


def test_a_committed_entry_is_never_cut() -> None:
    """A leader that asks for it is wrong about what was committed; going on would lose an acknowledged write."""
    log, _ = make([1, 1, 1], 0, 0)
    log.commit_to(2)
    with pytest.raises(AssertionError):
        log.accept(1, 1, [Entry(2, 2, 0, b"")])
    assert [log.term(index) for index in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("prev", "terms", "last"),
    [
        ((0, 0), [], 1),
        ((0, 0), [(1, 1)], 0),
        ((0, 0), [(2, 1)], 3),
        ((0, 0), [(1, 1), (2, 1)], 3),
        ((0, 0), [(1, 2), (2, 1)], 3),
        ((0, 0), [(1, 1), (1, 2)], 3),
        ((0, 0), [(1, 1), (4, 2)], 3),
        ((5, 3), [(6, 2)], 6),
    ],
)
def test_runs_of_terms_that_make_no_log_are_refused(
    prev: tuple[int, int], terms: list[tuple[int, int]], last: int
) -> None:
    """A journal that says such a thing is wrong about the disk."""
    with pytest.raises(AssertionError):
        Log(DumbLog([], 0, 0, 0, 0), prev=prev, terms=terms, last_index=last)


def test_only_what_is_committed_and_on_disk_is_released() -> None:
    log, _ = make([1, 1, 1], 0, 1000)
    with pytest.raises(AssertionError):
        log.release(1)
    log.commit_to(3)
    log.append([Entry(1, 4, 0, b"")])
    log.commit_to(4)
    with pytest.raises(AssertionError):
        log.release(4)
    log.release(3)
    assert (log.first_index, log.term(3)) == (4, 1)
    log.release(1)
    assert log.first_index == 4


@pytest.mark.parametrize("entry", [Entry(2, 5, 0, b""), Entry(2, 3, 0, b""), Entry(1, 4, 0, b"")])
def test_an_entry_that_does_not_follow_is_refused(entry: Entry) -> None:
    """No holes, no overlaps, no falling terms."""
    log, _ = make([1, 1, 2], 0, 0)
    with pytest.raises(AssertionError):
        log.append([entry])


def test_a_write_cannot_be_durable_before_it_was_handed_out() -> None:
    """Else an unwritten entry would count."""
    log, _ = make([1], 0, 0)
    log.append([Entry(1, 2, 0, b"")])
    with pytest.raises(AssertionError):
        log.stable_to(2)
