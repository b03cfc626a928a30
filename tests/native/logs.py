"""Logs for tests: what was appended, every state that a prefix of it means, and what a directory really holds.

A crash leaves a prefix of the records, and one call of `append` is several records: hard state, cut, entries. So
`Expected.states[n]` is the log after n records, and a test asks which n a directory stands for.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from native import segments
from native._wal import ffi, lib
from storage import journal as journal_module
from storage.entry import Entry, HardState
from storage.journal import Journal, Recovered

CLUSTER, MEMBER = 0xC1, 0xA2
SMALL = 4096


class State(NamedTuple):
    """A log: hard state and the entries from the first one on."""

    hard: HardState
    entries: tuple[Entry, ...]


class Call(NamedTuple):
    """One call of append."""

    hard: HardState | None
    entries: list[Entry]


def steps(state: State, call: Call) -> Iterator[State]:
    """The states that the records of one call lead through, one for each record."""
    hard, entries = state
    if call.hard is not None:
        hard = call.hard
        yield State(hard, entries)
    if call.entries and entries and call.entries[0].index <= entries[-1].index:
        entries = tuple(entry for entry in entries if entry.index < call.entries[0].index)
        yield State(hard, entries)
    for entry in call.entries:
        entries = (*entries, entry)
        yield State(hard, entries)


class Expected:
    """All states of a log that begins empty, record by record, and how many records each position stands for."""

    def __init__(self) -> None:
        self.states = [State(HardState(), ())]
        self.records_at = [0]

    def call(self, call: Call) -> None:
        """Note one call; its position is the number of calls so far."""
        self.states += steps(self.states[-1], call)
        self.records_at.append(len(self.states) - 1)


def random_call(dice: random.Random, state: State, data_max: int = 300, floor: int = 0) -> Call:
    """Something a raft process could append to `state`: new entries, a tail above `floor` replaced, a term, a vote."""
    hard, entries = state
    term = max(hard.term, 1) + (dice.random() < 0.2)
    last = entries[-1].index if entries else 0
    first = last + 1
    if term > hard.term and last > floor and dice.random() < 0.6:
        first = dice.randint(max(floor + 1, last - 6), last)
    count = dice.choice((0, 1, 1, 1, 2, 5))
    new = [
        Entry(term, first + i, dice.choice((0, 0, 1, 255)), dice.randbytes(int(data_max * dice.random() ** 2)))
        for i in range(count)
    ]
    changed = not new or term != hard.term or dice.random() < 0.3
    return Call(HardState(term, dice.randint(0, 3), dice.randint(0, max(0, first - 1))) if changed else None, new)


def open_journal(directory: Path, segment_bytes: int = SMALL) -> tuple[Journal, Recovered]:
    return Journal.open(directory, cluster_id=CLUSTER, member_id=MEMBER, segment_bytes=segment_bytes)


def state_of(journal: Journal, found: Recovered) -> State:
    """What an open journal recovered, entries read back."""
    if found.last_index == found.prev[0]:
        return State(found.hard_state, ())
    entries = journal.read(found.prev[0] + 1, found.last_index, 1 << 30)
    assert [entry.index for entry in entries] == list(range(found.prev[0] + 1, found.last_index + 1))
    runs = [(e.index, e.term) for i, e in enumerate(entries) if i == 0 or e.term != entries[i - 1].term]
    assert runs == found.terms
    return State(found.hard_state, tuple(entries))


def recover(directory: Path) -> State:
    """The log as opening, reading and closing a directory shows it."""
    journal, found = open_journal(directory)
    try:
        return state_of(journal, found)
    finally:
        journal.close()


def peek(directory: Path) -> State:
    """The same by reading alone, changing nothing: for directories looked at by the thousand. Raises Damaged."""
    last, places = journal_module._load(directory, (CLUSTER, MEMBER))
    if last is None:
        return State(HardState(), ())
    contents = {span.sequence: (directory / segments.segment_name(span.sequence)).read_bytes() for span in places.spans}
    entries = []
    record = ffi.new("struct wal_record *")
    for span in places.spans:
        content = contents[span.sequence]
        for number, at in enumerate(span.offsets):
            args = (ffi.from_buffer(content) + at, len(content) - at, last.header.log_id, span.sequence, at, record)
            assert lib.wal_record_read(*args) == lib.WAL_RECORD_OK
            payload = content[at + lib.WAL_RECORD_BYTES : at + lib.WAL_RECORD_BYTES + record.length]
            fields, data = segments._fields(record.type, payload)
            assert fields["index"] == span.first + number
            entries.append(Entry(fields["term"], fields["index"], fields["kind"], data))
    return State(HardState(*last.hard), tuple(entries))


def build(directory: Path, calls: Sequence[Call], segment_bytes: int = SMALL) -> Expected:
    """Append `calls` to a new log, each a group of its own, and close it."""
    expected = Expected()
    journal, _ = open_journal(directory, segment_bytes)
    for call in calls:
        journal.append(call.hard, call.entries)
        expected.call(call)
        journal.settle()
    journal.close()
    return expected


def random_calls(dice: random.Random, count: int, data_max: int = 300) -> list[Call]:
    expected, calls = Expected(), []
    for _ in range(count):
        calls.append(random_call(dice, expected.states[-1], data_max))
        expected.call(calls[-1])
    return calls


@contextmanager
def copied(source: Path, target: Path) -> Iterator[Path]:
    """A copy of a directory for as long as it takes."""
    shutil.copytree(source, target)
    try:
        yield target
    finally:
        shutil.rmtree(target)
