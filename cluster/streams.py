"""Streams of the watch process and their watchers, and what a watcher is told: cut, put together, encoded.

    changes of its range ──wanted──▶ parts, each of whole revisions ──▶ WatchResponse, or fragments of one

Watchers of the same keys at the same place, on streams of one client that takes *shares*, are told in one record: who
is meant, and once what they are told, without their watch_id. That client, the gateway, has a hundred of etcd's clients
behind it that watch the same. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cluster.broadcast import Seen, Spec, event_field
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from storage.codec import int_field
from storage.keyspace import Change

SHARES = b"\1"
"""What opens a stream whose client takes shares."""
SHARE_HEAD = struct.Struct("<I")
"""How many; then for each u64 stream, i64 watch_id; then a WatchResponse without watch_id."""


class StreamKey(NamedTuple):
    identity: bytes
    id: int


class Watcher:
    """One watch of one stream. [key, end) with end None for a single key, b"" for everything from key on."""

    __slots__ = (
        "fragment",
        "id",
        "idle_ticks",
        "next",
        "prev_kv",
        "progress",
        "spec",
        "stream",
        "synced",
    )

    def __init__(self, stream: Stream, id: int, request: pb.WatchCreateRequest, next: int) -> None:
        self.stream, self.id, self.next = stream, id, next
        end = request.range_end
        bound: bytes | None = None if not end else b"" if end == b"\0" else end
        unwanted = frozenset(request.filters)  # EventType has the numbers of FilterType
        self.spec = Spec(request.key or b"\0", bound, unwanted, request.prev_kv)
        self.prev_kv, self.fragment, self.progress = request.prev_kv, request.fragment, request.progress_notify
        self.synced = False
        self.idle_ticks = 0

    def wants(self, kind: int, key: bytes) -> bool:
        return kind not in self.spec.unwanted and self.spec.in_range(key)


class Stream:
    """One client's stream: its watchers by id, and answers that its queue had no room for yet."""

    __slots__ = ("key", "next_id", "paused", "takes_shares", "unsent", "watchers")

    def __init__(self, key: StreamKey, takes_shares: bool = False) -> None:
        self.key, self.takes_shares = key, takes_shares
        self.watchers: dict[int, Watcher] = {}
        self.next_id = 0
        self.paused = False  # by its client: nothing is sent until it says so
        self.unsent: list[bytes] = []


def see(changes: Sequence[Change]) -> list[Seen]:
    """Parsed. Nothing counts as what was before a key was created, though a txn may have deleted it just before (etcd's
    IsCreateEvent).
    """
    parse = pb.Event.FromString
    seen = []
    for revision, event, prev in changes:
        parsed = parse(event)
        created = parsed.kv.create_revision == revision
        seen.append(Seen(revision, parsed.type, parsed.kv.key, event, b"" if created else prev))
    return seen


def parts(
    watcher: Watcher, wanted: Sequence[Seen], covered: int, header: bytes, bytes_max: int
) -> Iterator[tuple[list[bytes], int]]:
    """Cut into messages of bounded size, between revisions. Yields (messages to send together, last revision)."""
    events: list[bytes] = []
    size = i = last = 0
    while i < len(wanted):
        revision, of_revision = wanted[i].revision, []
        while i < len(wanted) and wanted[i].revision == revision:
            of_revision.append(event_field(wanted[i], watcher.prev_kv))
            i += 1
        weight = sum(map(len, of_revision))
        if events and size + weight > bytes_max:
            yield [response(header, watcher.id, events)], last
            events, size = [], 0
        if weight > bytes_max and watcher.fragment:
            yield _fragments(watcher, of_revision, header, bytes_max), revision
        else:
            events += of_revision
            size += weight
        last = revision
    yield ([response(header, watcher.id, events)] if events else []), covered


def _fragments(watcher: Watcher, events: list[bytes], header: bytes, bytes_max: int) -> list[bytes]:
    """One revision in several messages, all but the last marked; they are sent together or not at all."""
    cut: list[list[bytes]] = [[]]
    size = 0
    for event in events:
        if cut[-1] and size + len(event) > bytes_max:
            cut.append([])
            size = 0
        cut[-1].append(event)
        size += len(event)
    marked = [response(header, watcher.id, part, b"\x38\x01") for part in cut[:-1]]
    return [*marked, response(header, watcher.id, cut[-1])]


def response(header: bytes, watch_id: int, events: Sequence[bytes], extra: bytes = b"") -> bytes:
    return b"".join([header, int_field(b"\x10", watch_id), extra, *events])  # a client may have chosen a negative id


def share(watchers: Sequence[Watcher], header: bytes, events: Sequence[bytes]) -> bytes:
    """The record that tells all of them."""
    whom = struct.pack(f"<{'Qq' * len(watchers)}", *(n for one in watchers for n in (one.stream.key.id, one.id)))
    payload = b"".join([SHARE_HEAD.pack(len(watchers)), whom, header, *events])
    return wire.encode(Method.WATCH, Kind.STREAM_SHARE, 0, 0, payload)
