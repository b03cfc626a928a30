"""Watches of the synchronous client against fake nodes over real ZeroMQ."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import pytest

import kvorum
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.results import DeleteEvent, PutEvent, WatchResponse
from kvorum.watches import WatchTimedOut
from tests.client.fake import FakeNode, Store

Start = Callable[..., FakeNode]


def test_a_watch_sees_what_happens_after_it_was_made(node: FakeNode) -> None:
    """watch() returns when the node has created it: nothing done afterwards is missed."""
    with kvorum.client(node.address) as client:
        events, cancel = client.watch("k", prev_kv=True)
        client.put("k", "1")
        client.put("other", "x")
        client.put("k", "2")
        client.delete("k")
        first, second, third = (next(events) for _ in range(3))
        assert isinstance(first, PutEvent)
        assert (first.key, first.value, first.version, first.prev_kv) == (b"k", b"1", 1, None)
        assert (second.value, second.prev_value, second.mod_revision) == (b"2", b"1", 4)
        assert isinstance(third, DeleteEvent)
        assert third.prev_value == b"2"
        cancel()
        assert list(events) == []


def test_a_prefix_watch_from_the_past(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        for i in range(5):
            client.put(f"p/{i}", "v")
        events, cancel = client.watch_prefix("p/", start_revision=3)
        assert [next(events).key for _ in range(4)] == [b"p/1", b"p/2", b"p/3", b"p/4"]
        cancel()
        responses, cancel = client.watch_prefix_response("p/", start_revision=2, filters=["nodelete"])
        first = next(responses)
        assert (first.revision, len(first.events)) == (2, 1)
        cancel()


def test_watch_once_waits_for_one_event(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        client.put("k", "1")
        assert client.watch_once("k", start_revision=1).value == b"1"
        assert client.watch_prefix_once("", timeout=5, start_revision=1).key == b"k"
        with pytest.raises(WatchTimedOut):
            client.watch_once("k", timeout=0.05)
        while node.streams:
            assert node.streams.keys() <= set(node.streams)
            time.sleep(0.005)
            if all(stream.asked is None for stream in node.streams.values()):
                break


def test_callbacks_get_responses_until_they_are_cancelled(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        got: queue.SimpleQueue[WatchResponse | errors.KvorumError] = queue.SimpleQueue()
        one = client.add_watch_callback("k", got.put)
        two = client.add_watch_prefix_callback("k", got.put)
        assert one != two
        client.put("k", "1")
        for _ in range(2):
            response = got.get(timeout=5)
            assert isinstance(response, WatchResponse)
            assert response.events[0].value == b"1"
        client.cancel_watch(two)
        client.cancel_watch(two)
        client.put("k", "2")
        client.put("kk", "3")
        client.put("k", "4")
        values = [got.get(timeout=5) for _ in range(2)]
        assert [response.events[0].value for response in values if isinstance(response, WatchResponse)] == [b"2", b"4"]


def test_a_callback_may_use_the_client(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        done = threading.Event()

        def copy(response: WatchResponse | errors.KvorumError) -> None:
            assert isinstance(response, WatchResponse)
            client.put("copy", response.events[0].value)
            done.set()

        client.add_watch_callback("k", copy)
        client.put("k", "v")
        assert done.wait(5)
        assert client.get("copy")[0] == b"v"


def test_a_callback_that_raises_ends_its_watch_and_is_heard(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: queue.SimpleQueue[type[BaseException]] = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda args: heard.put(args.exc_type))
    with kvorum.client(node.address) as client:
        got: queue.SimpleQueue[object] = queue.SimpleQueue()
        client.add_watch_callback("k", lambda _: 1 / 0)
        client.add_watch_callback("k", got.put)
        client.put("k", "1")
        client.put("k", "2")
        assert heard.get(timeout=5) is ZeroDivisionError
        got.get(timeout=5)
        got.get(timeout=5)
        assert heard.empty()


def test_a_watch_outlives_its_connection(node: FakeNode) -> None:
    """Events put while it was not connected come too, once and in order."""
    with kvorum.client(node.address) as client:
        events, cancel = client.watch_prefix("k")
        seen = []
        for round in range(5):
            for i in range(20):
                client.put(f"k{i}", str(round))
                if i == 10:
                    node.cut_watches()
            seen += [next(events).mod_revision for _ in range(20)]
        assert seen == list(range(2, 102))
        cancel()


def test_a_watch_goes_on_at_another_node(start: Start) -> None:
    store = Store()
    first, second = start(store), start(store)
    first.members, second.members = [second.endpoint], [first.endpoint]
    with kvorum.client([first.address, second.address]) as client:
        events, cancel = client.watch("k")
        watching, other = (first, second) if first.streams else (second, first)
        client.put("k", "1")
        assert next(events).value == b"1"
        watching.close()
        for _ in range(20):
            try:
                client.put("k", "2")
                break
            except kvorum.Ambiguous:
                continue
        found = next(events)
        assert found.value == b"2"
        assert other.streams
        cancel()


def test_compaction_past_a_watch_ends_it_with_the_compact_revision(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        for i in range(5):
            client.put("k", str(i))
        client.compact(4)
        events, _ = client.watch("k", start_revision=2)
        with pytest.raises(errors.Compacted) as raised:
            next(events)
        assert raised.value.compact_revision == 4
        got: queue.SimpleQueue[object] = queue.SimpleQueue()
        client.add_watch_callback("k", got.put, start_revision=2)
        assert isinstance(got.get(timeout=5), errors.Compacted)


def test_a_watch_that_no_node_creates_is_said_so_in_time(start: Start) -> None:
    node = start()
    node.hello = lambda _: pb.HelloResponse(
        header=pb.ResponseHeader(cluster_id=node.cluster),
        protocol=1,
        members=[pb.Endpoint(native=node.address, watch="tcp://127.0.0.1:1")],
    ).SerializeToString()
    with kvorum.client(node.address, timeout=0.3) as client, pytest.raises(errors.Unreachable, match="not created"):
        client.watch("k")
    with kvorum.client("127.0.0.1:1", timeout=0.2) as client, pytest.raises(errors.Unreachable, match="refused"):
        client.watch("k")


def test_a_slow_reader_costs_a_bounded_amount_of_memory_and_misses_nothing(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream is closed and created anew from where it stopped."""
    monkeypatch.setattr("kvorum.watching.BACKLOG_BYTES_MAX", 10_000)
    with kvorum.client(node.address) as client:
        events, cancel = client.watch("k")
        for i in range(200):
            client.put("k", f"{i:04}" * 100)
        seen = [next(events) for _ in range(200)]
        assert [event.mod_revision for event in seen] == list(range(2, 202))
        creations = [r for r in node.watch_requests if r.HasField("create_request")]
        assert len(creations) > 1
        cancel()


def test_a_slow_callback_is_called_again_when_it_has_caught_up(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads for it who could notice: the thread that calls it must."""
    monkeypatch.setattr("kvorum.watching.BACKLOG_BYTES_MAX", 10_000)
    with kvorum.client(node.address) as client:
        got: queue.SimpleQueue[WatchResponse | errors.KvorumError] = queue.SimpleQueue()
        held = threading.Event()

        def slow(response: WatchResponse | errors.KvorumError) -> None:
            held.wait(10.0)
            got.put(response)

        number = client.add_watch_callback("k", slow)
        for i in range(200):
            client.put("k", f"{i:04}" * 100)
        held.set()
        seen: list[int] = []
        while len(seen) < 200:
            response = got.get(timeout=10.0)
            assert isinstance(response, WatchResponse)
            seen += [event.mod_revision for event in response.events]
        assert seen == list(range(2, 202))
        creations = [r for r in node.watch_requests if r.HasField("create_request")]
        assert len(creations) > 1
        client.cancel_watch(number)


def test_closing_the_client_ends_its_watches(node: FakeNode) -> None:
    client = kvorum.client(node.address)
    events, _ = client.watch("k")
    got: list[object] = []
    client.add_watch_callback("k", got.append)
    ended = threading.Event()

    def read() -> None:
        assert list(events) == []
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    client.close()
    assert ended.wait(5)
    reader.join()
    assert got == []
    assert not any(thread.name == "kvorum-watch" for thread in threading.enumerate())


def test_cancelling_wakes_a_thread_that_waits_for_the_next_event(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        events, cancel = client.watch("k")
        ended = threading.Event()

        def read() -> None:
            assert list(events) == []
            ended.set()

        reader = threading.Thread(target=read)
        reader.start()
        cancel()
        assert ended.wait(5)
        reader.join()
