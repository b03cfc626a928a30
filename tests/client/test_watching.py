"""Watches over connections that come and go: every event once, in order, or an error saying why not (kvorum.watching).

The guarantees are etcd's: ordered, unique, reliable, atomic, resumable, bookmarkable (api guarantees of Watch).
"""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.core import DIAL_SECONDS, NEVER
from kvorum.results import DeleteEvent, PutEvent, WatchResponse
from kvorum.watching import (
    ANSWER_SECONDS,
    BACKLOG_BYTES_MAX,
    IDLE_SECONDS,
    QUIET_SECONDS,
    Session,
    State,
    Watch,
    WatchCore,
)
from kvorum.wire import Kind, Method, Record

CLUSTER = 7


class Desk:
    """A WatchCore, a clock to turn, and the node's end of its connection."""

    def __init__(self, nodes: int = 2, seed: int = 0) -> None:
        self.core = WatchCore(Random(seed))
        self.now = 100.0
        members = [pb.Endpoint(member_id=i, watch=f"tcp://n{i}:2") for i in range(1, nodes + 1)]
        self.hello = pb.HelloResponse(header=pb.ResponseHeader(cluster_id=CLUSTER, member_id=1), members=members)
        self.core.learn(self.hello, "tcp://n1:1")

    def add(self, watch: Watch) -> Watch:
        self.core.add(watch, self.now)
        return watch

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.core.wake_at <= until:
            self.now = max(self.now, self.core.wake_at)
            before = self.core.wake_at
            self.core.tick(self.now)
            assert self.core.wake_at > self.now or self.core.wake_at != before, "the core spins"
        self.now = until

    def connect(self) -> Session:
        self.advance(0)
        self.core.closing.clear()
        (session,) = self.core.opening
        self.core.opening.clear()
        self.core.connected(session, self.now)
        return session

    def lose(self) -> None:
        assert self.core.current is not None
        self.core.lost(self.core.current, self.now, "connection lost")
        self.advance(0.06)

    def sent(self) -> list[Record]:
        return wire.decode(self.core.take())

    def created(self) -> tuple[int, pb.WatchCreateRequest]:
        """The stream and the request of the one watch that was just created."""
        found = [
            (record.id, request.create_request)
            for record in self.sent()
            if record.kind == Kind.STREAM_MESSAGE
            and (request := pb.WatchRequest.FromString(record.payload)).HasField("create_request")
        ]
        assert len(found) == 1
        return found[0]

    def say(self, stream: int, response: pb.WatchResponse) -> None:
        assert self.core.current is not None
        record = wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, stream, response.SerializeToString())
        self.core.received(self.core.current, record, self.now)

    def say_created(self, stream: int, revision: int = 10) -> None:
        self.say(stream, pb.WatchResponse(header=header(revision), created=True))

    def close(self, stream: int, error: errors.KvorumError) -> None:
        assert self.core.current is not None
        record = wire.encode(Method.WATCH, Kind.STREAM_CLOSE, error.code, stream, error.text.encode())
        self.core.received(self.core.current, record, self.now)

    def given(self) -> list[WatchResponse | errors.KvorumError | None]:
        found = [given.what for given in self.core.given]
        self.core.given.clear()
        return found

    def live(self, watch: Watch, revision: int = 10) -> int:
        """Bring the only watch to life; returns its stream."""
        self.add(watch)
        self.connect()
        stream, _ = self.created()
        self.say_created(stream, revision)
        assert self.given() == [None]
        return stream


def header(revision: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(cluster_id=CLUSTER, member_id=1, revision=revision)


def events(*revisions: int, fragment: bool = False) -> pb.WatchResponse:
    made = [pb.Event(kv=pb.KeyValue(key=b"k", mod_revision=revision, value=b"%d" % revision)) for revision in revisions]
    return pb.WatchResponse(header=header(revisions[-1]), events=made, fragment=fragment)


def revisions(given: WatchResponse | errors.KvorumError | None) -> list[int]:
    assert isinstance(given, WatchResponse)
    return [event.mod_revision for event in given.events]


# ---- the ordinary way


def test_a_watch_opens_a_stream_and_is_given_what_comes_on_it() -> None:
    desk = Desk()
    desk.add(Watch(b"k", b"l", prev_kv=True, filters=["noput"]))
    desk.connect()
    opened, *_ = records = desk.sent()
    assert (opened.method, opened.kind, opened.payload) == (Method.WATCH, Kind.STREAM_OPEN, b"")
    asked = pb.WatchRequest.FromString(records[1].payload).create_request
    assert (records[1].id, asked.key, asked.range_end, asked.prev_kv) == (opened.id, b"k", b"l", True)
    assert list(asked.filters) == [pb.WatchCreateRequest.NOPUT]
    desk.say_created(opened.id)
    response = events(11)
    response.events.add(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"k", mod_revision=11)).prev_kv.value = b"old"
    desk.say(opened.id, response)
    created, given = desk.given()
    assert created is None
    assert isinstance(given, WatchResponse)
    put, deleted = given.events
    assert isinstance(put, PutEvent)
    assert isinstance(deleted, DeleteEvent)
    assert (put.value, put.prev_kv, deleted.prev_value) == (b"11", None, b"old")
    assert given.revision == 11


def test_many_watches_share_a_connection() -> None:
    desk = Desk()
    watches = [desk.add(Watch(b"%d" % i)) for i in range(3)]
    desk.connect()
    streams = {
        pb.WatchRequest.FromString(record.payload).create_request.key: record.id
        for record in desk.sent()
        if record.kind == Kind.STREAM_MESSAGE
    }
    later = desk.add(Watch(b"later"))
    stream, _ = desk.created()
    for i in range(3):
        desk.say_created(streams[b"%d" % i])
    desk.say_created(stream)
    desk.core.given.clear()
    desk.say(streams[b"1"], events(11))
    desk.say(stream, events(12))
    assert [given.watch for given in desk.core.given] == [watches[1], later]


def test_fragments_of_a_revision_are_given_as_one() -> None:
    """W4, atomic: fragments of one response are joined by the client."""
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    desk.say(stream, events(11, fragment=True))
    desk.say(stream, events(11, fragment=True))
    assert desk.given() == []
    desk.say(stream, events(11))
    (given,) = desk.given()
    assert revisions(given) == [11, 11, 11]


def test_progress_is_given_only_to_those_who_want_it() -> None:
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    desk.say(stream, pb.WatchResponse(header=header(20)))
    assert desk.given() == []
    desk = Desk()
    stream = desk.live(Watch(b"k", progress_notify=True))
    desk.say(stream, pb.WatchResponse(header=header(20)))
    (given,) = desk.given()
    assert isinstance(given, WatchResponse)
    assert (given.events, given.revision) == ((), 20)


def test_whoever_asks_is_told_how_far_his_watch_is_once() -> None:
    """etcd's RequestProgress: an answer without events, to those who didn't want any otherwise, too."""
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    desk.core.ask_progress(desk.now)
    (asked,) = desk.sent()
    assert asked.id == stream
    assert pb.WatchRequest.FromString(asked.payload).HasField("progress_request")
    desk.say(stream, events(11))
    desk.say(stream, pb.WatchResponse(header=header(20), watch_id=-1))
    desk.say(stream, pb.WatchResponse(header=header(21)))
    first, second = desk.given()
    assert isinstance(first, WatchResponse)
    assert isinstance(second, WatchResponse)
    assert revisions(first) == [11]
    assert (second.events, second.revision) == ((), 20)


def test_a_question_for_progress_outlives_the_connection() -> None:
    desk = Desk()
    desk.live(Watch(b"k"))
    desk.core.ask_progress(desk.now)
    desk.lose()
    desk.connect()
    stream, _ = desk.created()
    desk.say_created(stream, 15)
    assert [pb.WatchRequest.FromString(record.payload).WhichOneof("request_union") for record in desk.sent()] == [
        "progress_request"
    ]
    desk.say(stream, pb.WatchResponse(header=header(20), watch_id=-1))
    assert [given.revision for given in desk.given() if isinstance(given, WatchResponse)] == [20]


def test_a_watch_by_broadcast_is_told_with_the_next_publication() -> None:
    desk = Desk()
    desk.add(Watch(b"k"))
    session = desk.connect()
    stream, _ = desk.created()
    topic = bytes(16)
    desk.say(stream, pb.WatchResponse(header=header(10), created=True, topic=topic, broadcast="tcp://n1:3"))
    desk.core.published(session, struct.pack("<16sQQ", topic, 5, 10), desk.now)
    desk.core.ask_progress(desk.now)
    assert desk.given() == [None]
    for last in (12, 14):
        desk.core.published(session, struct.pack("<16sQQ", topic, 11, last), desk.now)
    (told,) = desk.given()
    assert isinstance(told, WatchResponse)
    assert (told.events, told.revision, told.header.cluster_id) == ((), 12, CLUSTER)


# ---- resuming


def test_a_watch_goes_on_after_the_last_revision_it_was_given() -> None:
    """W5: a new watch from last revision + 1, at any member, continues exactly."""
    desk = Desk()
    watch = Watch(b"k")
    stream = desk.live(watch)
    desk.say(stream, events(11, 12))
    desk.lose()
    desk.connect()
    stream, asked = desk.created()
    assert asked.start_revision == 13
    desk.say_created(stream, 15)
    desk.say(stream, events(13))
    assert [revisions(given) for given in desk.given() if given is not None] == [[11, 12], [13]]


def test_a_watch_from_now_that_has_seen_nothing_goes_on_from_when_it_was_created() -> None:
    """Otherwise what happens while it is not connected would be lost."""
    desk = Desk()
    desk.live(Watch(b"k"), revision=10)
    desk.lose()
    desk.connect()
    assert desk.created()[1].start_revision == 11


def test_progress_moves_the_point_to_go_on_from() -> None:
    """A quiet watch must not fall behind compaction only because nothing happened to its keys."""
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    desk.say(stream, pb.WatchResponse(header=header(1000)))
    desk.lose()
    desk.connect()
    assert desk.created()[1].start_revision == 1001


def test_half_a_revision_is_forgotten_with_its_connection() -> None:
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    desk.say(stream, events(11, fragment=True))
    desk.lose()
    desk.connect()
    stream, asked = desk.created()
    assert asked.start_revision == 11
    desk.say_created(stream)
    desk.say(stream, events(11))
    assert [revisions(given) for given in desk.given() if given is not None] == [[11]]


def test_what_comes_on_an_old_stream_is_nobodys() -> None:
    desk = Desk()
    old = desk.live(Watch(b"k"))
    desk.lose()
    desk.connect()
    stream, _ = desk.created()
    assert stream != old
    desk.say(old, events(11))
    assert desk.given() == []


def test_a_future_start_stays_where_it_is() -> None:
    desk = Desk()
    desk.live(Watch(b"k", start_revision=500), revision=10)
    desk.lose()
    desk.connect()
    assert desk.created()[1].start_revision == 500


# ---- ends


def test_a_cancelled_watch_closes_its_stream_and_is_given_nothing_more() -> None:
    desk = Desk()
    watch = Watch(b"k")
    stream = desk.live(watch)
    desk.sent()
    desk.core.cancel(watch, desk.now)
    (closed,) = desk.sent()
    assert (closed.kind, closed.id) == (Kind.STREAM_CLOSE, stream)
    desk.say(stream, events(11))
    assert desk.given() == []
    desk.lose()
    assert desk.core.opening == []


def test_compaction_past_the_watch_ends_it_with_the_compact_revision() -> None:
    """api.md 7.1: created, then canceled with compact_revision and no reason."""
    desk = Desk()
    watch = Watch(b"k", start_revision=3)
    stream = desk.live(watch)
    desk.say(stream, pb.WatchResponse(canceled=True, compact_revision=8))
    (error,) = desk.given()
    assert isinstance(error, errors.Compacted)
    assert error.compact_revision == 8
    assert watch.state is State.OVER


def test_a_refused_watch_ends_with_the_reason() -> None:
    desk = Desk()
    desk.add(Watch(b"k"))
    desk.connect()
    stream, _ = desk.created()
    refused = pb.WatchResponse(header=header(10), watch_id=-1, created=True, canceled=True, cancel_reason="no way")
    desk.say(stream, refused)
    (error,) = desk.given()
    assert isinstance(error, errors.Refused)
    assert error.text == "no way"


def test_a_missing_permission_keeps_its_code() -> None:
    """The reason is the text of a gRPC error there: clientv3 matches on it."""
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    desk.say(stream, pb.WatchResponse(canceled=True, cancel_reason=reason))
    (error,) = desk.given()
    assert isinstance(error, errors.Refused)
    assert (error.code, error.text) == (errors.Code.PERMISSION_DENIED, "etcdserver: permission denied")


def test_a_stream_that_is_closed_with_a_refusal_ends_its_watch_alone() -> None:
    desk = Desk()
    stream = desk.live(Watch(b"k"))
    desk.close(stream, errors.Unimplemented("unknown method 7"))
    (error,) = desk.given()
    assert isinstance(error, errors.Refused)
    assert desk.core.current is not None


def test_a_stream_that_is_closed_because_the_node_cannot_serve_goes_on_elsewhere() -> None:
    desk = Desk(nodes=2)
    stream = desk.live(Watch(b"k"))
    assert desk.core.current is not None
    first = desk.core.current.endpoint
    desk.close(stream, errors.Stopped())
    assert desk.given() == []
    assert desk.connect().endpoint != first
    assert desk.created()[1].start_revision == 11


# ---- what cannot be


@pytest.mark.parametrize(
    "options",
    [
        {"start_revision": -1},
        {"filters": ["nothing"]},
        {"range_end": b"k"},
        {"range_end": b"a"},
    ],
)
def test_a_watch_that_makes_no_sense_is_refused_before_it_is_sent(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"negative|filter|range"):
        Watch(b"k", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        wire.encode(Method.PUT, Kind.STREAM_MESSAGE, 0, 1, b""),
        wire.encode(Method.WATCH, Kind.REPLY, 0, 1, b""),
        wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, b"\xff\xff"),
        wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, b"abc")[:-1],
    ],
    ids=["a byte", "another method", "a reply", "no message", "half a payload"],
)
def test_a_node_that_sends_garbage_is_left_and_the_watch_goes_on_elsewhere(garbage: bytes) -> None:
    desk = Desk(nodes=2)
    stream = desk.live(Watch(b"k"))
    assert stream == 1
    assert desk.core.current is not None
    first = desk.core.current.endpoint
    desk.core.received(desk.core.current, garbage, desk.now)
    assert desk.given() == []
    assert desk.connect().endpoint != first
    assert desk.created()[1].start_revision == 11


def test_a_node_of_another_cluster_is_left() -> None:
    """Its revisions are not ours: going on there would show another history."""
    desk = Desk(nodes=2)
    desk.add(Watch(b"k"))
    desk.connect()
    stream, _ = desk.created()
    desk.say(stream, pb.WatchResponse(header=pb.ResponseHeader(cluster_id=8, revision=10), created=True))
    assert desk.given() == []
    desk.connect()
    assert desk.created()[1].start_revision == 0


# ---- time


def test_a_node_that_does_not_answer_is_given_up_for_the_next() -> None:
    desk = Desk(nodes=2)
    desk.add(Watch(b"k"))
    desk.advance(0)
    (session,) = desk.core.opening
    desk.core.opening.clear()
    desk.advance(DIAL_SECONDS)
    assert desk.core.closing == [session]
    assert desk.connect().endpoint != session.endpoint


def test_a_quiet_node_is_asked_and_left_if_it_does_not_answer() -> None:
    """A process that hangs keeps its connection alive; its watchers would wait for ever."""
    desk = Desk(nodes=2)
    desk.live(Watch(b"k"))
    desk.sent()
    assert desk.core.current is not None
    session = desk.core.current
    desk.core.received(session, b"", desk.now)
    desk.advance(QUIET_SECONDS)
    (asked,) = desk.sent()
    assert pb.WatchRequest.FromString(asked.payload).HasField("progress_request")
    desk.say(asked.id, pb.WatchResponse(header=header(10), watch_id=-1))
    desk.advance(QUIET_SECONDS)
    assert len(desk.sent()) == 1
    assert desk.core.current is session
    desk.advance(ANSWER_SECONDS)
    assert desk.core.current is not session
    assert desk.given() == []


def test_a_node_that_says_nothing_after_the_handshake_is_left_too() -> None:
    desk = Desk(nodes=2)
    desk.add(Watch(b"k"))
    session = desk.connect()
    desk.advance(ANSWER_SECONDS)
    assert desk.core.current is not session


def test_without_a_node_that_works_the_members_are_asked_for_again() -> None:
    """The cluster may have moved to other addresses while we were away."""
    desk = Desk(nodes=1)
    desk.add(Watch(b"k"))
    assert not desk.core.wants_members
    desk.advance(0)
    desk.core.opening.clear()
    desk.lose()
    assert desk.core.wants_members
    moved = [pb.Endpoint(member_id=9, watch="tcp://moved:2")]
    desk.core.learn(pb.HelloResponse(header=pb.ResponseHeader(cluster_id=CLUSTER), members=moved), "tcp://n1:1")
    desk.core.opening.clear()
    desk.core.closing.clear()
    if desk.core.current is not None:
        desk.lose()
    seen = {desk.core.opening[-1].endpoint} if desk.core.opening else {desk.connect().endpoint}
    assert seen <= {"tcp://moved:2", "tcp://n1:2"}
    assert "tcp://moved:2" in list(desk.core.endpoints)


def test_only_the_asked_member_is_watched_on_if_so_wished() -> None:
    desk = Desk(nodes=0)
    members = [pb.Endpoint(member_id=i, watch=f"tcp://n{i}:2") for i in (1, 2, 3)]
    hello = pb.HelloResponse(header=pb.ResponseHeader(member_id=2), members=members)
    desk.core.learn(hello, "tcp://n2:1", others=False)
    assert list(desk.core.endpoints) == ["tcp://n2:2"]


def test_a_node_that_tells_no_host_is_watched_where_it_was_called() -> None:
    """It listens everywhere, or was set up for its own machine only: the host that led to it leads to it again."""
    desk = Desk(nodes=0)
    members = [pb.Endpoint(member_id=1, watch="tcp://0.0.0.0:2"), pb.Endpoint(member_id=2, watch="tcp://127.0.0.1:2")]
    hello = pb.HelloResponse(header=pb.ResponseHeader(member_id=1), members=members)
    desk.core.learn(hello, "tcp://db1:2381")
    assert list(desk.core.endpoints) == ["tcp://db1:2"]


def test_a_connection_without_watches_is_kept_a_while_and_then_left() -> None:
    desk = Desk()
    watch = Watch(b"k")
    desk.live(watch)
    session = desk.core.current
    assert session is not None
    desk.core.cancel(watch, desk.now)
    for _ in range(int(IDLE_SECONDS) - 1):
        desk.advance(1)
        desk.core.received(session, b"", desk.now)
    assert desk.core.current is session
    desk.advance(1)
    assert desk.core.current is None
    assert desk.core.closing == [session]
    assert desk.core.wake_at == NEVER


# ---- a slow reader


def test_a_slow_readers_watch_is_paused_and_goes_on_where_it_stopped() -> None:
    desk = Desk()
    watch = Watch(b"k")
    stream = desk.live(watch)
    desk.sent()
    big = events(11)
    big.events[0].kv.value = b"x" * BACKLOG_BYTES_MAX
    desk.say(stream, big)
    (closed,) = desk.sent()
    assert (closed.kind, closed.id) == (Kind.STREAM_CLOSE, stream)
    desk.say(stream, events(12))
    assert len(desk.core.given) == 1
    desk.core.caught_up(watch, desk.now)
    watch.read_bytes = watch.given_bytes
    stream, asked = desk.created()
    assert asked.start_revision == 12
    desk.say_created(stream, 13)
    desk.say(stream, events(12, 13))
    assert revisions(desk.given()[-1]) == [12, 13]


def test_a_paused_watch_does_not_come_back_with_a_new_connection() -> None:
    desk = Desk()
    watch = Watch(b"k")
    stream = desk.live(watch)
    other = desk.add(Watch(b"other"))
    big = events(11)
    big.events[0].kv.value = b"x" * BACKLOG_BYTES_MAX
    desk.say(stream, big)
    desk.sent()
    desk.lose()
    desk.connect()
    assert desk.created()[1].key == b"other"
    assert watch.state is State.PAUSED
    assert other.state is State.OPENING


# ---- at random


class Node:
    """What a watch process does, over one history that all nodes share."""

    def __init__(self, dice: Random, history: list[int]) -> None:
        self.dice = dice
        self.history = history
        self.at: dict[int, int] = {}  # stream -> next revision to send

    def take(self, records: list[Record]) -> list[bytes]:
        out = []
        for record in records:
            if record.kind == Kind.STREAM_CLOSE:
                self.at.pop(record.id, None)
            elif record.kind == Kind.STREAM_MESSAGE:
                request = pb.WatchRequest.FromString(record.payload)
                head = self.history[-1]
                if request.HasField("progress_request"):
                    out.append((record.id, pb.WatchResponse(header=header(head), watch_id=-1)))
                else:
                    self.at[record.id] = request.create_request.start_revision or head + 1
                    out.append((record.id, pb.WatchResponse(header=header(head), created=True)))
        return [self.frame(*item) for item in out]

    def send(self) -> list[bytes]:
        out = []
        for stream, at in list(self.at.items()):
            todo = [revision for revision in self.history if revision >= at][: self.dice.randint(0, 3)]
            if not todo:
                continue
            self.at[stream] = todo[-1] + 1
            if self.dice.random() < 0.3:  # a fragmented revision, and then the rest
                out += [self.frame(stream, events(todo[0], fragment=True)), self.frame(stream, events(todo[0]))]
                todo = todo[1:]
            if todo:
                out.append(self.frame(stream, events(*todo)))
        return out

    def frame(self, stream: int, response: pb.WatchResponse) -> bytes:
        return wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, stream, response.SerializeToString())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_every_event_is_given_once_and_in_order_whatever_happens_to_connections(seed: int) -> None:
    """W1 to W5 over a history that grows while connections break anywhere, also inside a fragmented revision."""
    dice = Random(seed)
    history = [1]
    desk = Desk(nodes=dice.randint(1, 3), seed=seed)
    watch = Watch(b"k", start_revision=dice.choice([0, 1, 5]))
    desk.add(watch)
    node: Node | None = None
    seen: list[int] = []
    starts_at = watch.next
    for step in range(400):
        healed = step > 300
        if dice.random() < 0.3 and not healed:
            history.append(history[-1] + 1)
        if dice.random() < 0.05 and not healed and desk.core.current is not None:
            desk.core.lost(desk.core.current, desk.now, "lost")
        desk.advance(dice.choice([0, 0.01, 0.5]))
        desk.core.closing.clear()
        for session in desk.core.opening:
            node = Node(dice, history)
            desk.core.connected(session, desk.now)
        desk.core.opening.clear()
        if desk.core.current is not None and node is not None:
            frames = node.take(desk.sent()) + node.send()
            breaks = bool(frames) and dice.random() < 0.15 and not healed
            for frame in frames[: dice.randint(0, len(frames)) if breaks else None]:
                desk.core.received(desk.core.current, frame, desk.now)
                for given in desk.given():
                    if given is not None:
                        numbers = revisions(given)
                        seen += numbers
                if not starts_at and watch.next:
                    starts_at = watch.next
            if breaks:
                desk.core.lost(desk.core.current, desk.now, "lost in the middle")
    once = sorted(set(seen))
    assert seen == sorted(seen)
    assert once == [revision for revision in history if revision >= starts_at]
    assert all(seen.count(revision) in (1, 2) for revision in once), "2: a revision in two fragments"
