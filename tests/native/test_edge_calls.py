"""Streams whose messages are calls: answered one by one in the batch, ended by the edge."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import pytest

from native import edge
from native.edge import Event, Limits, record

from .edges import ASK, WAIT, Service, service

LIMITS = [Limits(), Limits(batch_records=2)]


@pytest.fixture(params=LIMITS, ids=["roomy", "full"])
def running(request: pytest.FixtureRequest) -> Iterator[Service]:
    with service(request.param) as started:
        yield started


@pytest.fixture
def channel(running: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield channel


def told(running: Service) -> list[tuple[int, int]]:
    """Kind and status of all that was told of streams, messages that a full batch had no room for aside."""
    events: list[Event] = running.call(lambda _: [event for event, _, _ in running.answering.events])
    return [(event[5], event[7]) for event in events if event[6] == ASK and event[5] != edge.MESSAGE]


def ask(channel: grpc.Channel, messages: Iterator[bytes], **more: object) -> grpc.Call:
    return channel.stream_stream("/test.Echo/Ask")(messages, timeout=WAIT, **more)


def test_each_message_is_answered_and_the_end_follows_that_of_the_client(
    running: Service, channel: grpc.Channel
) -> None:
    messages = [b"%d" % i * (i % 40) for i in range(500)]
    assert list(ask(channel, iter(messages))) == messages
    running.until(lambda a: told_of_end(running))
    assert told(running) == [(edge.BEGUN, 0), (edge.CANCELLED, 0)]
    assert running.call(lambda e: e.method_stats(ASK))[1][0] == 1
    assert list(ask(channel, iter([]))) == []


def told_of_end(running: Service) -> bool:
    return any(event[5] == edge.CANCELLED for event, _, _ in running.answering.events)


def test_the_end_waits_for_what_is_not_answered(running: Service, channel: grpc.Channel) -> None:
    answers = ask(channel, iter([b"later", b"now", b"later"]))
    assert next(answers) == b"now"
    running.until(lambda a: len(a.later) == 2)
    call = running.answering.later[0]
    running.call(lambda e: e.deliver(record(edge.REPLY, call, b"one")))
    assert next(answers) == b"one"
    assert not running.call(lambda _: told_of_end(running))
    running.call(lambda e: e.deliver(record(edge.REPLY, call, b"two")))
    assert list(answers) == [b"two"]
    assert answers.code() == grpc.StatusCode.OK


def test_an_answer_that_nobody_waits_for_is_dropped(running: Service, channel: grpc.Channel) -> None:
    outgoing: queue.Queue[bytes | None] = queue.Queue()
    answers = ask(channel, iter(outgoing.get, None))
    outgoing.put(b"first")
    assert next(answers) == b"first"
    call = running.call(lambda _: next(event[0] for event, _, _ in running.answering.events if event[6] == ASK))
    running.call(lambda e: e.deliver(record(edge.REPLY, call, b"too much") + record(edge.REPLY, call, b"x", status=5)))
    outgoing.put(b"second")
    outgoing.put(None)
    assert list(answers) == [b"second"]


def test_the_first_error_ends_it(running: Service, channel: grpc.Channel) -> None:
    outgoing: queue.Queue[bytes | None] = queue.Queue()
    answers = ask(channel, iter(outgoing.get, None))
    outgoing.put(b"later")
    outgoing.put(b"fail 5 no such thing")
    with pytest.raises(grpc.RpcError):
        next(answers)
    assert (answers.code(), answers.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    running.until(lambda a: told_of_end(running))
    assert told(running) == [(edge.BEGUN, 0), (edge.CANCELLED, 5)]
    call = running.answering.later[0]
    assert running.call(lambda e: e.deliver(record(edge.REPLY, call, b"late"))) in (0, 1)
    outgoing.put(None)


def test_whoever_waits_is_told_that_nobody_will_answer(running: Service, channel: grpc.Channel) -> None:
    waiting, idle = queue.Queue[bytes | None](), queue.Queue[bytes | None]()
    one, two = ask(channel, iter(waiting.get, None)), ask(channel, iter(idle.get, None))
    waiting.put(b"later")
    idle.put(b"x")
    assert next(two) == b"x"
    running.until(lambda a: a.later)
    assert running.call(lambda e: e.fail(14, "gone", method=ASK)) == 1
    with pytest.raises(grpc.RpcError):
        next(one)
    assert (one.code(), one.details()) == (grpc.StatusCode.UNAVAILABLE, "gone")
    idle.put(b"y")
    assert next(two) == b"y"
    waiting.put(None)
    idle.put(None)
    assert list(two) == []


def test_a_client_that_goes_is_told_of(running: Service, channel: grpc.Channel) -> None:
    answers = ask(channel, iter(queue.Queue[bytes | None]().get, None))
    running.until(lambda a: any(event[6] == ASK for event, _, _ in a.events))
    answers.cancel()
    running.until(lambda a: told_of_end(running))
    assert told(running) == [(edge.BEGUN, 0), (edge.CANCELLED, 1)]


def test_with_metadata_it_is_a_stream_as_any_other(running: Service, channel: grpc.Channel) -> None:
    messages = [b"a", b"b"]
    assert list(ask(channel, iter(messages), metadata=[("hasleader", "true")])) == messages
    events = running.call(lambda _: [event for event, _, _ in running.answering.events if event[6] == ASK])
    assert [(event[5], event[7]) for event in events] == [
        (edge.BEGUN, edge.HAS_LEADER),
        (edge.MESSAGE, 0),
        (edge.MESSAGE, 0),
        (edge.HALF_CLOSED, 0),
    ]
