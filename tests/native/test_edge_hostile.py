"""What a client may not do to the edge, and what it gets for it: a status or a GOAWAY, while everybody else is served.

Each test speaks HTTP/2 frame by frame, to an edge that the test polls itself.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator

import h2.events
import h2.exceptions
import hpack
import pytest

from native import edge
from native.edge import Edge, Limits

from .edges import SILENT, Answering, Peer, framed, stepped

CALM = 11  # ENHANCE_YOUR_CALM
PROTOCOL_ERROR = 1


@pytest.fixture
def stepping() -> Iterator[tuple[Edge, Answering]]:
    with stepped() as made:
        yield made


@pytest.fixture
def peer(stepping: tuple[Edge, Answering]) -> Iterator[Peer]:
    made = Peer(*stepping)
    yield made
    made.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def closed_for(answering: Answering) -> list[int]:
    return [event[7] for event, _, _ in answering.events if event[5] == edge.CLOSED]


def others_are_served(stepping: tuple[Edge, Answering]) -> None:
    other = Peer(*stepping)
    other.echo()
    other.close()


# ---- what breaks gRPC's rules


def test_a_wrong_content_type_is_415(peer: Peer) -> None:
    for wrong in ("application/json", "application/grpcx", "", "application/grpc-web"):
        stream = peer.call(content_type=wrong)
        status, text, _ = peer.result(stream)
        assert (status, text) == (3, "invalid gRPC request content-type")
        assert dict(peer.of(h2.events.ResponseReceived, stream)[0].headers)[":status"] == "415"
    for right in ("application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"):
        assert peer.result(peer.call(content_type=right))[0] == 0


def test_other_verbs_are_405(peer: Peer) -> None:
    stream = peer.h2.get_next_available_stream_id()
    headers = {":method": "GET", ":scheme": "http", ":path": "/test.Echo/Echo", ":authority": "test"}
    headers |= {"content-type": "application/grpc"}
    peer.h2.send_headers(stream, list(headers.items()), end_stream=True)
    assert peer.result(stream)[:2] == (13, "a gRPC request's :method should be POST")
    assert dict(peer.of(h2.events.ResponseReceived, stream)[0].headers)[":status"] == "405"


@pytest.mark.parametrize("timeout", ["", "5", "S", "123456789S", "5s", "-1S", "1.5S", "0x1S", "5SS"])
def test_a_malformed_timeout_is_refused(peer: Peer, timeout: str) -> None:
    assert peer.result(peer.call(grpc_timeout=timeout))[:2] == (13, "malformed grpc-timeout")


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [("99999999H", 99999999 * 3600), ("2H", 7200), ("90M", 5400), ("99S", 99), ("99000m", 99), ("99999999u", 99.999)],
)
def test_timeouts_have_six_units(peer: Peer, timeout: str, seconds: float) -> None:
    _, _, data = peer.result(peer.call(b"", "/test.Echo/Tell", grpc_timeout=timeout))
    left = int(data.split(b"|")[1])
    assert (seconds - 60) * 1000 <= left <= seconds * 1000 + 1


def test_a_timeout_of_nothing_has_passed(peer: Peer) -> None:
    for timeout in ("0S", "1n"):
        assert peer.result(peer.call(b"", "/test.Echo/Silent", grpc_timeout=timeout))[:2] == (
            4,
            "context deadline exceeded",
        )


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 13, "grpc: no message in a unary call"),
        (b"\0\0\0", 13, "unexpected EOF"),
        (b"\0\0\0\0\5abc", 13, "unexpected EOF"),
        (framed(b"a") + framed(b"b"), 13, "grpc: more than one message in a unary call"),
        (framed(b"a") + b"\0", 13, "unexpected EOF"),
        (b"\1\0\0\0\1x", 13, "grpc: compressed flag set with identity or empty encoding"),
        (b"\2\0\0\0\1x", 13, "grpc: received unexpected payload format 2"),
        (b"\0\xff\xff\xff\xffx", 8, "grpc: received message larger than max (4294967295 vs. 2097152)"),
    ],
)
def test_broken_framing_is_answered(peer: Peer, body: bytes, status: int, text: str) -> None:
    stream = peer.open()
    peer.h2.send_data(stream, body, end_stream=True)
    assert peer.result(stream)[:2] == (status, text)
    chat = peer.open("/test.Echo/Chat")
    peer.h2.send_data(chat, body.removesuffix(framed(b"b")), end_stream=True)
    if not body:
        assert peer.result(chat)[0] == 0
    elif not body.startswith(framed(b"a")) or body.endswith(b"\0"):
        assert peer.result(chat)[:2] == (status, text)
    peer.echo()


def test_every_way_to_cut_the_bytes_gives_the_same_messages(stepping: tuple[Edge, Answering]) -> None:
    """A message and its framing may lie in any number of DATA frames, and those in any number of reads."""
    messages = [b"", b"a", b"bcdefgh" * 3, b""]
    body = b"".join(map(framed, messages))
    peer = Peer(*stepping)
    for size in range(1, len(body) + 1):
        stream = peer.open("/test.Echo/Chat")
        for at in range(0, len(body), size):
            peer.h2.send_data(stream, body[at : at + size])
        peer.h2.end_stream(stream)
        peer.flush()
        assert peer.result(stream) == (0, "", body)
    stream = peer.open("/test.Echo/Chat")
    peer.h2.send_data(stream, body, end_stream=True)
    for byte in peer.h2.data_to_send():
        peer.send(bytes([byte]))
        peer.turn()
    assert peer.result(stream) == (0, "", body)
    peer.close()


def test_an_answer_before_the_end_of_the_question_stops_the_client(peer: Peer) -> None:
    """RFC 9113, 8.1: the answer, then RST_STREAM NO_ERROR, and what still comes is thrown away."""
    stream = peer.open()
    peer.h2.send_data(stream, b"\0\xff\xff\xff\xff")
    peer.until(lambda: peer.of(h2.events.StreamReset, stream))
    assert peer.of(h2.events.StreamReset, stream)[0].error_code == 0
    assert peer.of(h2.events.StreamEnded, stream)
    peer.send(frame(0, 0, stream, bytes(10_000)))
    peer.echo()


# ---- windows and memory


def test_a_stream_may_send_what_its_window_holds_until_python_grants(stepping: tuple[Edge, Answering]) -> None:
    """Messages that Python has not dealt with take window, so they can't pile up."""
    to, answering = stepping
    peer = Peer(to, answering)
    held = peer.open("/test.Echo/Held")
    message = framed(bytes(1000))
    sent = 0

    def fill() -> int:
        nonlocal sent
        while peer.h2.local_flow_control_window(held) >= len(message):
            peer.h2.send_data(held, message)
            sent += 1
            peer.flush()
            peer.turn()
        peer.echo()
        return sent

    first = fill()
    assert first == Limits.stream_window // len(message)
    assert fill() == first
    call = next(event[0] for event, _, _ in answering.events if event[5] == edge.BEGUN)
    assert to.deliver(edge.record(edge.GRANT, call)) == 1
    peer.turn()
    assert fill() >= 2 * first - 1
    peer.close()


def test_a_message_over_the_window_passes_a_stream_that_is_granted(peer: Peer) -> None:
    held = peer.open("/test.Echo/Held")
    left = framed(bytes(1_000_000))
    while left:
        room = min(peer.h2.local_flow_control_window(held), 16384)
        peer.h2.send_data(held, left[:room])
        left = left[room:]
        peer.flush()
        peer.turn()
    peer.until(lambda: any(event[5] == edge.MESSAGE and len(p) == 1_000_000 for event, p, _ in peer.answering.events))


def test_unfinished_messages_are_bounded_and_others_are_served() -> None:
    """Memory that is short ends the call that wants more of it: to wait would be to wait for other clients."""
    limits = Limits(message_max=100_000, inbound_connection_max=300_000, inbound_max=500_000)
    with stepped(limits) as (to, answering):
        peers = [Peer(to, answering) for _ in range(3)]
        streams = [(peer, peer.open()) for peer in peers for _ in range(10)]
        for peer, stream in streams:
            peer.h2.send_data(stream, framed(bytes(100_000))[:60_000][:16384])
            peer.h2.send_data(stream, bytes(16384))
            peer.h2.send_data(stream, bytes(16384))
            peer.flush()
            peer.turn()
        assert to.stats()["inbound"] <= 500_000
        assert to.stats()["memory"] < 2_000_000
        refused = [dict(e.headers) for peer in peers for e in peer.of(h2.events.ResponseReceived)]
        assert refused
        assert {h["grpc-message"] for h in refused} == {"etcdserver: too many requests"}
        others_are_served((to, answering))
        for peer in peers:
            peer.close()
        while to.stats()["connections"]:
            answering(to.poll(0.01))
        assert to.stats()["inbound"] == 0


def test_a_batch_of_calls_is_bounded() -> None:
    """However many messages one read completes: what has no room in `calls` is told as events."""
    with stepped(Limits(batch_bytes=5_000, batch_records=100)) as (to, answering):
        peer = Peer(to, answering)
        small = [peer.call(b"x" * 300) for _ in range(60)]
        peer.flush()
        sizes, told = [], 0
        while answering.edge.stats()["messages_in"] < 60 or sizes[-1:] != [0]:
            batch = to.poll(0)
            sizes.append(len(batch.calls))
            told += sum(event[5] == edge.CALL for event in batch.events)
            answering(batch)
        assert max(sizes) <= 5_000 + 16 + 300
        assert sum(sizes) // 316 + told == 60
        assert told
        assert all(peer.result(stream)[0] == 0 for stream in small)
        peer.close()


def test_a_message_that_never_ends_has_a_deadline() -> None:
    with stepped(Limits(assembly_ms=20)) as (to, answering):
        peer = Peer(to, answering)
        stream, chat = peer.open(), peer.open("/test.Echo/Chat")
        peer.h2.send_data(stream, framed(b"abc")[:-1])
        peer.h2.send_data(chat, b"\0")
        assert peer.result(stream)[:2] == (8, "the message was not whole within 20 ms")
        assert peer.result(chat)[:2] == (8, "the message was not whole within 20 ms")
        idle = peer.open("/test.Echo/Chat")
        peer.message(idle, b"x", end=False)
        peer.until(lambda: peer.of(h2.events.DataReceived, idle))
        for _ in range(5):
            answering(to.poll(0.02))
        peer.h2.end_stream(idle)
        assert peer.result(idle) == (0, "", framed(b"x"))
        peer.close()


def test_who_does_not_read_is_given_up_at_last() -> None:
    """Windows wide open, and nothing read: past outbound_connection_max the connection goes, and its memory with it."""
    limits = Limits(outbound_high=50_000, outbound_connection_high=100_000, outbound_connection_max=1_000_000)
    with stepped(limits) as (to, answering):
        peer = Peer(to, answering, window=2**31 - 1)
        topic = [peer.open("/test.Echo/Topic") for _ in range(3)]
        assert topic
        peer.until(lambda: len(answering.topic) == 3)
        peer.h2.increment_flow_control_window(2**30)
        peer.flush()
        answering(to.poll())
        for _ in range(200):  # a Python that does not listen to BLOCKED
            for call in answering.topic:
                to.deliver(edge.record(edge.SEND, call, bytes(20_000)))
            answering(to.poll())
        kinds = [event[5] for event, _, _ in answering.events]
        assert edge.BLOCKED in kinds
        assert closed_for(answering) == [edge.TOO_MUCH]
        assert to.stats()["outbound"] == 0
        others_are_served((to, answering))
        peer.close()


def test_a_shared_payload_is_charged_once_to_a_connection() -> None:
    """1000 watches on one connection, all of them waiting for the same large event: no reason to give it up."""
    with stepped(Limits(outbound_connection_max=1_000_000)) as (to, answering):
        peer = Peer(to, answering)
        for _ in range(100):
            peer.open("/test.Echo/Topic")
        peer.until(lambda: len(answering.topic) == 100)
        for _ in range(8):
            assert to.fan_out(bytes(100_000), array("Q", answering.topic), b"", array("I", [0] * 100)) == 100
        answering(to.poll())
        assert to.stats()["outbound"] > 70_000_000
        assert closed_for(answering) == []
        for _ in range(5):
            to.fan_out(bytes(100_000), array("Q", answering.topic), b"", array("I", [0] * 100))
        answering(to.poll())
        assert closed_for(answering) == [edge.TOO_MUCH]
        assert to.stats()["outbound"] == 0
        peer.close()


def test_short_memory_is_taken_back_from_who_holds_most() -> None:
    with stepped(Limits(memory_max=5_000_000)) as (to, answering):
        hog, modest = Peer(to, answering), Peer(to, answering)
        hog.open("/test.Echo/Topic")
        hog.until(lambda: answering.topic)
        call = answering.topic[0]
        for _ in range(100):
            modest.call(b"fail 5 no")
            modest.flush()
            modest.turn()
            to.deliver(edge.record(edge.SEND, call, bytes(100_000)))
            modest.echo()
        assert closed_for(answering) == [edge.TOO_MUCH]
        assert to.stats()["memory"] < 1_000_000
        hog.close()
        modest.close()


def test_calls_that_only_wait_are_counted_too() -> None:
    """Calls without a message, each with a token of 8 kB: bounded per connection; and by the thousand: in all."""
    with stepped(Limits(message_max=500_000, inbound_connection_max=500_000)) as (to, answering):
        peer = Peer(to, answering)
        streams = [peer.open(token="x" * 8000 + str(i)) for i in range(100)]
        peer.until(lambda: len(peer.of(h2.events.StreamEnded)) > 30)
        assert 400_000 < to.stats()["inbound"] <= 500_000
        assert to.stats()["memory"] < 1_500_000
        refused = [e.stream_id for e in peer.of(h2.events.StreamEnded)]
        assert peer.result(refused[0])[:2] == (8, "received metadata is over 65536 bytes")
        peer.h2.reset_stream(streams[0])
        peer.until(lambda: to.stats()["inbound"] <= 492_000)
        peer.close()
    with stepped(Limits(memory_max=1_200_000)) as (to, answering):
        modest, greedy = Peer(to, answering), Peer(to, answering)
        modest.echo()
        for _ in range(2000):
            greedy.open("/test.Echo/Silent")
            greedy.flush()
        while not closed_for(answering):
            answering(to.poll(0))
        assert closed_for(answering) == [edge.TOO_MUCH]
        modest.echo()
        assert to.stats()["memory"] < 1_000_000
        modest.close()
        greedy.close()


def test_one_answer_may_be_of_any_size() -> None:
    """A range of a large keyspace is one message; nobody is given up for asking once."""
    limits = Limits(outbound_connection_max=10_000)
    with stepped(limits) as (to, answering):
        peer = Peer(to, answering, window=2**24)
        stream = peer.call(b"1 100000", "/test.Echo/Pour")
        peer.h2.increment_flow_control_window(2**24)
        assert len(peer.result(stream)[2]) == 100_005
        peer.close()


def test_blocked_calls_are_told_when_they_may_go_on(stepping: tuple[Edge, Answering]) -> None:
    peer = Peer(*stepping)
    stream = peer.call(b"100 100000", "/test.Echo/Pour")  # 10 MB against a window of 64 KiB that nobody renews
    peer.until(lambda: peer.answering.blocked)
    assert stepping[0].stats()["outbound"] < 3_000_000
    peer.h2.increment_flow_control_window(2**30)
    peer.h2.increment_flow_control_window(2**30, stream)
    assert len(peer.result(stream)[2]) == 100 * 100_005
    assert not peer.answering.blocked
    peer.close()


def test_calls_that_nobody_reads_do_not_stop_the_others_of_their_connection() -> None:
    """Together they hold more than a connection's calls should; one that is read goes on all the same."""
    with stepped(Limits(outbound_high=50_000, outbound_connection_high=100_000)) as (to, answering):
        peer = Peer(to, answering)
        for _ in range(5):
            peer.call(b"100 10000", "/test.Echo/Pour")
        peer.until(lambda: len(answering.blocked) == 5)
        assert to.stats()["outbound"] > 100_000
        peer.h2.increment_flow_control_window(2**30)
        read = peer.call(b"100 10000", "/test.Echo/Pour")
        peer.h2.increment_flow_control_window(2**30, read)
        assert len(peer.result(read)[2]) == 100 * 10_005
        assert len(answering.blocked) == 5
        peer.close()


# ---- floods


def test_rapid_reset_is_ended() -> None:
    """CVE-2023-44487: calls begun and reset at once, which cost us and not the client."""
    with stepped(Limits(reset_burst=100, reset_rate=1)) as (to, answering):
        peer = Peer(to, answering)
        for _ in range(300):
            if peer.ended:
                break
            stream = peer.call(b"", "/test.Echo/Silent")
            peer.h2.reset_stream(stream, 8)
            peer.flush()
        assert peer.goaway() == (CALM, b"too many calls reset")
        peer.turn()
        assert 100 <= to.method_stats(SILENT)[0] <= 110
        assert closed_for(answering) == [edge.TOO_MUCH] or to.stats()["connections"]
        others_are_served((to, answering))
        peer.close()


def test_calls_that_a_client_makes_us_reset_count_as_well() -> None:
    """CVE-2025-8671: a window over 2**31 - 1 is an error of the stream, and we are to reset it."""
    with stepped(Limits(reset_burst=50, reset_rate=1, noise_burst=100_000)) as (to, answering):
        peer = Peer(to, answering)
        for _ in range(100):
            if peer.ended:
                break
            stream = peer.call(b"", "/test.Echo/Silent")
            peer.flush()
            peer.send(frame(8, 0, stream, b"\x7f\xff\xff\xff"))
            peer.turn()
        assert peer.goaway() == (CALM, b"too many calls reset")
        assert 50 <= to.method_stats(SILENT)[0] <= 60
        peer.close()


def test_a_client_may_cancel_all_that_it_has(stepping: tuple[Edge, Answering]) -> None:
    """1000 watches ended at once are no attack; and reset calls do not count once they are answered."""
    peer = Peer(*stepping)
    streams = [peer.open("/test.Echo/Topic") for _ in range(1000)]
    peer.until(lambda: len(peer.answering.topic) == 1000)
    for stream in streams:
        peer.h2.reset_stream(stream, 8)
    peer.until(lambda: not peer.answering.topic)
    peer.echo()
    peer.close()


@pytest.mark.parametrize(
    ("flood", "text"),
    [
        (frame(4, 0, 0), b"too many frames that carry nothing"),  # SETTINGS
        (frame(6, 0, 0, bytes(8)), b"too_many_pings"),
        (frame(2, 0, 99, struct.pack(">IB", 0, 1)), b"too many frames that carry nothing"),  # PRIORITY
        (frame(0, 0, 1), b"too many frames that carry nothing"),  # empty DATA of an open stream
    ],
    ids=["settings", "ping", "priority", "empty data"],
)
def test_frames_that_carry_nothing_are_counted(flood: bytes, text: bytes) -> None:
    with stepped(Limits(noise_burst=1000, noise_rate=1)) as (to, answering):
        peer = Peer(to, answering)
        peer.open("/test.Echo/Chat")
        peer.flush()
        for _ in range(100):
            peer.send(flood * 50)
        assert peer.goaway() == (CALM, text)
        assert to.stats()["floods"] == 1
        others_are_served((to, answering))
        peer.close()


def test_pings_to_keep_alive_are_answered_and_strikes_counted() -> None:
    """etcd's --grpc-keepalive-min-time; a ping after something that we sent is welcome (gRPC's window estimates)."""
    with stepped(Limits(ping_min_ms=3_600_000)) as (to, answering):
        peer = Peer(to, answering)

        def ping(said: bytes) -> None:
            acks = len(peer.of(h2.events.PingAckReceived))
            peer.h2.ping(said)
            peer.until(lambda: len(peer.of(h2.events.PingAckReceived)) > acks)

        for _ in range(20):
            peer.echo()
            ping(b"estimate")
        ping(b"tooearly")
        ping(b"tooearly")
        peer.echo()
        peer.h2.ping(b"welcome.")
        for _ in range(3):
            peer.h2.ping(b"tooearly")
        assert peer.goaway() == (CALM, b"too_many_pings")
        peer.close()


def test_a_header_block_without_end_is_ended(stepping: tuple[Edge, Answering]) -> None:
    """CVE-2024-28182: CONTINUATION frames for ever."""
    peer = Peer(*stepping)
    peer.send(frame(1, 0, 1, hpack.Encoder().encode([(":method", "POST")])))
    for _ in range(40):
        peer.send(frame(9, 0, 1, b"\0\x01a\x01b"))
    code, _ = peer.goaway()
    assert code == CALM
    others_are_served(stepping)
    peer.close()


def test_headers_that_unpack_to_a_flood_are_refused(stepping: tuple[Edge, Answering]) -> None:
    """The HPACK bomb: a large entry of the table, referred to by one byte again and again."""
    peer = Peer(*stepping)
    peer.until(lambda: peer.of(h2.events.SettingsAcknowledged))
    peer.flush()
    stream = peer.open()
    peer.h2.data_to_send()  # never sent: these headers are instead
    encoder = hpack.Encoder()
    head = [(":method", "POST"), (":scheme", "http"), (":path", "/test.Echo/Echo"), (":authority", "test")]
    bomb = encoder.encode([*head, ("bomb", "x" * 3900)]) + encoder.encode([("bomb", "x" * 3900)]) * 10_000
    before = stepping[0].stats()["memory"]
    peer.send(frame(1, 4, stream, bomb))
    assert peer.result(stream)[:2] == (8, "received metadata is over 65536 bytes")
    assert stepping[0].stats()["memory"] - before < 100_000
    others_are_served(stepping)
    peer.close()


HEAD = {":method": "POST", ":scheme": "http", ":path": "/test.Echo/Echo", ":authority": "test"}
GRPC = {"content-type": "application/grpc"}


@pytest.mark.parametrize("authority", ["http://127.0.0.1:2379", "", "a b", "[::1]:2379"])
def test_an_authority_may_be_anything(stepping: tuple[Edge, Answering], authority: str) -> None:
    """etcd's clients up to 3.4 send the whole URL of an endpoint."""
    peer = Peer(*stepping)
    stream = peer.open()
    peer.h2.data_to_send()  # never sent: these headers are instead
    head = {**HEAD, ":authority": authority, "bad name": "is left out", "bad-value": "is left out\n", "te": "trailers"}
    peer.send(frame(1, 4, stream, hpack.Encoder().encode([*head.items(), *GRPC.items()])))
    peer.message(stream, b"hello")
    assert peer.result(stream)[0] == 0
    peer.close()


@pytest.mark.parametrize(
    "head",
    [
        *(
            [(name, value) for name, value in HEAD.items() if name != missing]
            for missing in (":method", ":scheme", ":path")
        ),
        *([*HEAD.items(), twice] for twice in HEAD.items()),
        [*GRPC.items(), *HEAD.items()],
        [*HEAD.items(), (":unknown", "x")],
        [*HEAD.items(), (":", "x")],
        [*HEAD.items(), (":status", "200")],
        [*HEAD.items(), (":protocol", "websocket")],
        [*{**HEAD, ":path": ""}.items()],
        [*{**HEAD, ":path": "/test.Echo/Echo HTTP/1.1\r\nsmuggled: yes"}.items()],
        [*{**HEAD, ":method": "PO ST"}.items()],
        [*{**HEAD, ":authority": "a\nb"}.items()],
        *([*HEAD.items(), (name, "x")] for name in ("connection", "keep-alive", "transfer-encoding", "upgrade", "te")),
        [*HEAD.items(), ("Upper", "case")],
    ],
)
def test_malformed_headers_end_the_stream(stepping: tuple[Edge, Answering], head: list[tuple[str, str]]) -> None:
    """RFC 9113, 8.2 and 8.3. The connection goes on, and the call is nowhere heard of."""
    peer = Peer(*stepping)
    peer.until(lambda: peer.of(h2.events.SettingsAcknowledged))
    told = len(stepping[1].events)
    stream = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(stream, [*head, *GRPC.items()])
    peer.until(lambda: peer.of(h2.events.StreamReset, stream))
    assert peer.of(h2.events.StreamReset, stream)[0].error_code == PROTOCOL_ERROR
    assert stepping[0].stats()["streams"] == 0
    assert len(stepping[1].events) == told
    assert peer.result(peer.call())[0] == 0
    peer.close()


def test_trailers_end_a_stream(stepping: tuple[Edge, Answering]) -> None:
    peer = Peer(*stepping)
    stream = peer.open()
    peer.flush()
    peer.send(frame(1, 4, stream, hpack.Encoder().encode([("more", "headers")])))
    peer.until(lambda: peer.of(h2.events.StreamReset, stream))
    assert peer.of(h2.events.StreamReset, stream)[0].error_code == PROTOCOL_ERROR
    others_are_served(stepping)
    peer.close()


def test_more_streams_than_allowed_are_refused() -> None:
    with stepped(Limits(streams_max=10)) as (to, answering):
        peer = Peer(to, answering)
        peer.until(lambda: peer.h2.remote_settings.max_concurrent_streams == 10)
        peer.turn()
        for _ in range(10):
            peer.open("/test.Echo/Silent")
        peer.until(lambda: to.stats()["streams"] == 10)
        with pytest.raises(h2.exceptions.TooManyStreamsError):
            peer.open()
        encoder = hpack.Encoder()
        block = encoder.encode([(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "test")])
        peer.send(frame(1, 4, 21, block))
        assert peer.goaway()[0] == PROTOCOL_ERROR
        others_are_served((to, answering))
        peer.close()


# ---- connections


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n"], ids=["silent", "half a preface"])
def test_half_open_connections_have_a_deadline(said: bytes) -> None:
    """RELIABILITY: 1000 connections that say nothing; all go, nobody hears of them, others are served meanwhile."""
    with stepped(Limits(handshake_ms=300)) as (to, answering):
        port = to.listen("127.0.0.1", 0)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
        for one in idle:
            one.sendall(said)
        others_are_served((to, answering))
        while to.stats()["connections"]:
            answering(to.poll(0.05))
        for one in idle:
            assert one.recv(10) == b""
            one.close()
        assert to.stats()["timeouts"] == 300
        assert len(closed_for(answering)) == 1  # the one that was served


def test_connections_over_the_limit_are_closed_at_once() -> None:
    with stepped(Limits(connections_max=5)) as (to, answering):
        port = to.listen("127.0.0.1", 0)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        while to.stats()["refused"] < 3:
            answering(to.poll(0.05))
        assert to.stats()["connections"] == 5
        for client in clients:
            client.close()
        while to.stats()["connections"]:
            answering(to.poll(0.05))


CROWD = """
import resource, socket, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for _ in range(int(sys.argv[2])):
    held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    held[-1].sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
sys.stdin.read()
"""


@pytest.mark.soak
def test_ten_thousand_connections_are_held_and_others_served() -> None:
    """RELIABILITY: each at less than 30 kB, and all are gone when their clients are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_100:
        pytest.skip("this machine permits too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with stepped() as (to, answering):
        before = to.stats()["memory"]
        port = to.listen("127.0.0.1", 0)
        command = [sys.executable, "-c", CROWD, str(port), "10000"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as crowd:
            while len(answering.open) < 10_000:
                assert crowd.poll() is None
                answering(to.poll(0.1))
            assert to.stats()["memory"] - before < 10_000 * 30_000
            others_are_served((to, answering))
            assert crowd.stdin
            crowd.stdin.close()
        while to.stats()["connections"]:
            answering(to.poll(0.1))
        assert len(closed_for(answering)) == 10_001
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_running_out_of_descriptors_refuses_and_does_not_spin(stepping: tuple[Edge, Answering]) -> None:
    to, answering = stepping
    port = to.listen("127.0.0.1", 0)
    client = socket.create_connection(("127.0.0.1", port))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    taken = []
    try:
        while len(taken) < 1024:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        answering(to.poll(0))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert to.stats()["refused"] == 1
    client.settimeout(30)
    assert client.recv(1) == b""
    client.close()
    others_are_served(stepping)


@pytest.mark.parametrize(
    "wrong",
    [
        frame(0, 0, 0, b"x"),  # DATA on stream 0
        frame(0, 0, 7, b"x"),  # DATA on an idle stream
        frame(1, 4, 2, b"\x82"),  # HEADERS with an even number
        frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"),  # HEADERS that HPACK can't read
        frame(4, 0, 0, b"abc"),  # SETTINGS of a wrong length
        frame(4, 0, 1, b""),  # SETTINGS on a stream
        frame(5, 4, 1, bytes(4) + b"\x82"),  # PUSH_PROMISE from a client
        frame(6, 0, 0, b"short"),  # PING of a wrong length
        frame(8, 0, 0, bytes(4)),  # WINDOW_UPDATE of 0
        frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,  # a window over 2**31 - 1
        frame(9, 4, 1, b"\x82"),  # CONTINUATION without HEADERS
        frame(1, 0, 1, b"\x82") + frame(6, 0, 0, bytes(8)),  # PING inside a header block
        b"\xff\xff\xff\0\0\0\0\0\0" + bytes(100_000),  # a frame of 16 MB
        b"GET / HTTP/1.1\r\n\r\n" * 10,
    ],
)
def test_what_is_not_http2_ends_in_a_goaway(stepping: tuple[Edge, Answering], wrong: bytes) -> None:
    peer = Peer(*stepping)
    peer.send(wrong)
    assert peer.goaway()[0] not in (0, CALM)
    while stepping[0].stats()["connections"]:
        peer.close()
        stepping[1](stepping[0].poll(0.01))
    assert closed_for(stepping[1]) == [edge.BAD_PROTOCOL]
    others_are_served(stepping)


def test_a_client_that_says_goodbye_gets_its_answers_first(stepping: tuple[Edge, Answering]) -> None:
    """GOAWAY from there: what is under way goes on, then the connection ends."""
    peer = Peer(*stepping)
    chat = peer.open("/test.Echo/Chat")
    peer.message(chat, b"one", end=False)
    peer.until(lambda: peer.of(h2.events.DataReceived, chat))
    peer.send(frame(7, 0, 0, struct.pack(">II", 0, 0)))
    peer.turn()
    assert not peer.ended
    peer.message(chat, b"two")
    assert peer.result(chat) == (0, "", framed(b"one") + framed(b"two"))
    peer.until(lambda: peer.ended)
    peer.close()
    while stepping[0].stats()["connections"]:
        stepping[1](stepping[0].poll(0.01))
    assert closed_for(stepping[1]) == [edge.BY_PEER]


def test_a_client_that_vanishes_takes_its_calls_along(stepping: tuple[Edge, Answering]) -> None:
    to, answering = stepping
    peer = Peer(*stepping)
    for path in ("/test.Echo/Topic", "/test.Echo/Silent", "/test.Echo/Chat"):
        peer.message(peer.open(path), b"x", end=path.endswith("Silent"))
    peer.until(lambda: answering.topic and to.method_stats(SILENT)[0])
    peer.close()
    while to.stats()["connections"]:
        answering(to.poll(0.01))
    assert closed_for(answering) == [edge.BY_PEER]
    assert [event[5] for event, _, _ in answering.events].count(edge.CANCELLED) == 0
    assert to.stats()["streams"] == 0
    assert to.fail(14, "") == 0


def test_a_peer_that_went_silent_is_asked_and_given_up() -> None:
    """etcd's --grpc-keepalive-interval and -timeout."""
    with stepped(Limits(keepalive_ms=20, keepalive_timeout_ms=60_000)) as (to, answering):
        answers = Peer(to, answering)
        answers.echo()
        answers.until(lambda: len(answers.of(h2.events.PingReceived)) >= 3)
        assert not answers.ended
        answers.close()
    with stepped(Limits(keepalive_ms=20, keepalive_timeout_ms=20)) as (to, answering):
        dead = Peer(to, answering)
        answering(to.poll(0))
        while to.stats()["connections"]:
            answering(to.poll(0.01))
        assert closed_for(answering) == [edge.TOO_LATE]
        dead.close()


def test_memory_returns_to_where_it_was(stepping: tuple[Edge, Answering]) -> None:
    """Everything that any of it took: nothing is left of calls and connections that are gone."""
    to, answering = stepping

    def rounds() -> int:
        for _ in range(3):
            peers = [Peer(to, answering) for _ in range(20)]
            for peer in peers:
                peer.call(b"x" * 5000, token="secret")
                peer.message(peer.open("/test.Echo/Chat"), b"half"[:2], end=False)
                peer.call(b"5 30000", "/test.Echo/Pour")
                peer.call(path="/nowhere")
                peer.flush()
                peer.turn()
            for peer in peers:
                peer.close()
            while to.stats()["connections"]:
                answering(to.poll(0.01))
        return to.stats()["memory"]

    assert rounds() == rounds()
