"""Messages that are compressed with gzip, as etcd takes them: by grpcio, and byte by byte."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Iterator

import grpc
import pytest

from native.edge import Edge, Limits

from .edges import WAIT, Answering, Peer, Service, framed, service, stepped

MOST = 50_000
LIMITS = Limits(message_max=MOST, inbound_connection_max=4 * MOST, inbound_max=8 * MOST)


@pytest.fixture
def running() -> Iterator[Service]:
    with service() as started:
        yield started


@pytest.fixture
def bounded() -> Iterator[tuple[Edge, Answering]]:
    with stepped(LIMITS) as made:
        yield made


def said(peer: Peer, payload: bytes, *, flag: int = 1, encoding: str = "gzip") -> tuple[int, str, bytes]:
    """Status, text and the message that came back for one call."""
    stream = peer.open(grpc_encoding=encoding) if encoding else peer.open()
    sent, size = struct.pack(">BI", flag, len(payload)) + payload, 16_000
    for at in range(0, len(sent), size):
        peer.h2.send_data(stream, sent[at : at + size], end_stream=at + size >= len(sent))
        peer.flush()
        peer.turn()
    status, text, data = peer.result(stream)
    if data:
        peer.h2.increment_flow_control_window(len(data))
    return status, text, data[5:]


def test_grpcio_compresses(running: Service) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        echo, chat = channel.unary_unary("/test.Echo/Echo"), channel.stream_stream("/test.Echo/Chat")
        dice = random.Random(1)
        for size in (0, 1, 255, 256, 257, 100_000, 1_500_000):
            for message in (bytes(size), dice.randbytes(size)):
                assert echo(message, compression=grpc.Compression.Gzip, timeout=WAIT) == message
        messages = [bytes(100 * i) for i in range(50)]
        assert list(chat(iter(messages), compression=grpc.Compression.Gzip, timeout=WAIT)) == messages
        with pytest.raises(grpc.RpcError) as raised:
            echo(b"x" * 1000, compression=grpc.Compression.Deflate, timeout=WAIT)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert raised.value.details() == 'grpc: Decompressor is not installed for grpc-encoding "deflate"'


def test_what_is_compressed_and_what_only_could_be(bounded: tuple[Edge, Answering]) -> None:
    peer = Peer(*bounded)
    assert said(peer, b"as it is", flag=0) == (0, "", b"as it is")
    assert said(peer, gzip.compress(b"")) == (0, "", b"")
    assert said(peer, gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two")) == (0, "", b"onetwo")
    assert said(peer, b"x", encoding="snappy", flag=0)[0] == 12
    assert said(peer, gzip.compress(b"x"), encoding="identity")[0] == 13
    assert said(peer, gzip.compress(b"x"), encoding="")[0] == 13
    peer.echo()
    peer.close()


def test_what_is_broken_is_refused(bounded: tuple[Edge, Answering]) -> None:
    peer, whole = Peer(*bounded), gzip.compress(bytes(5000), mtime=0)
    broken = "grpc: failed to decompress the received message "
    for payload, reason in (
        (b"", "EOF"),
        (b"garbage" + bytes(4), "gzip: invalid header"),
        (whole[:-8] + bytes(4) + whole[-4:], "gzip: invalid checksum"),
        (whole[:8], "unexpected EOF"),
        (whole[:12] + b"\xff" * 10 + whole[-4:], "flate: corrupt input"),
        (whole[:-4] + bytes(4), "gzip: invalid checksum"),
        (whole + bytes(8), "gzip: invalid header"),
    ):
        assert said(peer, payload) == (13, broken + reason, b""), payload
    for at in range(10, len(whole) - 8):  # every other way of being broken: an error, and nobody else is harmed
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        told = said(peer, bytes(damaged))
        assert told[0] in (8, 13) or told == (0, "", bytes(5000)), at  # bits that mean nothing
    peer.echo()
    assert bounded[0].stats()["inbound"] == 0
    peer.close()


def test_how_large_it_may_grow(bounded: tuple[Edge, Answering]) -> None:
    """Of what it says, and of what it is when it lies."""
    peer = Peer(*bounded)
    assert said(peer, gzip.compress(bytes(MOST))) == (0, "", bytes(MOST))
    over = gzip.compress(bytes(MOST + 1))
    assert said(peer, over) == (8, f"grpc: received message larger than max ({MOST + 1} vs. {MOST})", b"")
    bomb = gzip.compress(bytes(50_000_000))
    liar = bomb[:-4] + struct.pack("<I", 10)
    assert said(peer, liar) == (8, f"grpc: received message larger than max ({MOST + 1} vs. {MOST})", b"")
    peer.echo()
    assert bounded[0].stats()["inbound"] == 0
    peer.close()


def test_what_is_held_for_a_connection_is_bounded_too(bounded: tuple[Edge, Answering]) -> None:
    """Streams whose messages are being assembled take the room that this one would need."""
    peer, large = Peer(*bounded), gzip.compress(bytes(MOST))
    for _ in range(4):
        half = peer.open("/test.Echo/Tell")
        peer.h2.send_data(half, framed(bytes(MOST))[: MOST - 1_000][:16_000])
        peer.flush()
        peer.turn()
    before = bounded[0].stats()["memory"]
    for _ in range(20):
        status, _, data = said(peer, large)
        assert (status, data) in ((0, bytes(MOST)), (8, b""))
    assert bounded[0].stats()["memory"] < before + 4 * MOST
    peer.close()
