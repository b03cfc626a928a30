"""What broke etcd's watches once, each as a test of ours (RELIABILITY 1.2; the numbers are those of etcd's issues).

The store, its feed and the watch process as in test_watchd, clients as they are on the wire.
"""

from __future__ import annotations

import pytest

from cluster.feed import Feed
from cluster.internal import Tick
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from storage.codec import pack_proposal
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
from tests.unit.test_watchd import World

PROGRESS = wire.encode(
    Method.WATCH,
    Kind.STREAM_MESSAGE,
    0,
    1,
    pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString(),
)


@pytest.fixture(params=["ring", "no ring"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    """Who is behind is served from the ring of newest changes, or by apply only."""
    if request.param == "no ring":
        monkeypatch.setattr("cluster.watchd.RING_BYTES", 0)
    made = World()
    made.settle(2)
    return made


def events(world: World, client: bytes) -> list[pb.Event]:
    return [event for response in world.responses(client) for event in response.events]


def revisions(world: World, client: bytes) -> list[int]:
    return [event.kv.mod_revision for event in events(world, client)]


def progress(world: World, client: bytes) -> list[int]:
    """The revisions up to which everything has been told, by what was told without an event."""
    return [
        response.header.revision
        for response in world.responses(client)
        if not (response.events or response.created or response.canceled)
    ]


def sweep(world: World) -> None:
    while world.keyspace.sweep():
        pass


class OlderStore:
    """An apply process that was killed and comes back with its store as of its last flush; the log brings the rest."""

    def __init__(self, world: World, flushed: int) -> None:
        self.world = world
        self.log = [pack_proposal(1, 1, number + 1, _put(number)) for number in range(world.keyspace.applied[0])]
        self.keyspace = Keyspace(MemoryEngine())
        self._apply(flushed)
        world.keyspace = self.keyspace
        world.to_apply.clear()
        world.to_watch.clear()
        world.feed = Feed(self.keyspace, world.to_watch.append, first_session=1 << 32)

    def replay(self, count: int) -> None:
        self.world.feed.changed(self._apply(count))

    def _apply(self, count: int) -> list:  # type: ignore[type-arg]
        turn = self.keyspace.begin()
        for _ in range(count):
            turn.apply(turn.index + 1, 1, self.log[turn.index])
        return list(turn.commit())


def _put(number: int) -> bytes:
    return wire.encode(Method.PUT, Kind.CALL, 0, 1, pb.PutRequest(key=b"k", value=b"%d" % number).SerializeToString())


def test_a_store_that_comes_back_older_takes_no_watcher_back_in_time(world: World) -> None:
    """W1, W2, #15271: what it replays has been told."""
    world.watch(b"c", key=b"k", start_revision=1)
    for number in range(6):
        world.put(b"k", b"%d" % number)
        world.settle(1)
    assert revisions(world, b"c") == [2, 3, 4, 5, 6, 7]
    older = OlderStore(world, flushed=2)
    world.settle(3)
    world.ask(b"c", PROGRESS)
    older.replay(3)
    world.settle(3)
    assert progress(world, b"c") == [], "not before the store is as new as what has been told"
    older.replay(1)
    world.feed.caught_up(1)
    world.settle(3)
    assert revisions(world, b"c") == [2, 3, 4, 5, 6, 7]
    world.put(b"k", b"new")
    world.settle(3)
    assert revisions(world, b"c") == [2, 3, 4, 5, 6, 7, 8]
    world.ask(b"c", PROGRESS)
    assert progress(world, b"c") == [7, 8]


def test_a_transaction_is_told_once_whatever_else_it_does(world: World) -> None:
    """W2, W4, #17247: it reads what it writes, in both branches' depth, and deletes what it has not."""
    world.watch(b"c", key=b"a", range_end=b"z")
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"a", range_end=b"z"))

    def put(key: bytes) -> pb.RequestOp:
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"v"))

    inner = pb.TxnRequest(success=[read, put(b"c"), read], failure=[put(b"x")])
    nothing = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"absent"))
    outer = pb.TxnRequest(success=[put(b"a"), read, nothing, pb.RequestOp(request_txn=inner), put(b"b")])
    for _ in range(3):
        world.commit((Method.TXN, outer.SerializeToString()))
        world.settle(2)
    told = [[event.kv.key for event in response.events] for response in world.responses(b"c") if response.events]
    assert told == [[b"a", b"c", b"b"]] * 3
    assert revisions(world, b"c") == [2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_a_starved_stream_is_told_everything_that_was_not_compacted(world: World) -> None:
    """W3, #17529: its queue is full over a compaction up to exactly what it has been told, and more changes."""
    world.watch(b"c", key=b"k")
    world.put(b"k", b"1")
    world.settle(2)
    world.stalled.add(b"c")
    for number in range(2, 6):
        world.put(b"k", b"%d" % number)
        world.settle(2)
    world.compact(3)
    sweep(world)
    world.settle(5)
    world.put(b"k", b"6")
    world.settle(2)
    world.stalled.clear()
    world.settle(5)
    assert revisions(world, b"c") == [2, 3, 4, 5, 6, 7]


def test_a_starved_stream_that_was_overtaken_is_told_so_and_nothing_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """W3, W9, #17529: never a silent gap. (What the ring has of it would be told.)"""
    monkeypatch.setattr("cluster.watchd.RING_BYTES", 0)
    world = World()
    world.settle(2)
    world.watch(b"c", key=b"k")
    world.put(b"k", b"1")
    world.settle(2)
    world.stalled.add(b"c")
    for number in range(2, 6):
        world.put(b"k", b"%d" % number)
        world.settle(2)
    world.compact(5)
    sweep(world)
    world.put(b"k", b"6")
    world.settle(5)
    world.stalled.clear()
    world.settle(5)
    world.put(b"k", b"7")
    world.settle(5)
    assert revisions(world, b"c") == [2]
    last = world.responses(b"c")[-1]
    assert (last.canceled, last.compact_revision, last.watch_id) == (True, 5, 0)


@pytest.mark.parametrize("swept", [False, True])
def test_a_deletion_at_the_compacted_revision_is_told_to_who_was_behind(world: World, swept: bool) -> None:
    """W3, #18089."""
    world.watch(b"c", key=b"k")
    world.put(b"k", b"1")
    world.settle(2)
    world.stalled.add(b"c")
    world.delete(b"k")
    world.settle(2)
    world.put(b"other", b"v")
    world.compact(3)
    if swept:
        sweep(world)
    world.stalled.clear()
    world.settle(5)
    assert [(event.type, event.kv.mod_revision) for event in events(world, b"c")] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("swept", [False, True])
def test_a_watch_from_the_compacted_revision_is_told_its_deletion(world: World, swept: bool) -> None:
    """W5, #19179."""
    world.put(b"k", b"1")
    world.delete(b"k")
    world.put(b"k", b"2")
    world.compact(3)
    if swept:
        sweep(world)
    world.settle(2)
    world.watch(b"c", key=b"k", start_revision=3, prev_kv=True)
    world.settle(5)
    assert [(event.type, event.kv.mod_revision) for event in events(world, b"c")] == [(1, 3), (0, 4)]
    assert not any(event.HasField("prev_kv") for event in events(world, b"c")), "it is compacted, there was none"


def test_periodic_progress_overtakes_nothing(world: World) -> None:
    """W6, #15220: not while the queue is full, nor right after it; then up to the head, and never back."""
    world.watch(b"c", key=b"k", progress_notify=True)
    world.put(b"k", b"1")
    world.settle(2)
    world.stalled.add(b"c")
    world.put(b"k", b"2")
    world.settle(40)
    world.stalled.clear()
    world.settle(40)
    told = [
        (len(response.events), response.header.revision) for response in world.responses(b"c") if not response.created
    ]
    assert told[:2] == [(1, 2), (1, 3)]
    assert set(told[2:]) == {(0, 3)}


def test_progress_waits_for_every_watch_of_a_stream(world: World) -> None:
    """W6, #15220: it is asked of the stream and says of all its watches that they have been told."""
    world.put(b"k", b"1")
    world.watch(b"c", key=b"fast")
    world.prompt = False  # history takes a while
    slow = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", start_revision=1)).SerializeToString()
    world.ask(b"c", wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, slow), PROGRESS)
    assert [response.created for response in world.responses(b"c")] == [True, True]
    assert progress(world, b"c") == []
    world.settle(5)
    assert revisions(world, b"c") == [2]
    assert progress(world, b"c") == []
    world.ask(b"c", PROGRESS)
    assert progress(world, b"c") == [2]


def test_no_periodic_progress_while_history_is_on_its_way(world: World) -> None:
    """W6, #15220: apply takes longer than the notification's period."""
    world.put(b"k", b"1")
    world.watch(b"c", key=b"other")
    world.prompt = False
    world.watch(b"d", key=b"k", start_revision=1, progress_notify=True)
    for _ in range(40):
        world.to_watch.append(Tick())
        world.watchd.turn()
    assert progress(world, b"d") == []
    world.settle(40)
    assert revisions(world, b"d") == [2]
    assert set(progress(world, b"d")) == {2}


def test_no_progress_is_told_before_a_watch_from_the_future_has_begun(world: World) -> None:
    """W6, W8, #20221: asked for or periodic. (To a start at the very next revision it says what it says to one from now
    on: resumed watches depend on it.)"""
    world.watch(b"c", key=b"k", start_revision=7, progress_notify=True)
    for number in range(4):
        world.put(b"k", b"%d" % number)
        world.settle(15)
        world.ask(b"c", PROGRESS)
    assert len(world.responses(b"c")) == 1
    world.put(b"k", b"the last before it")
    world.ask(b"c", PROGRESS)
    world.put(b"k", b"begun")
    world.settle(15)
    world.ask(b"c", PROGRESS)
    assert revisions(world, b"c") == [7]
    assert progress(world, b"c")[0] == 6
    assert set(progress(world, b"c")[1:]) == {7}


def test_a_watch_without_an_event_is_told_of_progress_too(world: World) -> None:
    """W6; etcd before 3.5.13 told it nothing, so it fell behind compaction."""
    world.watch(b"c", key=b"nothing", progress_notify=True)
    for _ in range(5):
        world.put(b"k", b"v")
        world.settle(12)
    told = progress(world, b"c")
    assert told == sorted(told)
    assert told[-1] == 6


def test_what_was_before_is_exact_live_and_from_history(world: World) -> None:
    """W8: also within a transaction that changes a key, and over a deletion."""
    world.watch(b"live", key=b"a", range_end=b"z", prev_kv=True)
    put = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"txn")) for key in (b"a", b"b")]
    world.put(b"a", b"1")
    world.put(b"a", b"2")
    world.commit((Method.TXN, pb.TxnRequest(success=put).SerializeToString()))
    world.delete(b"a", b"z")
    world.put(b"a", b"3")
    world.settle(3)
    world.watch(b"past", key=b"a", range_end=b"z", prev_kv=True, start_revision=1)
    world.settle(5)
    for client in (b"live", b"past"):
        told = [(event.kv.key, event.prev_kv.value, event.prev_kv.mod_revision) for event in events(world, client)]
        assert told == [
            (b"a", b"", 0),
            (b"a", b"1", 2),
            (b"a", b"2", 3),
            (b"b", b"", 0),
            (b"a", b"txn", 4),
            (b"b", b"txn", 4),
            (b"a", b"", 0),
        ]


def test_nothing_comes_after_a_cancel_and_ids_are_unique(world: World) -> None:
    """W9. An id that is given out is never one that a client has chosen."""
    world.watch(b"c", key=b"k", watch_id=1)
    created = [pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")) for _ in range(3)]
    cancels = [pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=id)) for id in (0, 77)]
    world.ask(
        b"c",
        *(
            wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, request.SerializeToString())
            for request in [*created, *cancels]
        ),
    )
    world.put(b"k", b"v")
    world.settle(3)
    told = [(response.watch_id, response.created, response.canceled) for response in world.responses(b"c")]
    assert told[:5] == [(1, True, False), (0, True, False), (2, True, False), (3, True, False), (0, False, True)]
    assert sorted(id for id, *_ in told[5:]) == [1, 2, 3]
