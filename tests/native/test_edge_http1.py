"""Connections that don't open with HTTP/2's preface: bytes to Python, bytes back, bounded, and nothing understood."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from native import edge
from native.edge import Edge, Limits, record

from .edges import WAIT, Service, service, stepped


@pytest.fixture
def running() -> Iterator[Service]:
    with service() as started:
        yield started


def pair(to: Edge) -> socket.socket:
    ours, theirs = socket.socketpair()
    to.adopt(theirs.detach())
    ours.settimeout(WAIT)
    return ours


def read(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = client.recv(size - len(got))
        assert more
        got += more
    return got


@pytest.mark.parametrize("said", [b"GET /version HTTP/1.1\r\n\r\n", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"\0"])
def test_bytes_pass_both_ways(running: Service, said: bytes) -> None:
    """However much of the preface they begin with; what is all preface so far waits for more."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as client:
        client.sendall(said)
        if said == b"P":
            client.sendall(b"OST / HTTP/1.1\r\n\r\n")
            said += b"OST / HTTP/1.1\r\n\r\n"
        assert read(client, len(said)) == said
        client.sendall(b"more")
        assert read(client, 4) == b"more"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    running.until(lambda a: a.events[-1][0][5] == edge.CLOSED)
    kinds = [event[5] for event, _, _ in running.answering.events]
    assert kinds[0] == edge.OPENED
    assert kinds[-2:] == [edge.HALF_CLOSED, edge.CLOSED]
    assert running.answering.events[0][0][7] == edge.HTTP1
    assert (
        b"".join(payload for event, payload, _ in running.answering.events if event[5] == edge.BYTES) == said + b"more"
    )


def test_large_bodies_pass(running: Service) -> None:
    body = bytes(range(256)) * 40_000
    with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as client:
        got = b""
        client.setblocking(False)
        left = body
        while len(got) < len(body):
            with suppress(BlockingIOError):
                left = left[client.send(left[:65536]) :]
            with suppress(BlockingIOError):
                got += client.recv(65536)
        assert got == body


def test_who_does_not_read_is_not_read_from() -> None:
    """The relay holds a bounded amount, and then TCP holds the rest."""
    with stepped(Limits(outbound_high=100_000)) as (to, answering):
        client = pair(to)
        client.setblocking(False)
        sent = idle = 0
        while idle < 20:
            try:
                sent += client.send(bytes(65536))
                idle = 0
            except BlockingIOError:
                idle += 1
            answering(to.poll(0))
        assert answering.blocked
        assert to.stats()["outbound"] < 1_000_000
        got = 0
        while got < sent:
            try:
                got += len(client.recv(1 << 20))
            except BlockingIOError:
                answering(to.poll(0.01))
        assert got == sent
        assert not answering.blocked
        assert to.stats()["outbound"] == 0
        client.close()


def test_python_may_stop_reading_and_go_on() -> None:
    with stepped() as (to, answering):
        client = pair(to)
        client.sendall(b"first")
        answering(to.poll(0))
        (connection,) = answering.open
        assert to.deliver(record(edge.PAUSE, connection)) == 1
        client.sendall(b"second")
        assert to.poll(0).events == []
        assert to.deliver(record(edge.RESUME, connection)) == 1
        answering(to.poll(0))
        assert read(client, 11) == b"firstsecond"
        client.close()


def test_closing_lets_everything_out_first() -> None:
    with stepped() as (to, answering):
        client = pair(to)
        client.sendall(b"x")
        answering(to.poll(0))
        (connection,) = answering.open
        to.deliver(record(edge.WRITE, connection, bytes(1_000_000)) + record(edge.CLOSE, connection))
        assert to.deliver(record(edge.WRITE, connection, b"too late")) == 0
        client.setblocking(False)
        got = b""
        while len(got) < 1_000_001:
            try:
                more = client.recv(1 << 16)
                assert more
                got += more
            except BlockingIOError:
                answering(to.poll(0.01))
        client.setblocking(True)
        answering(to.poll(0))
        assert client.recv(1) == b""
        client.close()
        while to.stats()["connections"]:
            answering(to.poll(0.01))
        assert [event[7] for event, _, _ in answering.events if event[5] == edge.CLOSED] == [edge.BY_US]


def test_too_much_for_a_reader_that_stands_still_ends_it() -> None:
    with stepped(Limits(outbound_connection_max=1_000_000)) as (to, answering):
        client = pair(to)
        client.sendall(b"x")
        answering(to.poll(0))
        (connection,) = answering.open
        for _ in range(50):
            to.deliver(record(edge.WRITE, connection, bytes(100_000)))
        answering(to.poll(0))
        assert [event[7] for event, _, _ in answering.events if event[5] == edge.CLOSED] == [edge.TOO_MUCH]
        assert to.stats()["outbound"] == 0
        client.close()


def test_answers_for_the_other_protocol_find_nobody() -> None:
    with stepped() as (to, answering):
        client = pair(to)
        client.sendall(b"x")
        answering(to.poll(0))
        (connection,) = answering.open
        assert to.deliver(record(edge.REPLY, connection | 1, b"x")) == 0
        assert to.deliver(record(edge.REPLY, connection, b"x")) == 0
        assert to.deliver(record(edge.WRITE, connection + (1 << 32), b"x")) == 0
        client.close()


def test_draining_closes_what_python_closes(running: Service) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as client:
        client.sendall(b"x")
        assert read(client, 1) == b"x"
        assert running.call(lambda e: e.drain(WAIT)) == 1
        client.sendall(b"y")
        assert read(client, 1) == b"y"
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", running.port), timeout=WAIT)
        (connection,) = running.call(lambda _: list(running.answering.open))
        running.call(lambda e: e.deliver(record(edge.CLOSE, connection)))
        assert client.recv(1) == b""
    running.until(lambda a: a.edge.drain(0) == 0)


def test_a_silent_relay_is_not_disturbed_by_time() -> None:
    """A JSON watch may be quiet for hours: only Python knows."""
    with stepped(Limits(handshake_ms=10, keepalive_ms=10, keepalive_timeout_ms=10, assembly_ms=10)) as (to, answering):
        client = pair(to)
        client.sendall(b"x")
        for _ in range(10):
            answering(to.poll(0.01))
        assert to.stats()["connections"] == 1
        client.close()
