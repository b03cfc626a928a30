"""What a gRPC client gets from the edge: grpcio, which knows nothing of us, on the other side."""

from __future__ import annotations

import itertools
import queue
import select
import socket
import threading
from array import array
from collections.abc import Iterator

import grpc
import pytest

from kvorum import wire
from kvorum.wire import Kind
from native import edge
from native.edge import Edge, Limits, Method

from .edges import CHAT, ECHO, METHODS, SILENT, WAIT, Peer, Service, framed, service, stepped


@pytest.fixture
def running() -> Iterator[Service]:
    with service() as started:
        yield started


@pytest.fixture
def channel(running: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel


def failure(call: grpc.UnaryUnaryMultiCallable, request: bytes, **more: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request, **{"timeout": WAIT, **more})
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("size", [0, 1, 4091, 16384, 65531, 65536, 300_000, 2_000_000])
def test_a_unary_call_of_any_size_is_answered(channel: grpc.Channel, size: int) -> None:
    """Over one frame, over the stream's window, over nothing at all."""
    message = bytes(i % 251 for i in range(min(size, 1000))) * (size // 1000) + b"z" * (size % 1000)
    assert channel.unary_unary("/test.Echo/Echo")(message, timeout=WAIT) == message


def test_thousands_of_calls_in_flight_are_answered_each_with_its_own(channel: grpc.Channel, running: Service) -> None:
    echo = channel.unary_unary("/test.Echo/Echo")
    calls = [echo.future(b"%d" % i * (i % 50), timeout=WAIT) for i in range(3000)]
    assert [call.result() for call in calls] == [b"%d" % i * (i % 50) for i in range(3000)]
    started, ended = running.call(lambda e: e.method_stats(ECHO))
    assert (started, ended[0], sum(ended)) == (3000, 3000, 3000)
    stats = running.call(Edge.stats)
    assert (stats["streams"], stats["inbound"], stats["outbound"]) == (0, 0, 0)


@pytest.mark.parametrize(
    "text", ["etcdserver: mvcc: required revision has been compacted", "ä ☃ % \n\t\x7f", "x" * 1000]
)
def test_an_error_comes_with_its_code_and_its_text(channel: grpc.Channel, text: str) -> None:
    """grpc-message is percent-encoded UTF-8."""
    code, details = failure(channel.unary_unary("/test.Echo/Echo"), b"fail 11 " + text.encode())
    assert (code, details) == (grpc.StatusCode.OUT_OF_RANGE, text)


def test_an_unknown_method_is_for_python_to_refuse(channel: grpc.Channel) -> None:
    for path in ("/test.Echo/None", "/", "/" + "x" * 300):
        code, details = failure(channel.unary_unary(path), b"x")
        assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, f"unknown method {path[:256]}")


def test_metadata_and_deadline_are_told(channel: grpc.Channel) -> None:
    tell = channel.unary_unary("/test.Echo/Tell")

    def told(timeout: float | None, *metadata: tuple[str, str]) -> tuple[int, int, bytes]:
        flags, left, token, payload = tell(b"x", timeout=timeout, metadata=metadata).split(b"|")
        assert payload == b"x"
        return int(flags), int(left), token

    assert told(None) == (0, 0, b"")
    assert told(None, ("hasleader", "true")) == (edge.HAS_LEADER, 0, b"")
    assert told(None, ("hasleader", "false")) == (0, 0, b"")
    assert told(None, ("token", "abc.12")) == (edge.TOKEN, 0, b"abc.12")
    assert told(None, ("authorization", "Bearer x"), ("token", "t")) == (edge.TOKEN, 0, b"t")
    both = told(None, ("authorization", "Bearer x"), ("hasleader", "true"))
    assert both == (edge.AUTHORIZATION | edge.HAS_LEADER, 0, b"Bearer x")
    _, left, _ = told(1000)
    assert 1_000_000 - WAIT * 1000 < left < 1_050_000  # grpcio rounds up


def test_a_call_with_credentials_is_no_longer_in_the_pipe(channel: grpc.Channel, running: Service) -> None:
    """Who must look at each call gets each call."""
    echo = channel.unary_unary("/test.Echo/Echo")
    assert echo(b"x", timeout=WAIT) == b"x"
    assert running.call(lambda _: running.answering.events[1:]) == []
    assert echo(b"y", timeout=WAIT, metadata=[("token", "secret")]) == b"y"
    ((event, payload, token),) = running.call(lambda _: running.answering.events[1:])
    assert (event[5], event[6], payload, token) == (edge.CALL, ECHO, b"y", b"secret")


def test_calls_are_counted_by_the_version_of_their_client(channel: grpc.Channel, running: Service) -> None:
    """etcd's metadata client-api-version: also of calls in the pipe, which nobody looks at."""
    echo = channel.unary_unary("/test.Echo/Echo")
    for version in (None, "3.5.1", "3.6", "3.5.1", "", "x" * 33, "3.5.1"):
        raw = version if version is None else version.encode()
        assert echo(b"x", timeout=WAIT, metadata=[] if raw is None else [("client-api-version", raw)]) == b"x"
    counted = {version: started[ECHO] for version, started in running.call(lambda edge: edge.version_stats())}
    assert {version: count for version, count in counted.items() if count} == {
        "unknown": 1, "3.5.1": 3, "3.6": 1, "": 1, "other": 1,
    }  # fmt: skip
    assert running.call(lambda _: running.answering.events[1:]) == []


def test_a_client_with_too_many_versions_is_others() -> None:
    with stepped(Limits()) as (to, answering):
        peer = Peer(to, answering)
        for number in range(100):
            peer.result(peer.call(client_api_version=f"{number}"))
        counted = {version: started[ECHO] for version, started in to.version_stats()}
        assert len(counted) == 32
        assert counted["other"] == 70
        assert counted["29"] == 1
        peer.close()


@pytest.mark.parametrize(
    ("raw", "fine"),
    [
        ("3.6", True),
        ("\u00e9\u20ac\U0001f600", True),
        ("\udcff", False),
        ("\udcc0\udc80", False),
        ("a\udce2\udc82", False),
        ("\udced\udca0\udc80", False),
        ("\udcf4\udc90\udc80\udc80", False),
    ],
)
def test_a_version_that_is_no_text_is_told_to_python(raw: str, fine: bool) -> None:
    """Whatever else is to be looked at."""
    with stepped(Limits()) as (to, answering):
        peer = Peer(to, answering)
        value = raw.encode("utf-8", "surrogateescape")
        stream = peer.h2.get_next_available_stream_id()
        head = [(":method", "POST"), (":scheme", "http"), (":path", "/test.Echo/Echo"), (":authority", "test")]
        more = [("content-type", "application/grpc"), ("te", "trailers"), ("client-api-version", value), ("token", "t")]
        peer.h2.send_headers(stream, [*head, *more])
        peer.message(stream, b"x")
        peer.result(stream)
        (event,) = [event for event, _, _ in answering.events if event[5] == edge.CALL]
        assert event[7] == (edge.TOKEN if fine else edge.TOKEN | edge.BAD_VERSION)
        assert sum(started[ECHO] for _, started in to.version_stats()) == fine
        peer.close()


def test_a_deadline_that_passes_is_answered_by_the_edge(channel: grpc.Channel, running: Service) -> None:
    """By edge and client at once: whoever is first, the client hears DEADLINE_EXCEEDED, and nothing is left."""
    code, _ = failure(channel.unary_unary("/test.Echo/Silent"), b"x", timeout=0.05)
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    chat = channel.stream_stream("/test.Echo/Chat")
    with pytest.raises(grpc.RpcError) as error:
        list(chat(iter(queue.Queue().get, None), timeout=0.05))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    running.until(lambda a: any(event[5:7] == (edge.CANCELLED, CHAT) for event, _, _ in a.events))
    assert running.call(Edge.stats)["streams"] == 0


def test_a_late_answer_goes_nowhere(channel: grpc.Channel, running: Service) -> None:
    silent = channel.unary_unary("/test.Echo/Silent")
    failure(silent, b"x", timeout=0.05)
    running.until(lambda a: a.edge.stats()["streams"] == 0)
    call = next(iter(running.answering.open)) | 1
    assert running.call(lambda e: e.deliver(edge.record(edge.REPLY, call, b"late"))) == 0
    assert channel.unary_unary("/test.Echo/Echo")(b"on", timeout=WAIT) == b"on"


def test_a_stream_in_both_directions(channel: grpc.Channel) -> None:
    """Ping, pong, one by one, then the end from here."""
    outgoing: queue.Queue[bytes | None] = queue.Queue()
    answers = channel.stream_stream("/test.Echo/Chat")(iter(outgoing.get, None), timeout=WAIT)
    for i in range(200):
        outgoing.put(b"%d" % i * (i * 10))
        assert next(answers) == b"%d" % i * (i * 10)
    outgoing.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK


def test_messages_are_whole_however_the_bytes_come(channel: grpc.Channel) -> None:
    sizes = [0, 1, 0, 5, 70_000, 3, 200_000, 0, 1_500_000, 9]
    messages = [bytes([i]) * size for i, size in enumerate(sizes)]
    assert list(channel.stream_stream("/test.Echo/Chat")(iter(messages), timeout=WAIT)) == messages


def test_a_stream_of_answers_waits_for_its_reader(channel: grpc.Channel, running: Service) -> None:
    """100 MB poured while a reader dawdles: Python is told to stop, and memory stays bounded."""
    answers = channel.unary_stream("/test.Echo/Pour")(b"1000 100000", timeout=WAIT * 3)
    assert len(next(answers)) == 100_000
    running.until(lambda a: a.blocked)
    held = running.call(Edge.stats)
    assert held["outbound"] < 4 << 20
    assert held["memory"] < 8 << 20
    assert sum(len(message) for message in answers) == 999 * 100_000
    assert running.call(Edge.stats)["outbound"] == 0
    assert running.call(lambda _: running.answering.blocked) == set()


def test_a_cancelled_call_is_told_of(channel: grpc.Channel, running: Service) -> None:
    topic = channel.stream_stream("/test.Echo/Topic")
    calls = [topic(iter(queue.Queue().get, None), timeout=WAIT) for _ in range(10)]
    running.until(lambda a: len(a.topic) == 10)
    for call in calls[:5]:
        call.cancel()
    running.until(lambda a: len(a.topic) == 5)
    cancelled = [event for event, _, _ in running.answering.events if event[5] == edge.CANCELLED]
    assert [(event[7]) for event in cancelled] == [1] * 5
    for call in calls[5:]:
        call.cancel()


def test_one_payload_reaches_all_streams_each_with_its_suffix(running: Service, channel: grpc.Channel) -> None:
    """DESIGN section 9: the common bytes first, each stream's own last; kept once."""
    topic = channel.stream_stream("/test.Echo/Topic")
    calls = [topic(iter(queue.Queue().get, None), timeout=WAIT * 3) for _ in range(100)]
    running.until(lambda a: len(a.topic) == 100)
    suffixes = [b"%d" % i * (i % 8) for i in range(100)]
    payloads = [b"common %d" % i * (1 if i else 40_000) for i in range(20)]
    for payload in payloads:
        assert running.fan_out(payload, suffixes) == 100
    # calls reach the service in any order: each stream has one suffix, all have different ones
    seen = [list(itertools.islice(call, 20)) for call in calls]
    found = [messages[0][len(payloads[0]) :] for messages in seen]
    assert sorted(found) == sorted(suffixes)
    for messages, suffix in zip(seen, found, strict=True):
        assert messages == [payload + suffix for payload in payloads]
    for call in calls:
        call.cancel()
    running.until(lambda a: a.edge.stats()["streams"] == 0)
    assert running.call(Edge.stats)["outbound"] == 0


def test_a_payload_for_many_is_held_once() -> None:
    """50 streams whose windows are full: a payload of 200 kB takes 200 kB, not 10 MB."""
    with stepped() as (to, answering):
        peer = Peer(to, answering)
        for _ in range(50):
            peer.open("/test.Echo/Topic")
        peer.until(lambda: len(answering.topic) == 50)
        before = to.stats()["memory"]
        for _ in range(5):
            assert to.fan_out(bytes(200_000), array("Q", answering.topic), b"", array("I", [0] * 50)) == 50
        after = to.stats()
        assert after["outbound"] > 45_000_000  # what waits, counted for each reader
        assert after["memory"] - before < 1_500_000  # what it takes
        peer.close()


def test_a_wrong_fan_out_is_refused(running: Service) -> None:
    for suffixes, ends in ((b"x" * 17, [17]), (b"xy", [2, 1]), (b"x", [2])):
        with pytest.raises(ValueError, match="ends"):
            running.edge.fan_out(b"p", array("Q", [1] * len(ends)), suffixes, array("I", ends))
    with pytest.raises(ValueError, match="as many ends"):
        running.edge.fan_out(b"p", array("Q", [1]), b"", array("I", []))


def test_too_large_a_message_is_refused_as_grpc_go_does(channel: grpc.Channel) -> None:
    """api.md 16: request limit and 512 KiB more; RESOURCE_EXHAUSTED before the bytes are taken."""
    code, details = failure(channel.unary_unary("/test.Echo/Echo"), bytes(3_000_000))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == "grpc: received message larger than max (3000000 vs. 2097152)"
    code, details = failure(channel.stream_unary("/test.Echo/Chat"), iter([b"x", bytes(2_097_153)]))
    assert details == "grpc: received message larger than max (2097153 vs. 2097152)"
    assert len(channel.unary_unary("/test.Echo/Echo")(bytes(2_097_152), timeout=WAIT)) == 2_097_152


def test_messages_that_are_compressed_in_another_way_are_refused(channel: grpc.Channel) -> None:
    code, details = failure(channel.unary_unary("/test.Echo/Echo"), bytes(1000), compression=grpc.Compression.Deflate)
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert details == 'grpc: Decompressor is not installed for grpc-encoding "deflate"'


def test_too_much_metadata_is_refused(channel: grpc.Channel) -> None:
    """Answered, not reset. (One value over 64 KiB is too much for nghttp2, which ends the connection.)"""
    metadata = [("one", "x" * 40_000), ("two", "x" * 40_000)]
    code, details = failure(channel.unary_unary("/test.Echo/Echo"), b"x", metadata=metadata)
    assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "received metadata is over 65536 bytes")
    assert channel.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT) == b"x"


def test_calls_that_nobody_will_answer_can_be_ended(channel: grpc.Channel, running: Service) -> None:
    """As when the apply process has died."""
    silent, tell = channel.unary_unary("/test.Echo/Silent"), channel.unary_unary("/test.Echo/Echo")
    calls = [silent.future(b"x", timeout=WAIT) for _ in range(100)]
    running.until(lambda a: a.edge.method_stats(SILENT)[0] == 100 and a.edge.stats()["messages_in"] == 100)
    assert running.call(lambda e: e.fail(14, "etcdserver: request timed out", method=ECHO)) == 0
    assert running.call(lambda e: e.fail(14, "etcdserver: request timed out")) == 100
    for call in calls:
        assert call.exception(WAIT).code() == grpc.StatusCode.UNAVAILABLE
        assert call.exception(WAIT).details() == "etcdserver: request timed out"
    assert running.call(lambda e: e.fail(14, "")) == 0
    assert tell(b"x", timeout=WAIT) == b"x"


def test_draining_lets_calls_end_and_sends_clients_elsewhere(running: Service, channel: grpc.Channel) -> None:
    """GOAWAY: what is under way is answered, what comes goes to the next endpoint, and then nothing is left."""
    outgoing: queue.Queue[bytes | None] = queue.Queue()
    answers = channel.stream_stream("/test.Echo/Chat")(iter(outgoing.get, None), timeout=WAIT)
    outgoing.put(b"before")
    assert next(answers) == b"before"
    assert running.call(lambda e: e.drain(WAIT)) == 1
    outgoing.put(b"after")
    assert next(answers) == b"after"
    code, _ = failure(channel.unary_unary("/test.Echo/Echo"), b"x")
    assert code == grpc.StatusCode.UNAVAILABLE
    outgoing.put(None)
    assert list(answers) == []
    running.until(lambda a: not a.open)
    assert running.call(lambda e: e.drain(0)) == 0
    assert [event[7] for event, _, _ in running.answering.events if event[5] == edge.CLOSED] in (
        [edge.BY_US],
        [edge.BY_PEER],
    )


def test_draining_does_not_wait_for_ever(running: Service, channel: grpc.Channel) -> None:
    answers = channel.stream_stream("/test.Echo/Chat")(iter(queue.Queue().get, None), timeout=WAIT)
    running.until(lambda a: a.edge.stats()["streams"] == 1)
    assert running.call(lambda e: e.drain(0.01)) == 1
    running.until(lambda a: a.edge.stats()["connections"] == 0)
    with pytest.raises(grpc.RpcError) as error:
        next(answers)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_two_edges_share_a_port() -> None:
    """SO_REUSEPORT: the gateway in several processes."""
    first, second = Edge(METHODS), Edge(METHODS)
    port = first.listen("127.0.0.1", 0, reuse_port=True)
    assert second.listen("127.0.0.1", port, reuse_port=True) == port
    third = Edge(METHODS)
    with pytest.raises(OSError, match="in use"):
        third.listen("127.0.0.1", port)
    for one in (first, second, third):
        one.close()


def test_it_listens_on_ipv6_too() -> None:
    to = Edge(METHODS)
    try:
        port = to.listen("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with socket.create_connection(("::1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        events: list[tuple[int, bytes]] = []
        while len(events) < 2:
            batch = to.poll(0.1)
            events += [(event[5], batch.data[event[2] : event[2] + event[3]]) for event in batch.events]
        own = client.getsockname()[1]
        assert events == [(edge.OPENED, b"[::1]:%d" % own), (edge.BYTES, b"GET / HTTP/1.1\r\n\r\n")]
    to.close()


def test_the_descriptor_of_the_edge_wakes_a_poller(running: Service) -> None:
    """zmq.Poller takes it; a poller sees new bytes, and what a delivery has left to tell, and no more."""
    to = Edge(METHODS, Limits(handshake_ms=50))
    port = to.listen("127.0.0.1", 0)
    poller = select.poll()
    poller.register(to.fileno(), select.POLLIN)
    assert poller.poll(0) == []
    with socket.create_connection(("127.0.0.1", port)):
        assert poller.poll(WAIT * 1000)
        to.poll()
        assert to.stats()["connections"] == 1
        while to.stats()["connections"]:  # the deadline of the handshake is something to do, too
            assert poller.poll(WAIT * 1000)
            to.poll()
    assert to.stats()["timeouts"] == 1
    to.close()


def test_many_clients_on_many_threads(running: Service) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{running.port}", options) as channel:
                echo, chat = channel.unary_unary("/test.Echo/Echo"), channel.stream_stream("/test.Echo/Chat")
                for i in range(50):
                    message = bytes([seed]) * (i * seed * 20)
                    assert echo(message, timeout=WAIT) == message
                    assert list(chat(iter([message, message[1:]]), timeout=WAIT)) == [message, message[1:]]
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    running.until(lambda a: not a.open)
    assert running.call(Edge.stats)["accepted"] == 8


def test_what_it_gathers_and_takes_are_wire_batches() -> None:
    """kvorum/wire.py and edge.h must say the same: a batch goes on unread, and its answers come back unread."""
    assert (edge.REPLY, edge.SEND, edge.END) == (Kind.REPLY, Kind.STREAM_MESSAGE, Kind.STREAM_CLOSE)
    limits = Limits()
    assert limits.batch_bytes + limits.message_max + wire.HEADER.size <= wire.BATCH_BYTES_MAX
    assert limits.batch_records <= wire.BATCH_RECORDS_MAX
    with stepped() as (to, answering):
        peer = Peer(to, answering)
        streams = [peer.call(b"%d" % i) for i in range(3)]
        peer.flush()
        calls = to.poll(WAIT).calls
        while len(calls) < 3 * 17:
            calls += to.poll(WAIT).calls
        records = wire.decode(calls)
        assert [(r.method, r.kind, r.status, r.payload) for r in records] == [
            (ECHO, Kind.CALL, 0, b"%d" % i) for i in range(3)
        ]
        answers = [wire.encode(r.method, Kind.REPLY, 0, r.id, r.payload * 2) for r in reversed(records)]
        assert to.deliver(b"".join(answers)) == 3
        assert [peer.result(stream)[2] for stream in streams] == [framed(b"%d%d" % (i, i)) for i in range(3)]
        peer.close()


def test_an_unsound_table_or_limit_is_refused() -> None:
    for methods in ([Method("/a/B", 0, 0)], [Method("a/B", 1, 0)], [Method("/" + "x" * 300, 1, 0)]):
        with pytest.raises(ValueError, match="not sound"):
            Edge(methods)
    with pytest.raises(ValueError, match="not sound"):
        Edge([], Limits(streams_max=0))
    to = Edge([])
    for bad in (b"x", edge.record(99, 1), edge.record(edge.REPLY, 1, b"abc")[:-1]):
        with pytest.raises(ValueError, match="no batch"):
            to.deliver(bad)
    assert to.deliver(b"") == 0
    with pytest.raises(OSError, match="Invalid"):
        to.listen("localhost", 0)
    with pytest.raises(OSError, match="Invalid"):
        to.listen("127.0.0.1", 0, tls=True)
    to.close()
    to.close()
