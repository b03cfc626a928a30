"""Watchers of the same keys, told once: groups, their topics, and what is published there.

    the second WatchCreate{broadcast} of a (range, filters, prev_kv) ──▶ its group, and the topic in the answer
    a subscription to the topic ──▶ a bare publication: "so far, nothing that you lack"
    changes ──▶ one publication a group ──▶ libzmq copies it to every subscriber

A publication says what it covers: all events of the group in the revisions from `first` to `last`, both included.
`first` is the revision behind the group's last event before, since nothing of the group lies between. So whoever
receives knows by the revisions alone whether something was dropped on the way (its own next revision is below `first`),
and fetches it from a stream; no number of a process or a connection is needed, and a restart of anything is just a gap.
And whoever has all events so far, from wherever, connects with the next publication.

A bare publication covers revisions in which the group had no event. One follows when a group has been silent for a
while, so that a gap at the end, and a publisher that is gone, are noticed too.

Who may listen: whoever knows the topic, 16 random bytes that only the answer to a WatchCreate tells; one that doesn't
exist is silence. But libzmq matches by prefix, so whoever subscribes to nothing at all hears everything. While anybody
may watch everything that gives nothing away; with users (DESIGN 12) it must not stay so. (XPUB_MANUAL would prevent it,
and in libzmq 4.3.5 no longer says whether the listener that leaves was the last.) A group lives while somebody is
subscribed, and GRACE_TICKS longer, for those on their way.

What it costs: an event is matched against ranges by an index (cluster/ranges.py), never against each group, let alone
each watcher. Pure, but for the topics it is given.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cluster.ranges import Ranges
from storage.codec import varint

HEAD = struct.Struct("<16sQQ")
"""topic | first | last; behind it a WatchResponse without watch_id, or nothing."""
TOPIC_BYTES = 16
GROUPS_MAX = 10_000
"""Each costs a publication every few seconds. Whoever comes after these stays on a stream."""
GRACE_TICKS = 100
SILENCE_TICKS = 10
"""A group that was published to is told how far things are after so many ticks without an event ..."""
PULSE_TICKS = 30
"""... and from then on every so often. Both are looked at every SILENCE_TICKS."""


class Seen(NamedTuple):
    """A change, taken apart as far as matching needs."""

    revision: int
    kind: int
    key: bytes
    event: bytes
    prev: bytes


class Spec(NamedTuple):
    """What a group's watchers want. `end` None is the single key, b"" no end."""

    key: bytes
    end: bytes | None
    unwanted: frozenset[int]
    prev_kv: bool

    def in_range(self, key: bytes) -> bool:
        if self.end is None:
            return key == self.key
        return key >= self.key and (not self.end or key < self.end)


class Group:
    """`newest`: it has no event behind this revision, as far as has been heard here. `told`: how far it was told."""

    __slots__ = ("heard", "listening", "newest", "spec", "told", "topic", "wanted")

    def __init__(self, spec: Spec, topic: bytes, head: int, now: int) -> None:
        self.spec, self.topic = spec, topic
        self.newest = self.told = head
        self.listening = False
        self.wanted = now  # when somebody was last told of the topic, or stopped listening
        self.heard = now  # when something was last published

    def publication(self, last: int, payload: bytes, now: int) -> bytes:
        frame = HEAD.pack(self.topic, self.newest + 1, last) + payload
        self.told, self.heard = last, now
        return frame


class Groups:
    """All groups of this watch process.

    Args:
      new_topic: 16 bytes that nobody can guess.
    """

    def __init__(self, new_topic: Callable[[], bytes]) -> None:
        self._new_topic = new_topic
        self._by_spec: dict[Spec, Group] = {}
        self._by_topic: dict[bytes, Group] = {}
        self._ranges: Ranges[Group] = Ranges()
        self._due: dict[int, list[Group]] = {}  # by the tick at which they are looked at

    def __len__(self) -> int:
        return len(self._by_spec)

    @property
    def listening(self) -> bool:
        return any(group.listening for group in self._by_topic.values())

    def join(self, spec: Spec, head: int, now: int, *, found: bool) -> Group | None:
        """The group of these watchers. None: there is none, and it is not to be founded, or there are too many."""
        group = self._by_spec.get(spec)
        if group is None:
            if not found or len(self._by_spec) >= GROUPS_MAX:
                return None
            group = Group(spec, self._new_topic(), head, now)
            self._due.setdefault(now + SILENCE_TICKS, []).append(group)
            self._by_spec[spec] = self._by_topic[group.topic] = group
            self._ranges.add(spec.key, spec.end, group)
        group.wanted = now
        return group

    def restart(self, head: int) -> None:
        """What happened up to `head` was not heard here: it is a gap for all who listen."""
        for group in self._by_topic.values():
            group.newest = head

    def subscribed(self, topic: bytes, head: int, now: int) -> bytes | None:
        """Somebody listens: what to publish for him. None: there is no such topic."""
        group = self._by_topic.get(topic)
        if group is None:
            return None
        group.listening = True
        return group.publication(head, b"", now)

    def unsubscribed(self, topic: bytes, now: int) -> None:
        """The last listener of a topic has gone."""
        group = self._by_topic.get(topic)
        if group is not None:
            group.listening, group.wanted = False, now

    def changes(self, seen: Sequence[Seen], last: int, header: bytes, now: int) -> Iterator[bytes]:
        """The publications for all changes up to revision `last`. `header` is that of a WatchResponse."""
        found: dict[Group, list[Seen]] = {}
        for change in seen:
            for place in self._ranges.at(change.key):
                for group in place.wanted_by:
                    if change.kind not in group.spec.unwanted:
                        found.setdefault(group, []).append(change)
        for group, events in found.items():
            if group.listening:
                prev_kv = group.spec.prev_kv
                yield group.publication(last, b"".join([header, *(event_field(one, prev_kv) for one in events)]), now)
            group.newest = events[-1].revision

    def tick(self, head: int, now: int) -> list[bytes]:
        """The bare publications that are due; and groups that nobody wants are forgotten."""
        due: list[bytes] = []
        later = []
        looked_at = [group for tick in sorted(self._due) if tick <= now for group in self._due.pop(tick)]
        for group in looked_at:
            if not group.listening and now - group.wanted > GRACE_TICKS:
                self._forget(group)
                continue
            later.append(group)
            silent = now - group.heard
            if group.listening and (silent >= PULSE_TICKS or (silent >= SILENCE_TICKS and group.told < head)):
                due.append(group.publication(head, b"", now))
        if later:
            self._due.setdefault(now + SILENCE_TICKS, []).extend(later)
        return due

    def _forget(self, group: Group) -> None:
        spec = group.spec
        del self._by_spec[spec], self._by_topic[group.topic]
        self._ranges.remove(spec.key, spec.end, group)


def event_field(seen: Seen, prev_kv: bool) -> bytes:
    """Field 11 of a WatchResponse; with the key's state before, if asked for and there was one."""
    event = seen.event
    if prev_kv and seen.prev:
        event += b"\x1a" + varint(len(seen.prev)) + seen.prev
    return b"\x5a" + varint(len(event)) + event
