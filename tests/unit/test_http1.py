"""HTTP/1.1 as the JSON gateway speaks it: pieces, pipelines, bounds, ends. No sockets."""

from __future__ import annotations

import json
from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import http1
from cluster.http1 import AHEAD_BYTES_MAX, HEAD_BYTES_MAX
from cluster.internal import Tick
from cluster.links import Lost
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind
from native import edge
from tests.unit.jsonclient import CONNECTION, OTHER, Client, said
from tests.unit.test_gatewayd import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_bytes_may_come_in_any_pieces(world: World, client: Client, size: int) -> None:
    request = (
        b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'9\r\n{"key":"Z\r\n14\r\nm9v","value":"YmFy"}\r\n0\r\n\r\n'
    )
    for at in range(0, len(request), size):
        client.send(request[at : at + size])
    (call,) = world.link.apply
    assert pb.PutRequest.FromString(call.payload) == pb.PutRequest(key=b"foo", value=b"bar")


def test_requests_sent_ahead_are_answered_in_order(world: World, client: Client) -> None:
    one = b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n" + b'{"key":"Zm9v"}'
    client.send(one + b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n" + one)
    assert len(world.link.apply) == 1
    assert client.got() == b""
    world.applied(world.link.apply[0], pb.RangeResponse(count=1).SerializeToString())
    got = client.got()
    assert got.index(b'{"count":"1"}') < got.index(b'"etcdserver"')
    assert len(world.link.apply) == 2
    world.applied(world.link.apply[1], pb.RangeResponse(count=2).SerializeToString())
    assert said(client.got()) == (200, b'{"count":"2"}')


def test_whoever_sends_far_ahead_is_not_read_from_until_answered(world: World, client: Client) -> None:
    client.post("/v3/kv/range", b'{"key":"Zm9v"}')
    many = b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n" * 2000
    assert len(many) > AHEAD_BYTES_MAX
    client.send(many)
    assert (client.told(edge.PAUSE), client.told(edge.RESUME)) == (1, 0)
    world.applied(world.link.apply[0], b"")
    assert (client.told(edge.PAUSE), client.told(edge.RESUME)) == (1, 1)
    assert client.got().count(b"HTTP/1.1 200 OK") == 2001
    assert world.gateway.json.held == 0


def test_whoever_does_not_take_answers_gets_no_more_of_them(world: World, client: Client) -> None:
    world.event(edge.BYTES, CONNECTION, payload=b"GET /version HTTP/1.1\r\nHost: a\r\n")
    world.event(edge.BLOCKED, CONNECTION)
    client.send(b"\r\nGET /version HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.got() == b""
    world.event(edge.WRITABLE, CONNECTION)
    assert client.got().count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"GET /version HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET /version HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (HEAD_BYTES_MAX + 1), b"431"),
    ],
    ids=["garbage", "no host", "no length", "encoding", "chunk", "head"],
)
def test_what_is_no_http_gets_a_status_and_the_end(world: World, client: Client, sent: bytes, status: bytes) -> None:
    other = Client(world, OTHER)
    other.post("/v3/kv/range", b'{"key":"Zm9v"}')
    client.send(sent)
    assert client.got().startswith(b"HTTP/1.1 " + status)
    assert client.closed
    assert world.gateway.json.held == 14 + len(b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n")
    client.send(b"more of it")
    assert client.got() == b""
    world.event(edge.CLOSED, CONNECTION)
    world.applied(world.link.apply[0], b"")
    assert said(other.got()) == (200, b"{}")


PIECES = st.lists(
    st.binary(max_size=30)
    | st.sampled_from(
        [
            *(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\n", b"\r\n"),
            *(b"Content-Length: 2\r\n\r\n", b"{}", b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\n", b"0\r\n\r\n"),
            *(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n"),
            *(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"Connection: close\r\n", b"HEAD /health HTTP/1.0\r\n\r\n"),
            *(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /readyz?%ff=&&=x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ]
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.lists(st.sampled_from(["tick", "answer", "blocked", "writable", "half", "lost"]), max_size=12))
def test_whatever_comes_everybody_else_is_served(pieces: list[bytes], between: list[str]) -> None:
    world = World()
    client, other = Client(world), Client(world, OTHER)
    half = False
    for piece, then in zip_longest(pieces, between):
        if piece and not half:
            client.send(piece)
        if then == "tick":
            world.arrives(Tick())
        elif then == "answer" and world.link.apply:
            world.applied(world.link.apply[-1], b"")
        elif then in ("blocked", "writable", "half"):
            kind = {"blocked": edge.BLOCKED, "writable": edge.WRITABLE, "half": edge.HALF_CLOSED}[then]
            world.event(kind, CONNECTION)
            half |= then == "half"
        elif then == "lost":
            world.arrives(Lost("apply"))
            world.arrives(Lost("watch"))
    other.get("/version")
    assert said(other.got())[0] == 200
    world.event(edge.CLOSED, CONNECTION)
    assert world.gateway.json.held == 0
    assert len(world.gateway.json) == 1
    opened = [record.kind for record in world.link.watch]
    assert opened.count(Kind.STREAM_OPEN) - opened.count(Kind.STREAM_CLOSE) in (0, between.count("lost"))


def test_a_request_that_never_becomes_whole_ends(world: World, client: Client) -> None:
    """However it is spun out. Who asks for nothing, or has asked, may stay."""
    body, idle, waiting = Client(world, OTHER), Client(world, 7 << 32), Client(world, 8 << 32)
    body.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n{")
    client.send(b"GET /ver")
    idle.get("/version")
    waiting.post("/v3/kv/range", b'{"key":"Zm9v"}')
    for owing, seconds in ((client, http1.HEAD_SECONDS), (body, http1.BODY_SECONDS - http1.HEAD_SECONDS)):
        for tick in range(int(seconds / 0.1)):
            assert not owing.closed, tick
            world.arrives(Tick())
            owing.send(b"s")
        assert owing.closed
        assert owing.got().startswith(b"HTTP/1.1 408")
    assert not idle.closed
    assert not waiting.closed


def test_all_that_is_held_has_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "HELD_BYTES_MAX", 100_000)
    clients = [Client(world, number << 32) for number in range(1, 6)]
    for client in clients:
        client.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    for client in clients:
        client.send(bytes(30_000))
    assert world.gateway.json.held <= 100_000
    assert [client.got()[:12] for client in clients if client.closed] == [b"HTTP/1.1 503"] * 2
    whole, new = Client(world, 8 << 32), Client(world, 9 << 32)
    new.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(30_000))
    assert new.got()[:12] == b"HTTP/1.1 503"
    whole.get("/version?" + "x" * 30_000)
    assert said(whole.got())[0] == 200, "who asks for nothing that is kept is served"


def test_half_a_connection(world: World, client: Client) -> None:
    """Whoever has said all gets the answer; whoever broke off gets a status; who is idle is let go."""
    client.post("/v3/kv/range", b'{"key":"Zm9v"}')
    world.event(edge.HALF_CLOSED, CONNECTION)
    assert not client.closed
    world.applied(world.link.apply[0], b"")
    assert said(client.got()) == (200, b"{}")
    assert client.closed
    broken = Client(world, OTHER)
    broken.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    world.event(edge.HALF_CLOSED, OTHER)
    assert broken.got().startswith(b"HTTP/1.1 400")
    assert broken.closed


def test_http_1_0_and_close(client: Client, world: World) -> None:
    client.send(b"GET /version HTTP/1.0\r\n\r\n")
    assert b"200 OK" in client.got()
    assert client.closed
    other = Client(world, OTHER)
    other.send(b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"Connection: close" in other.got()
    assert other.closed


def test_expect_continue(world: World, client: Client) -> None:
    client.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.got() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"{}")
    assert world.link.apply


def test_when_apply_is_gone_those_who_wait_are_told(world: World, client: Client) -> None:
    one = b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    client.send(one)
    world.arrives(Lost("apply"))
    status, body = said(client.got())
    assert (status, json.loads(body)["code"]) == (503, 14)


def test_at_the_end_connections_close_with_their_last_answer(world: World, client: Client) -> None:
    idle, watching = Client(world, OTHER), Client(world, 7 << 32)
    idle.get("/version")
    watching.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    client.post("/v3/kv/range", b'{"key":"Zm9v"}')
    world.gateway.drain()
    world.gateway.turn()
    assert (client.closed, idle.closed, watching.closed) == (False, True, True)
    world.applied(world.link.apply[0], b"")
    assert said(client.got()) == (200, b"{}")
    assert client.closed


def test_nobody_waits_for_the_answer(world: World, client: Client) -> None:
    client.post("/v3/kv/put", b'{"key":"Zm9v"}')
    other = Client(world, OTHER)
    other.get("/health")
    for id in (CONNECTION, OTHER):
        world.event(edge.CLOSED, id)
    for call in list(world.link.apply):
        world.applied(call, b"")
    assert client.got() == other.got() == b""
    assert len(world.gateway.json) == 0
    assert world.gateway.json.held == 0
