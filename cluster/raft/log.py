"""The replicated log as the core sees it: terms in memory, new entries in memory, old entries on disk.

       prev      first_index                                                          last_index
        |            |                                                                     |
        v            v                                                                     v
    [ gone ] | 1@1  2@1  3@1  4@2  5@2  6@2 | 7@2  8@4  9@4  10@4 | 11@4  12@4 | 13@4  14@4 ]
             |<------ read from the store ->|<-- tail, in memory --------------------------|
             |<------ on disk (stable) --------------------------->|<- being  ->|<- unsaved, not yet
                              ^ committed                             written      handed out -->

`terms` are kept as runs (first index, term), because terms only grow along the log: a question about a term never reads
an entry, however far back it asks. The tail is trimmed from the old end once it is over its limit, never past
`stable_index`, so what is read through the store is on disk and is not being replaced: replacing an entry lowers
`stable_index` and starts the tail at or before it.

What nobody will need again is released: then `prev` moves up, and the store may give the space back whenever it likes.

Nothing at or before `committed` is ever cut; that is an assert, not a hope. Pure: the store is passed in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from storage.entry import Entry

ENTRY_OVERHEAD_BYTES = 32
"""Counted for each entry beside its data, so that a flood of tiny entries is bounded too."""


def entry_bytes(entry: Entry) -> int:
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class LogStore(Protocol):
    """Where stable entries are read back from."""

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """The entries from `first` on: at least one, none after `last`, stopping before the one that passes max_bytes.

        Only asked for entries that have been reported durable and not been replaced since.
        """
        ...


class Log:
    """See the module. Indices count from 1; `index 0 @ term 0` is the place before the first entry.

    Args:
      prev: (index, term) of the entry before the first kept one, (0, 0) for a whole log.
      terms: runs (first index, term) of the kept entries, ascending in both.
      last_index: the newest entry on disk; prev's index if none is kept.
      memory_bytes_max: the tail is trimmed to about this; what is not stable yet comes on top.
    """

    def __init__(
        self,
        store: LogStore,
        *,
        prev: tuple[int, int] = (0, 0),
        terms: Sequence[tuple[int, int]] = (),
        last_index: int = 0,
        memory_bytes_max: int = 16 << 20,
    ) -> None:
        self._store = store
        self._prev_index, self._prev_term = prev
        self._run_first = [first for first, _ in terms]
        self._run_term = [term for _, term in terms]
        self.last_index = last_index
        self.stable_index = last_index
        self.committed = self._prev_index
        self._unsaved = last_index + 1
        self._tail: list[Entry] = []
        self._tail_first = last_index + 1
        self._tail_bytes = 0
        self._memory_bytes_max = memory_bytes_max
        assert bool(terms) == (last_index > self._prev_index), (prev, terms, last_index)
        if terms:
            assert self._run_first[0] == self._prev_index + 1, (prev, terms)
            assert self._run_term[0] >= self._prev_term, (prev, terms)
            assert self._run_first[-1] <= last_index, (terms, last_index)
            for runs in (self._run_first, self._run_term):
                assert all(a < b for a, b in pairwise(runs)), terms

    @property
    def first_index(self) -> int:
        """The oldest entry kept; last_index + 1 if there is none."""
        return self._prev_index + 1

    @property
    def last_term(self) -> int:
        return self._run_term[-1] if self._run_term else self._prev_term

    @property
    def memory_bytes(self) -> int:
        """What the tail holds, by `entry_bytes`."""
        return self._tail_bytes

    @property
    def has_unsaved(self) -> bool:
        return self._unsaved <= self.last_index

    def term(self, index: int) -> int:
        """The term of an entry between prev and last_index, both included."""
        assert self._prev_index <= index <= self.last_index, (self._prev_index, index, self.last_index)
        run = bisect_right(self._run_first, index) - 1
        return self._run_term[run] if run >= 0 else self._prev_term

    def matches(self, index: int, term: int) -> bool:
        """Does the log hold this very entry? What is before prev is not known to match."""
        return self._prev_index <= index <= self.last_index and self.term(index) == term

    def agreeing(self, index: int, term: int) -> int:
        """The last place, at or before `index`, that can be shared with a log holding `term` there.

        Terms only grow along a log, so an entry of a higher term cannot be in the other one at or before that place
        (Raft paper 5.3, the optimization of the rejected AppendEntries). An index beyond the log is brought into it;
        one before prev is given back, for nothing is known about it.
        """
        if index <= self._prev_index:
            return index
        index = min(index, self.last_index)
        run = bisect_right(self._run_term, term) - 1
        if run + 1 < len(self._run_first):
            index = min(index, self._run_first[run + 1] - 1)
        return index

    def slice(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Entries from `first` to at most `last`: what fits in max_bytes, but one at least; none if first > last."""
        assert first > self._prev_index, (first, self._prev_index)
        assert last <= self.last_index, (last, self.last_index)
        if first > last:
            return []
        tail_first = self._tail_first
        entries: list[Entry] = []
        size = 0
        if first < tail_first:
            stored_last = min(last, tail_first - 1)
            entries = self._store.read(first, stored_last, max_bytes)
            assert entries[0].index == first, (first, stored_last)
            assert entries[-1].index <= stored_last, (entries[-1].index, stored_last)
            if entries[-1].index < stored_last or stored_last == last:
                return entries
            size = sum(map(entry_bytes, entries))
            first = tail_first
        for entry in self._tail[first - tail_first : last + 1 - tail_first]:
            size += entry_bytes(entry)
            if size > max_bytes and entries:
                break
            entries.append(entry)
        return entries

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries right after the last one."""
        for entry in entries:
            last_term = self.last_term
            assert entry.index == self.last_index + 1, (entry.index, self.last_index)
            assert entry.term >= last_term, (entry.term, last_term)
            if entry.term > last_term or not self._run_term:
                self._run_first.append(entry.index)
                self._run_term.append(entry.term)
            self._tail.append(entry)
            self._tail_bytes += entry_bytes(entry)
            self.last_index = entry.index

    def accept(self, index: int, term: int, entries: Sequence[Entry]) -> int | None:
        """Take what a leader sent to follow `index`@`term`: the last index now shared with it, or None if that is
        missing.

        Entries that are here already are left alone, so that a late and short message cuts nothing off; only a real
        conflict truncates (Raft paper, figure 2, AppendEntries 3 and 4).
        """
        if not self.matches(index, term):
            return None
        for at, entry in enumerate(entries):
            if entry.index > self.last_index:
                self.append(entries[at:])
                break
            if self.term(entry.index) != entry.term:
                self._truncate(entry.index)
                self.append(entries[at:])
                break
        return index + len(entries)

    def _truncate(self, index: int) -> None:
        """Forget `index` and all after it."""
        assert index > self.committed, (index, self.committed)
        while self._run_first and self._run_first[-1] >= index:
            self._run_first.pop()
            self._run_term.pop()
        cut = max(index - self._tail_first, 0)
        self._tail_bytes -= sum(map(entry_bytes, self._tail[cut:]))
        del self._tail[cut:]
        self._tail_first = min(self._tail_first, index)
        self.last_index = index - 1
        self.stable_index = min(self.stable_index, index - 1)
        self._unsaved = min(self._unsaved, index)

    def commit_to(self, index: int) -> None:
        """Raise the commit index; a lower one changes nothing."""
        if index > self.committed:
            assert index <= self.last_index, (index, self.last_index)
            self.committed = index

    def take_unsaved(self) -> list[Entry]:
        """The entries that nobody has been told to write yet. The first may replace one that was handed out before."""
        entries = self._tail[self._unsaved - self._tail_first :]
        self._unsaved = self.last_index + 1
        return entries

    def release(self, index: int) -> None:
        """Entries up to `index` will not be asked for again, and the store may let go of them at any time."""
        assert index <= min(self.committed, self.stable_index), (index, self.committed, self.stable_index)
        if index <= self._prev_index:
            return
        self._prev_index, self._prev_term = index, self.term(index)
        gone = bisect_right(self._run_first, index)  # the last of these runs may go on behind `index`
        later = self._run_first[gone] if gone < len(self._run_first) else self.last_index + 1
        if gone and later > index + 1:
            gone -= 1
            self._run_first[gone] = index + 1
        del self._run_first[:gone]
        del self._run_term[:gone]

    def stable_to(self, index: int) -> None:
        """All up to `index`, as they are now, are on disk. The caller answers for "as they are now"."""
        assert index < self._unsaved, (index, self._unsaved)
        if index > self.stable_index:
            self.stable_index = index
        if self._tail_bytes > self._memory_bytes_max:
            self._trim()

    def _trim(self) -> None:
        """Drop stable entries, oldest first, to an eighth below the limit: cutting a list costs, so not each time."""
        target = self._memory_bytes_max - self._memory_bytes_max // 8
        count = 0
        for entry in self._tail:
            if self._tail_bytes <= target or entry.index > self.stable_index:
                break
            self._tail_bytes -= entry_bytes(entry)
            count += 1
        del self._tail[:count]
        self._tail_first += count
