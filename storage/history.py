"""The past: what a key was at a revision, and what happened between two of them.

    h  key1 ~9   key1 ~4   key2 ~7 ...      one seek finds key1 as of revision 6: its entry ~4
    r  4.0   7.0   9.0 ...                  one scan gives all that happened from 4 on, in order

Both tables hold every change since the compaction point, and of what is older the newest change of each key that still
existed then. So the state at any revision from the compaction point on, and the events from it on, can be told exactly;
nothing here judges whether a revision is readable: that is asked of the state machine before.

Pure; bounded by what the caller consumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvorum import errors
from storage import codec
from storage.engine import Engine
from storage.reads import Entries


class Change(NamedTuple):
    """One event of the history: an encoded Event{type, kv}, and the key's encoded KeyValue as of revision - 1, b"" if
    the key did not exist then (or, read back later, if that revision is compacted)."""

    revision: int
    event: bytes
    prev: bytes


class Past:
    """The keyspace as it stood at the end of `revision`; a State (storage.reads).

    A handle is the place of the value, and `load` fetches it. In between a compaction may sweep
    the place away, so whoever spreads the two over several slices must check the compaction point before each.
    """

    def __init__(self, engine: Engine, revision: int) -> None:
        self._engine = engine
        self._revision = revision
        self._bound = codec.history_bound(revision)

    def get(self, key: bytes) -> bytes | None:
        found = self._engine.first(codec.history_key(key, self._revision, codec.SUB_MAX), codec.history_end(key))
        if found is None or not found[1]:
            return None
        return self.load([_place(found[0])])[0]

    def entries(self, start: bytes, end: bytes | None) -> Entries:
        upper = codec.HISTORY_END if end is None else codec.history_start(end)
        return self._newest(self._engine.scan(codec.history_start(start), upper))

    def _newest(self, entries: Iterator[tuple[bytes, bytes]]) -> Entries:
        bound, settled = self._bound, b""
        for entry, life in entries:
            owner = entry[:-12]
            if owner == settled or entry[-12:] < bound:
                yield None  # older than the one that counts, or not yet happened
                continue
            settled = owner
            yield (entry, _place(entry)) if life else None

    def load(self, handles: list[bytes]) -> list[bytes]:
        events = self._engine.get_many(handles)
        assert None not in events, "a readable revision has lost its value"
        return [codec.event_kv(event) for event in events if event is not None]


def _place(entry: bytes) -> bytes:
    return codec.revision_key(*codec.history_place(entry))


def events(engine: Engine, first: int, last: int, max_bytes: int, compacted: int) -> list[Change]:
    """The changes of the revisions `first` to `last`, both included, whole revisions only: as many as fit into
    `max_bytes`, but the first in any case. Raises Compacted if `first` is below the compaction point; the point itself
    is readable, and a deletion that happened exactly there is still told."""
    if first < compacted:
        raise errors.Compacted
    found: list[Change] = []
    whole, size, current = 0, 0, -1  # `whole`: how many of `found` are of finished revisions
    for place, event in engine.scan(codec.revision_key(first, 0), codec.revision_key(last + 1, 0)):
        main, sub = codec.revision_place(place)
        if main != current:
            current, whole = main, len(found)
            if found and size + len(event) > max_bytes:
                return found
        prev = _before(engine, main, sub, event) if main > compacted else b""
        size += len(event) + len(prev)
        if size > max_bytes and whole:
            return found[:whole]
        found.append(Change(main, event, prev))
    return found


def _before(engine: Engine, main: int, sub: int, event: bytes) -> bytes:
    change = codec.parse_event(event)
    if change.kv.version == 1 and sub == 0:
        return b""  # (a later place may follow a deletion within the same revision)
    return Past(engine, main - 1).get(change.kv.key) or b""
