"""The watch process and apply's side of it: whatever gets lost, stalls or restarts, a watcher hears every change once.

A real keyspace and Feed on one side, Watchd on the other, queues between them that the test may cut, and clients whose
connections take messages only when the test lets them. No sockets, no clock.
"""

from __future__ import annotations

import random
import struct
from collections import deque

import pytest

from cluster.feed import Feed
from cluster.internal import Changes, HistoryRequest, Message, Tick, WatchAck, WatchAttach, WatchDetach
from cluster.links import ClientFrame
from cluster.metrics import WatchBoard
from cluster.streams import SHARE_HEAD, SHARES
from cluster.watchd import Watchd
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from storage.codec import pack_proposal, varint
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine


class Node:
    """As much of cluster.node.Node as Watchd asks for."""

    def header(self, revision: int, term: int) -> bytes:
        body = b"\x18" + varint(revision) if revision else b""
        return b"\x0a" + varint(len(body)) + body


class Link:
    """The watch process's ends of the queues."""

    def __init__(self, world: World) -> None:
        self._world = world

    def receive(self) -> list[object]:
        items = list(self._world.to_watch)
        self._world.to_watch.clear()
        return items

    def to_apply(self, message: Message) -> None:
        self._world.to_apply.append(message)

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        return self._world.send(identity, frame)


class World:
    """One node's store, feed and watch process, joined by two queues; and the clients' connections."""

    def __init__(self, response_bytes_max: int = 1 << 20, caught_up: bool = True) -> None:
        self.keyspace = Keyspace(MemoryEngine())
        self.to_watch: deque[object] = deque()
        self.to_apply: deque[Message] = deque()
        self.feed = Feed(self.keyspace, self.to_watch.append, first_session=0)
        if caught_up:
            self.feed.caught_up(1)
        self.response_bytes_max = response_bytes_max
        self.stalled: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.inbox: dict[bytes, list[wire.Record]] = {}
        self.epoch = self.number = 0
        self.prompt = True  # apply answers the watch process at once
        self.events: list[tuple[int, bytes]] = []  # (revision, event) as the store gave them out
        self.asked_history = 0
        self.restart_watch()

    def restart_watch(self) -> None:
        self.epoch += 1
        self.to_watch.clear()
        self.to_apply.clear()
        self.watchd = Watchd(
            Link(self),
            Node(),  # type: ignore[arg-type]
            _board(),
            epoch=self.epoch,
            response_bytes_max=self.response_bytes_max,
            progress_ticks=10,
        )
        self.to_watch.append(Tick())

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        if identity in self.gone:
            return None
        if identity in self.stalled:
            return False
        self.inbox.setdefault(identity, []).extend(wire.decode(frame))
        return True

    # What happens.

    def commit(self, *requests: tuple[int, bytes]) -> None:
        self.number += 1
        batch = b"".join(wire.encode(method, Kind.CALL, 0, 1, payload) for method, payload in requests)
        turn = self.keyspace.begin(prev=self.feed.wants_prev)
        index = self.keyspace.applied[0] + 1
        turn.apply(index, 1, pack_proposal(1, 1, self.number, batch))
        changes = turn.commit()
        self.events += [(change.revision, change.event) for change in changes]
        self.feed.changed(changes)

    def put(self, key: bytes, value: bytes) -> None:
        self.commit((Method.PUT, pb.PutRequest(key=key, value=value).SerializeToString()))

    def delete(self, key: bytes, end: bytes = b"") -> None:
        self.commit((Method.DELETE_RANGE, pb.DeleteRangeRequest(key=key, range_end=end).SerializeToString()))

    def compact(self, revision: int) -> None:
        self.commit((Method.COMPACT, pb.CompactionRequest(revision=revision).SerializeToString()))
        self.feed.tick(1)

    def apply_turn(self) -> None:
        while self.to_apply:
            message = self.to_apply.popleft()
            assert isinstance(message, WatchAttach | WatchAck | WatchDetach | HistoryRequest)
            self.asked_history += isinstance(message, HistoryRequest)
            self.feed.handle(message, 1)

    def settle(self, rounds: int = 60) -> None:
        for _ in range(rounds):
            self.to_watch.append(Tick())
            self.watchd.turn()
            self.apply_turn()

    def ask(self, identity: bytes, *records: bytes) -> None:
        self.to_watch.append(ClientFrame(identity, b"".join(records)))
        self.watchd.turn()
        if self.prompt:
            self.apply_turn()
            self.watchd.turn()

    def watch(self, identity: bytes, **create: object) -> None:
        opened = wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 1, b"")
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(**create))  # type: ignore[arg-type]
        self.ask(identity, opened, wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, request.SerializeToString()))

    def responses(self, identity: bytes) -> list[pb.WatchResponse]:
        return [
            pb.WatchResponse.FromString(record.payload)
            for record in self.inbox.get(identity, [])
            if record.kind == Kind.STREAM_MESSAGE
        ]


def _board() -> WatchBoard:
    board = WatchBoard()
    board.open(None)
    return board


@pytest.fixture
def world() -> World:
    made = World()
    made.settle(2)
    return made


def test_created_comes_first_and_events_follow_in_order(world: World) -> None:
    world.watch(b"c", key=b"a", range_end=b"z")
    for i in range(5):
        world.put(b"b%d" % i, b"v")
    world.delete(b"b0", b"b9")
    world.settle()
    first, *rest = world.responses(b"c")
    assert first.created
    assert first.watch_id == 0
    events = [(e.kv.mod_revision, e.type, e.kv.key) for r in rest for e in r.events]
    assert events == [(2 + i, 0, b"b%d" % i) for i in range(5)] + [(7, 1, b"b%d" % i) for i in range(5)]


def test_all_events_of_a_revision_come_in_one_response(world: World) -> None:
    """RELIABILITY W4: atomic."""
    for i in range(50):
        world.put(b"k%02d" % i, b"v" * 100)
    world.watch(b"c", key=b"k", range_end=b"l", start_revision=1)
    world.delete(b"k", b"l")
    world.settle()
    holding = [{e.kv.mod_revision for e in r.events} for r in world.responses(b"c") if r.events]
    for i, revisions in enumerate(holding):
        assert all(not revisions & others for others in holding[i + 1 :])
    assert sum(len(r.events) for r in world.responses(b"c")) == 100


def test_a_response_over_the_limit_is_fragmented_only_if_asked(world: World) -> None:
    world.watchd._response_bytes_max = 500
    for i in range(10):
        world.put(b"k%d" % i, b"v" * 100)
    world.watch(b"whole", key=b"k", range_end=b"l", prev_kv=True)
    world.watch(b"parts", key=b"k", range_end=b"l", prev_kv=True, fragment=True)
    world.delete(b"k", b"l")
    world.settle()
    whole = [r for r in world.responses(b"whole") if r.events]
    parts = [r for r in world.responses(b"parts") if r.events]
    assert [len(r.events) for r in whole] == [10]
    assert len(parts) > 1
    assert [r.fragment for r in parts] == [True] * (len(parts) - 1) + [False]
    assert [e for r in parts for e in r.events] == list(whole[0].events)


def test_what_is_only_just_behind_comes_from_the_ring(world: World) -> None:
    """Apply is not asked for what this process has heard a moment ago."""
    world.watch(b"c", key=b"k")
    world.stalled.add(b"c")
    for i in range(20):
        world.put(b"k", b"%d" % i)
        world.settle(1)
    world.stalled.clear()
    world.watch(b"late", key=b"k", start_revision=5)
    world.settle(3)
    assert [e.kv.mod_revision for r in world.responses(b"c") for e in r.events] == list(range(2, 22))
    assert [e.kv.mod_revision for r in world.responses(b"late") for e in r.events] == list(range(5, 22))
    assert world.asked_history == 0


def test_what_the_ring_has_let_go_of_comes_from_apply(world: World) -> None:
    world.watchd._ring._bytes_max = 100
    world.watch(b"c", key=b"k")
    world.stalled.add(b"c")
    for i in range(20):
        world.put(b"k", b"%d" % i)
        world.settle(1)
    world.stalled.clear()
    world.settle(3)
    assert [e.kv.mod_revision for r in world.responses(b"c") for e in r.events] == list(range(2, 22))
    assert world.asked_history > 0


def test_what_was_before_is_looked_up_only_once_somebody_asks_for_it(world: World) -> None:
    """And from then on it is told, whatever was in the ring without it."""
    world.watch(b"plain", key=b"k")
    world.put(b"k", b"1")
    world.put(b"k", b"2")
    world.settle(1)
    assert not world.feed.wants_prev
    world.watch(b"prev", key=b"k", prev_kv=True, start_revision=2)
    world.settle(3)
    assert world.feed.wants_prev
    world.put(b"k", b"3")
    world.settle(3)
    plain = [(e.kv.value, e.prev_kv.value) for r in world.responses(b"plain") for e in r.events]
    assert plain == [(b"1", b""), (b"2", b""), (b"3", b"")]
    prev = [(e.kv.value, e.prev_kv.value) for r in world.responses(b"prev") for e in r.events]
    assert prev == [(b"1", b""), (b"2", b"1"), (b"3", b"2")]


def test_nothing_was_before_what_a_txn_creates_though_it_has_deleted_it_first(world: World) -> None:
    """As etcd 3.5.1 tells it: to who follows, and to who comes later."""
    world.watch(b"live", key=b"k", prev_kv=True)
    world.put(b"k", b"1")
    ops = [
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0")),  # no end: no overlap
        pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"2")),
    ]
    world.commit((Method.TXN, pb.TxnRequest(success=ops).SerializeToString()))
    world.put(b"k", b"3")
    world.settle(3)
    world.watch(b"late", key=b"k", prev_kv=True, start_revision=2)
    world.settle(3)
    for who in (b"live", b"late"):
        told = [(e.type, e.kv.value, e.prev_kv.value) for r in world.responses(who) for e in r.events]
        assert told == [
            (pb.Event.PUT, b"1", b""),
            (pb.Event.DELETE, b"", b"1"),
            (pb.Event.PUT, b"2", b""),
            (pb.Event.PUT, b"3", b"2"),
        ]


def test_a_paused_stream_is_sent_nothing_and_goes_on_where_it_was(world: World) -> None:
    """Others of the same connection go on."""
    world.watch(b"c", key=b"k")
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")).SerializeToString()
    world.ask(
        b"c",
        wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 2, b""),
        wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 2, create),
        wire.encode(Method.WATCH, Kind.STREAM_PAUSE, 0, 1, b""),
    )

    def heard() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {1: [], 2: []}
        for record in world.inbox[b"c"]:
            for event in pb.WatchResponse.FromString(record.payload).events:
                found[record.id].append(event.kv.mod_revision)
        return found

    for i in range(3):
        world.put(b"k", b"%d" % i)
        world.settle(3)
    assert heard() == {1: [], 2: [2, 3, 4]}
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_RESUME, 0, 1, b""))
    world.put(b"k", b"last")
    world.settle(3)
    assert heard() == {1: [2, 3, 4, 5], 2: [2, 3, 4, 5]}


def test_a_paused_stream_that_only_asks_is_closed_alone(world: World) -> None:
    world.watch(b"c", key=b"k")
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 2, b""))
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_PAUSE, 0, 2, b""))
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"x")).SerializeToString()
    for _ in range(1100):
        world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 2, create))
    closed = [record for record in world.inbox[b"c"] if record.kind == Kind.STREAM_CLOSE and record.id == 2]
    assert closed
    assert closed[0].status == 8
    world.put(b"k", b"v")
    world.settle(3)
    assert [
        e.kv.value
        for record in world.inbox[b"c"]
        if record.id == 1 and record.kind == Kind.STREAM_MESSAGE
        for e in pb.WatchResponse.FromString(record.payload).events
    ] == [b"v"]


def test_watchers_of_the_same_keys_share_what_they_are_told(world: World) -> None:
    """Those of one client that takes it so; who is elsewhere in history, or paused, is told alone."""
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")).SerializeToString()
    late = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", start_revision=4)).SerializeToString()
    for id, request in ((1, create), (2, create), (3, create), (4, late)):
        world.ask(
            b"gateway",
            wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, id, SHARES),
            wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, id, request),
        )
    world.ask(b"gateway", wire.encode(Method.WATCH, Kind.STREAM_PAUSE, 0, 3, b""))
    world.inbox.clear()
    heard: dict[int, list[int]] = {1: [], 2: [], 3: [], 4: []}

    def listen() -> set[int]:
        kinds = set()
        for record in world.inbox.pop(b"gateway", []):
            kinds.add(record.kind)
            payload, whom = record.payload, [record.id]
            if record.kind == Kind.STREAM_SHARE:
                (count,) = SHARE_HEAD.unpack_from(payload)
                whom = [id for id, _ in struct.iter_unpack("<Qq", payload[4 : 4 + 16 * count])]
                payload = payload[4 + 16 * count :]
            for id in whom:
                heard[id] += [event.kv.mod_revision for event in pb.WatchResponse.FromString(payload).events]
        return kinds

    world.put(b"k", b"2")
    world.settle(2)
    assert listen() == {Kind.STREAM_SHARE}
    assert heard == {1: [2], 2: [2], 3: [], 4: []}
    world.ask(b"gateway", wire.encode(Method.WATCH, Kind.STREAM_RESUME, 0, 3, b""))
    for value in (b"3", b"4", b"5"):
        world.put(b"k", value)
        world.settle(2)
    listen()
    assert heard == {1: [2, 3, 4, 5], 2: [2, 3, 4, 5], 3: [2, 3, 4, 5], 4: [4, 5]}
    world.stalled.add(b"gateway")
    world.put(b"k", b"6")
    world.settle(2)
    world.stalled.clear()
    world.settle(2)
    listen()
    assert [revisions[-1] for revisions in heard.values()] == [6, 6, 6, 6]


def test_changes_that_have_waited_together_are_delivered_together(world: World) -> None:
    world.watch(b"c", key=b"k")
    for i in range(10):
        world.put(b"k", b"%d" % i)
    world.settle(1)
    assert [len(r.events) for r in world.responses(b"c")[1:]] == [10]


def test_a_change_is_brought_to_those_alone_whom_it_concerns(world: World) -> None:
    """Whatever the others watch: keys, prefixes, ranges, everything from a key on."""
    for number in range(300):
        key = b"x%03d" % number
        world.watch(b"key%d" % number, key=key)
        world.watch(b"range%d" % number, key=key, range_end=key + b"zz")
        world.watch(b"from%d" % number, key=key, range_end=b"\0")
    world.watch(b"c", key=b"k", range_end=b"l")
    brought = []
    bring = world.watchd._bring
    world.watchd._bring = lambda watcher, *rest: (brought.append(watcher), bring(watcher, *rest))[1]  # type: ignore[method-assign,func-returns-value,assignment]
    world.put(b"k", b"v")
    world.settle()
    assert [watcher.spec.key for watcher in brought] == [b"k"]
    assert [len(r.events) for r in world.responses(b"c")] == [0, 1]


def test_whoever_was_not_concerned_goes_on_behind_what_it_was_spared(world: World) -> None:
    """After a session that ended it asks for what came after it, not for what it was created at."""
    world.watch(b"c", key=b"k")
    for _ in range(5):
        world.put(b"other", b"v")
    world.settle()
    (watcher,) = world.watchd._streams[next(iter(world.watchd._streams))].watchers.values()
    assert watcher.next == 2
    world.watchd._lost()
    world.put(b"k", b"while nobody heard")
    world.to_watch.clear()
    world.settle()
    assert watcher.next == 8
    assert [e.kv.mod_revision for r in world.responses(b"c") for e in r.events] == [7]
    assert world.asked_history == 1


def test_a_future_start_delivers_nothing_before_it(world: World) -> None:
    """etcd #20221."""
    world.watch(b"c", key=b"k", start_revision=5)
    for i in range(6):
        world.put(b"k", b"%d" % i)
        world.settle(3)
    assert [e.kv.mod_revision for r in world.responses(b"c") for e in r.events] == [5, 6, 7]


@pytest.mark.parametrize(
    ("create", "reason"),
    [
        ({"key": b"b", "range_end": b"a"}, "mvcc: watcher range is empty"),
        ({"key": b"b", "range_end": b"b"}, "mvcc: watcher range is empty"),
        ({"key": b"b", "start_revision": -1}, "etcdserver: mvcc: required revision has been compacted"),
    ],
)
def test_a_watch_that_makes_no_sense_is_created_and_canceled_with_the_reason(
    world: World, create: dict[str, object], reason: str
) -> None:
    world.watch(b"c", **create)
    (answer,) = world.responses(b"c")
    assert (answer.watch_id, answer.created, answer.canceled, answer.cancel_reason) == (-1, True, True, reason)


def test_a_duplicate_watch_id_is_refused_and_the_first_goes_on(world: World) -> None:
    world.watch(b"c", key=b"k", watch_id=7)
    request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"x", watch_id=7)).SerializeToString()
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, request))
    world.put(b"k", b"v")
    world.settle()
    first, second, event = world.responses(b"c")
    assert (first.watch_id, second.watch_id) == (7, -1)
    assert second.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    assert event.watch_id == 7


def test_a_start_before_the_compaction_is_created_then_canceled_with_its_revision(world: World) -> None:
    for _ in range(5):
        world.put(b"k", b"v")
    world.compact(4)
    world.settle()
    world.watch(b"c", key=b"k", start_revision=3)
    world.watch(b"d", key=b"k", start_revision=4)
    world.settle()
    created, canceled = world.responses(b"c")
    assert created.created
    assert not created.canceled
    assert (canceled.canceled, canceled.compact_revision, canceled.header.revision) == (True, 4, 0)
    assert canceled.cancel_reason == ""
    assert [e.kv.mod_revision for r in world.responses(b"d") for e in r.events] == [4, 5, 6]


def test_progress_is_told_only_when_nothing_is_outstanding(world: World) -> None:
    """RELIABILITY W6, etcd #15220."""
    world.put(b"k", b"v")
    world.stalled.add(b"c")
    world.watch(b"c", key=b"k", start_revision=1)
    progress = pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString()
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, progress))
    world.stalled.clear()
    world.settle()
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, progress))
    kinds = [(r.created, len(r.events), r.watch_id) for r in world.responses(b"c")]
    assert kinds == [(True, 0, 0), (False, 1, 0), (False, 0, -1)]


def test_a_client_that_is_gone_leaves_nothing(world: World) -> None:
    world.watch(b"c", key=b"k")
    world.gone.add(b"c")
    world.put(b"k", b"v")
    world.settle()
    assert not world.watchd._streams
    assert not world.watchd._behind
    assert not world.watchd._of
    assert not list(world.watchd._wanted.at(b"k"))


def test_a_client_that_asks_and_never_reads_is_dropped(world: World) -> None:
    world.watch(b"c", key=b"k")
    world.stalled.add(b"c")
    cancel = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0)).SerializeToString()
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"x")).SerializeToString()
    for _ in range(1100):
        world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, create))
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, cancel))
    assert not world.watchd._streams


def test_garbage_is_answered_and_ends_only_its_own_stream(world: World) -> None:
    world.watch(b"good", key=b"k")
    world.ask(b"bad", b"garbage")
    world.ask(b"bad", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 9, b""))
    world.ask(b"bad", wire.encode(Method.PUT, Kind.CALL, 0, 9, b""))
    world.ask(b"bad", wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 3, b""))
    world.ask(b"bad", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 3, b"\xff\xff"))
    world.put(b"k", b"v")
    world.settle()
    refusals = world.inbox[b"bad"]
    assert all(r.kind == Kind.STREAM_CLOSE and r.status for r in refusals)
    assert [r.id for r in refusals] == [0, 9, 9, 3]
    assert [len(r.events) for r in world.responses(b"good")] == [0, 1]


def test_while_nobody_watches_nothing_is_sent_and_the_next_watcher_misses_nothing(world: World) -> None:
    world.watch(b"c", key=b"k")
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_CLOSE, 0, 1, b""))
    world.settle(60)
    assert world.watchd._session == 0
    world.put(b"k", b"unseen")
    assert not [item for item in world.to_watch if isinstance(item, Changes)]
    world.watch(b"d", key=b"k", start_revision=2)
    world.put(b"k", b"seen")
    world.settle()
    assert [e.kv.value for r in world.responses(b"d") for e in r.events] == [b"unseen", b"seen"]


def test_a_watch_from_now_on_waits_until_apply_knows_what_now_is() -> None:
    """A store that was just opened is as old as its last flush: what it replays was shown before."""
    world = World(caught_up=False)
    world.watch(b"c", key=b"k")
    world.put(b"k", b"replayed")
    world.settle()
    assert not world.responses(b"c")
    world.feed.caught_up(1)
    world.put(b"k", b"new")
    world.settle()
    created, event = world.responses(b"c")
    assert created.header.revision == 2
    assert [e.kv.value for e in event.events] == [b"new"]


class Client:
    """A watcher as a careful client has it: it resumes after a loss, and checks what it is told."""

    def __init__(self, name: int, rng: random.Random, world: World) -> None:
        self.name, self.world = name, world
        self.key = bytes([rng.choice(b"abcd")])
        self.end = rng.choice([b"", b"c", b"z", b"\0"])
        if self.end and self.end != b"\0" and self.end <= self.key:
            self.end = b""
        self.filters = rng.choice([[], [], [0], [1]])
        self.start = rng.choice([0, 1, max(1, world.keyspace.revision - 3), world.keyspace.revision + 4])
        self.prev_kv = rng.random() < 0.5
        self.got: list[tuple[int, bytes]] = []
        self.compacted = 0
        self.connections = 0
        self.next = self.start
        self.connect()

    def connect(self) -> None:
        self.connections += 1
        self.identity = b"%d/%d" % (self.name, self.connections)
        self.read = 0
        create = {"key": self.key, "range_end": self.end, "start_revision": self.next}
        self.world.watch(self.identity, **create, filters=self.filters, prev_kv=self.prev_kv)

    def take(self) -> None:
        records = self.world.inbox.get(self.identity, [])
        for record in records[self.read :]:
            if record.kind == Kind.STREAM_CLOSE:
                self.connect()
                return
            response = pb.WatchResponse.FromString(record.payload)
            if response.created and not self.next:
                self.next = self.start = response.header.revision + 1
            if response.canceled:
                self.compacted = response.compact_revision
                assert self.next < self.compacted
            revisions = [e.kv.mod_revision for e in response.events]
            assert revisions == sorted(revisions)
            assert all(r >= self.next for r in revisions), "told twice, or before its start"
            for event in response.events:
                event.ClearField("prev_kv")
                self.got.append((event.kv.mod_revision, event.SerializeToString()))
            if revisions:
                self.next = revisions[-1] + 1
        self.read = len(records)

    def wants(self, raw: bytes) -> bool:
        event = pb.Event.FromString(raw)
        key = event.kv.key
        inside = key == self.key if not self.end else key >= self.key and (self.end == b"\0" or key < self.end)
        return inside and event.type not in self.filters


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_watcher_hears_every_change_once(seed: int) -> None:
    rng = random.Random(seed)
    world = World(response_bytes_max=rng.choice([200, 1 << 20]))
    world.prompt = False
    clients: list[Client] = []
    for _ in range(300):
        what = rng.random()
        if what < 0.45:
            keys = rng.sample(b"abcd", rng.randint(1, 3))
            world.commit(
                *(
                    (Method.PUT, pb.PutRequest(key=bytes([k]), value=b"%d" % rng.randrange(99)).SerializeToString())
                    for k in keys
                )
            )
        elif what < 0.55:
            world.delete(b"a", rng.choice([b"", b"c", b"z"]))
        elif what < 0.60 and world.keyspace.revision > world.keyspace.compacted + 8:
            world.compact(world.keyspace.revision - rng.randint(1, 6))
            while world.keyspace.sweep():
                pass
        elif what < 0.70 and len(clients) < 8:
            clients.append(Client(len(clients), rng, world))
        elif what < 0.75 and clients:
            world.stalled ^= {rng.choice(clients).identity}
        elif what < 0.78 and world.to_watch:  # a message between the processes is lost with its session
            lost = [item for item in world.to_watch if isinstance(item, Changes)]
            if lost:
                world.to_watch.remove(lost[0])
        elif what < 0.80:
            world.restart_watch()
            world.stalled.clear()
            world.inbox.clear()
            world.settle(2)
            for client in clients:
                if not client.compacted:
                    client.connect()
        elif what < 0.82 and clients:  # a connection breaks: what was on its way is gone
            client = rng.choice(clients)
            if not client.compacted:
                world.gone.add(client.identity)
                client.take()
                client.connect()
        else:
            world.settle(rng.randint(0, 2))
        for client in clients:
            client.take()
    world.stalled.clear()
    for _ in range(5):
        world.feed.tick(1)
        world.settle(10)
        for client in clients:
            client.take()
    assert clients
    for client in clients:
        until = world.keyspace.revision if not client.compacted else client.next - 1
        wanted = [(r, e) for r, e in world.events if client.start <= r <= until and client.wants(e)]
        assert client.got == wanted, (seed, client.name)
        if not client.compacted:
            assert client.start > world.keyspace.revision or client.start >= 1
