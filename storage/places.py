"""Which entries the log has, of which terms, and where each one lies: what the journal remembers of its files.

    prev   spans:  [ segment 7: 96 120 152 ... ][ segment 8: 512 544 ... ][ segment 9: 512 ... ]   last
    (40,2) runs:   41 term 2 ............ 78 term 3 ................... 130 term 5 ...

A span is what one segment holds of the log as it stands now, one offset (four bytes) an entry, so that a log of
millions of entries takes a few megabytes and letting a segment go is dropping one object. Spans ascend both in index
and in segment, because a cut drops whatever lies above it and what replaces it is always written later. Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right


class Span:
    """Entries with consecutive indexes from `first` in one segment: their offsets, and where the last one ends."""

    __slots__ = ("end", "first", "offsets", "sequence")

    def __init__(self, first: int, sequence: int) -> None:
        self.first, self.sequence, self.end = first, sequence, 0
        self.offsets: array[int] = array("I")

    @property
    def last(self) -> int:
        return self.first + len(self.offsets) - 1


class Places:
    """See the module.

    Args:
      prev: (index, term) of the entry before the first one, (0, 0) for a log from its beginning.
    """

    def __init__(self, prev: tuple[int, int]) -> None:
        self.prev = prev
        self.last_index = prev[0]
        self.spans: list[Span] = []
        self._run_first: list[int] = []
        self._run_term: list[int] = []

    @property
    def terms(self) -> list[tuple[int, int]]:
        return list(zip(self._run_first, self._run_term, strict=True))

    def term(self, index: int) -> int:
        """The term of an entry from prev on."""
        run = bisect_right(self._run_first, index) - 1
        return self._run_term[run] if run >= 0 else self.prev[1]

    def cut(self, index: int, term: int) -> None:
        """Forget what is above `index`, whose term is `term`. It may be before prev: then it becomes prev."""
        while self.spans and self.spans[-1].first > index:
            self.spans.pop()
        if self.spans and self.spans[-1].last > index:
            span = self.spans[-1]
            keep = index + 1 - span.first
            span.end = span.offsets[keep]  # the entry ends there or earlier
            del span.offsets[keep:]
        while self._run_first and self._run_first[-1] > index:
            self._run_first.pop()
            self._run_term.pop()
        self.last_index = index
        if index < self.prev[0]:
            self.prev = (index, term)

    def add(self, index: int, term: int, sequence: int, offset: int, end: int) -> None:
        span = self._span(index, sequence)
        span.offsets.append(offset)
        span.end = end
        self._grown(index, index, term)

    def add_many(self, first: int, term: int, sequence: int, offsets: array[int], end: int) -> None:
        """What `add` does for each of `offsets`; `end` is at or after the end of the last entry."""
        span = self._span(first, sequence)
        span.offsets.extend(offsets)
        span.end = end
        self._grown(first, first + len(offsets) - 1, term)

    def _span(self, index: int, sequence: int) -> Span:
        assert index == self.last_index + 1, (index, self.last_index)
        if not self.spans or self.spans[-1].sequence != sequence:
            self.spans.append(Span(index, sequence))
        return self.spans[-1]

    def _grown(self, first: int, last: int, term: int) -> None:
        if not self._run_term or self._run_term[-1] != term:
            self._run_first.append(first)
            self._run_term.append(term)
        self.last_index = last

    def find(self, index: int) -> Span:
        return self.spans[bisect_right(self.spans, index, key=lambda span: span.first) - 1]

    def needed_from(self, index: int) -> int | None:
        """The oldest segment that holds an entry above `index`."""
        return next((span.sequence for span in self.spans if span.last > index), None)

    def forget_before(self, sequence: int) -> None:
        """Segments before `sequence` go, and the entries in them."""
        keep = 0
        while keep < len(self.spans) and self.spans[keep].sequence < sequence:
            keep += 1
        if not keep:
            return
        first = self.spans[keep].first if keep < len(self.spans) else self.last_index + 1
        self.prev = (first - 1, self.term(first - 1))
        del self.spans[:keep]
        run = bisect_right(self._run_first, first) - 1
        del self._run_first[:run]
        del self._run_term[:run]
        if first > self.last_index:
            self._run_first, self._run_term = [], []
        else:
            self._run_first[0] = first
