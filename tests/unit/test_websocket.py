"""WebSockets at the gateway, between an edge, an apply and a watch process that are only recorded. wsproto's other half
is the client."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Event, Message, Ping, Pong, TextMessage

from cluster.http1 import Request
from cluster.internal import Tick
from cluster.links import Lost, Streamed
from cluster.websocket import _bridged
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from native import edge
from tests.unit.jsonclient import CONNECTION, Client, said
from tests.unit.test_gatewayd import World

ASKING = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
CREATE = '{"create_request":{"key":"Zm9v"}}'


class Socket:
    """An open one, seen from its client."""

    def __init__(self, client: Client, path: str, more: str = "", ahead: bytes = b"") -> None:
        self.client, self.frames = client, Connection(ConnectionType.CLIENT)
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n{ASKING}{KEY}{more}\r\n".encode() + ahead)
        self.head, _, rest = client.got().partition(b"\r\n\r\n")
        self.frames.receive_data(rest)

    def say(self, *texts: str) -> None:
        self.client.send(b"".join(self.frames.send(Message(data=text)) for text in texts))

    def told(self) -> list[Event]:
        self.frames.receive_data(self.client.got())
        return list(self.frames.events())

    def texts(self) -> list[object]:
        return [json.loads(event.data) for event in self.told() if isinstance(event, TextMessage)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


def watched(world: World, payload: pb.WatchResponse) -> None:
    stream = world.link.watch[0].id
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, stream, payload.SerializeToString())))


def test_a_watch(world: World, client: Client) -> None:
    """The key and what must be answered are RFC 6455's own (1.3)."""
    socket = Socket(client, "/v3/watch")
    assert socket.head == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    )
    socket.say(CREATE, CREATE + CREATE)
    assert [record.kind for record in world.link.watch] == [Kind.STREAM_OPEN] + [Kind.STREAM_MESSAGE] * 3
    watched(world, pb.WatchResponse(created=True))
    watched(world, pb.WatchResponse(watch_id=1, created=True))
    assert socket.texts() == [{"result": {"created": True}}, {"result": {"watch_id": "1", "created": True}}]
    client.send(socket.frames.send(Ping(payload=b"there?")))
    assert socket.told() == [Pong(payload=b"there?")]
    client.send(socket.frames.send(CloseConnection(code=1001, reason="going")))
    assert socket.told() == [CloseConnection(code=1001, reason="going")]
    assert client.closed
    assert world.link.watch[-1].kind == Kind.STREAM_CLOSE
    assert world.gateway.json.held == 0


def test_messages_may_come_in_pieces_and_with_the_handshake(world: World, client: Client) -> None:
    frames = Connection(ConnectionType.CLIENT)
    parts = [CREATE[:9], CREATE[9:20], CREATE[20:]]
    sent = b"".join(frames.send(Message(data=part, message_finished=part is parts[-1])) for part in parts)
    Socket(client, "/v3/watch", ahead=sent[:20])
    for byte in sent[20:]:
        client.send(bytes([byte]))
    assert [record.kind for record in world.link.watch] == [Kind.STREAM_OPEN, Kind.STREAM_MESSAGE]
    assert pb.WatchRequest.FromString(world.link.watch[1].payload).create_request.key == b"foo"


def test_renewals(world: World, client: Client) -> None:
    socket = Socket(client, "/v3/lease/keepalive")
    client.send(socket.frames.send(Message(data=b'{"ID":"7"}')))
    (renewal,) = world.link.apply
    world.applied(renewal, pb.LeaseKeepAliveResponse(ID=7, TTL=9).SerializeToString())
    assert socket.texts() == [{"result": {"ID": "7", "TTL": "9"}}]


@pytest.mark.parametrize(
    ("path", "says", "told"),
    [
        ("/v3/watch", "x", '{"error":"invalid character \'x\' looking for beginning of value","code":2'),
        ("/v3/nothing", "", '{"code":5,"message":"Not Found"'),
    ],
)
def test_what_cannot_be_is_said_and_ends_it(world: World, client: Client, path: str, says: str, told: str) -> None:
    socket = Socket(client, path)
    if says:
        socket.say(says)
    message, end = socket.told()
    assert isinstance(message, TextMessage)
    assert message.data.startswith(told)
    assert isinstance(end, CloseConnection)
    assert end.code == 1000
    assert client.closed


def test_the_end_of_a_stream_ends_it(world: World, client: Client) -> None:
    socket = Socket(client, "/v3/watch")
    socket.say(CREATE)
    world.arrives(Lost("watch"))
    message, end = socket.told()
    assert isinstance(message, TextMessage)
    assert json.loads(message.data)["error"]["grpc_code"] == 14
    assert isinstance(end, CloseConnection)
    assert client.closed


def test_whoever_goes_takes_the_stream_with_him(world: World, client: Client) -> None:
    for how in (edge.CLOSED, edge.HALF_CLOSED):
        Socket(client, "/v3/watch").say(CREATE)
        world.event(how, client.id)
        assert world.link.watch[-1].kind == Kind.STREAM_CLOSE
        client = Client(world, client.id + (1 << 32))
    assert len(world.gateway.json) == 1  # until the edge has said that it is closed
    assert world.gateway.json.held == 0


def test_a_slow_reader_is_paused(world: World, client: Client) -> None:
    Socket(client, "/v3/watch").say(CREATE)
    world.event(edge.BLOCKED, client.id)
    world.event(edge.WRITABLE, client.id)
    assert [record.kind for record in world.link.watch[2:]] == [Kind.STREAM_PAUSE, Kind.STREAM_RESUME]


def test_a_message_without_an_end_has_a_bound(world: World, client: Client) -> None:
    socket = Socket(client, "/v3/watch")
    piece = socket.frames.send(Message(data='{"create_request":' + " " * 1_000_000, message_finished=False))
    for _ in range(5):
        client.send(piece)
        piece = socket.frames.send(Message(data=" " * 1_000_000, message_finished=False))
    assert client.closed
    assert world.gateway.json.held == 0


def test_a_draining_gateway_closes_them(world: World, client: Client) -> None:
    Socket(client, "/v3/kv/range").say("{}")
    world.gateway.drain()
    world.gateway.turn()
    assert client.closed


@pytest.mark.parametrize(
    ("method", "more", "status"),
    [
        ("POST", ASKING + KEY, 405),
        ("GET", ASKING, 400),
        ("GET", ASKING.replace("13", "8") + KEY, 400),
        ("GET", ASKING.replace("websocket", "h2c") + KEY, 501),
        ("GET", ASKING.replace("keep-alive, Upgrade", "keep-alive") + KEY, 501),
    ],
)
def test_handshakes_that_fail(world: World, client: Client, method: str, more: str, status: int) -> None:
    """The connection goes on."""
    client.send(f"{method} /v3/watch HTTP/1.1\r\nHost: a\r\n{more}\r\n".encode())
    got = client.got()
    assert said(got)[0] == status
    assert (b"Sec-WebSocket-Version: 13\r\n" in got) == (status < 500)
    client.get("/version")
    assert said(client.got())[0] == 200


def test_only_the_gateways_paths_have_sockets(client: Client) -> None:
    client.send(f"GET /version HTTP/1.1\r\nHost: a\r\n{ASKING}{KEY}\r\n".encode())
    assert said(client.got())[0] == 200


def test_what_a_browser_can_set_comes_along() -> None:
    def bridged(**headers: str) -> dict[str, str]:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return _bridged(Request("GET", "/v3/watch", named, False)).headers

    assert bridged(origin="http://a", grpc_timeout="1S", grpc_metadata_hasleader="true") == {"origin": "http://a"}
    assert bridged(sec_websocket_protocol="Bearer, t.1") == {"authorization": "Bearer t.1"}
    assert bridged(sec_websocket_protocol="Bearer, t.1", cookie="a=b; token=t.2") == {"authorization": "Bearer t.2"}
    assert bridged(cookie="\x7f") == {}


def test_a_token_is_a_subprotocol(client: Client) -> None:
    socket = Socket(client, "/v3/watch", "Sec-WebSocket-Protocol: Bearer, t.1\r\n")
    assert b"\r\nSec-WebSocket-Protocol: Bearer" in socket.head


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=40), max_size=8), st.booleans())
def test_whatever_comes_it_is_a_socket_or_its_end(pieces: list[bytes], masked: bool) -> None:
    world = World()
    client = Client(world, CONNECTION)
    socket = Socket(client, "/v3/watch")
    for piece in pieces:
        client.send(socket.frames.send(Message(data=piece)) if masked else piece)
        world.arrives(Tick())
    socket.told()
    other = Client(world, CONNECTION + (1 << 32))
    other.get("/version")
    assert said(other.got())[0] == 200
