"""The JSON gateway and the pages, byte for byte, between an edge and an apply that are only recorded. No sockets."""

from __future__ import annotations

import json
import re
import time
from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import http1
from cluster.access import Access
from cluster.http1 import AHEAD_BYTES_MAX, HEAD_BYTES_MAX
from cluster.internal import Tick
from cluster.jsonway import PATHS, status_of
from cluster.links import Lost, Streamed
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from native import edge
from native.edge import Batch
from tests.unit.test_gatewayd import World

CONNECTION = 5 << 32
OTHER = 6 << 32
HEADER = pb.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
HEADER_TEXT = b'{"cluster_id":"1","member_id":"2","revision":"3","raft_term":"4"}'
CORS = (
    b"Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
    b"Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
    b"Access-Control-Allow-Origin: *\r\n"
)


class Client:
    """One connection."""

    def __init__(self, world: World, id: int = CONNECTION) -> None:
        self.world, self.id = world, id
        self._seen = 0

    def send(self, data: bytes) -> None:
        self.world.event(edge.BYTES, self.id, payload=data)

    def post(self, path: str, body: bytes = b"", headers: str = "") -> None:
        self.send(f"POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def get(self, path: str, method: str = "GET") -> None:
        self.send(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    def got(self) -> bytes:
        """What has been written since it was last asked, without the date."""
        said = self.world.front.said.get(self.id, [])
        new, self._seen = said[self._seen :], len(said)
        return re.sub(rb"Date: [^\r]*\r\n", b"", b"".join(one.payload for one in new if one.kind == edge.WRITE))

    def told(self, kind: int) -> int:
        return sum(one.kind == kind for one in self.world.front.said.get(self.id, []))

    @property
    def closed(self) -> bool:
        return self.told(edge.CLOSE) > 0


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


def answer(status: str, kind: str, body: bytes, *, grpc: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\n".encode() + CORS + f"Content-Type: {kind}\r\n".encode()
    if grpc:
        head += b"Grpc-Metadata-Content-Type: application/grpc\r\n"
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def said(got: bytes) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


# ---- unary


def test_a_put_to_the_byte(world: World, client: Client) -> None:
    client.post("/v3/kv/put", b'{"key":"Zm9v","value":"YmFy"}')
    (call,) = world.link.apply
    assert (call.method, call.kind) == (Method.PUT, Kind.CALL)
    assert pb.PutRequest.FromString(call.payload) == pb.PutRequest(key=b"foo", value=b"bar")
    world.applied(call, pb.PutResponse(header=HEADER).SerializeToString())
    body = b'{"header":' + HEADER_TEXT + b"}"
    assert client.got() == answer("200 OK", "application/json", body, grpc=True)
    assert not client.closed


def test_a_range_and_a_txn_to_the_byte(world: World, client: Client) -> None:
    client.post("/v3/kv/range", b'{"key":"Zm9v"}')
    kv = pb.KeyValue(key=b"foo", create_revision=2, mod_revision=2, version=1, value=b"bar")
    world.applied(world.link.apply[-1], pb.RangeResponse(header=HEADER, kvs=[kv], count=1).SerializeToString())
    found = b'[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}]'
    assert said(client.got()) == (200, b'{"header":' + HEADER_TEXT + b',"kvs":' + found + b',"count":"1"}')
    client.post("/v3/kv/txn", b'{"success":[{"request_put":{"key":"Zm9v","value":"YmFy"}}]}')
    put = pb.ResponseOp(response_put=pb.PutResponse(header=pb.ResponseHeader(revision=3)))
    response = pb.TxnResponse(header=HEADER, succeeded=True, responses=[put])
    world.applied(world.link.apply[-1], response.SerializeToString())
    ops = b'[{"response_put":{"header":{"revision":"3"}}}]'
    assert said(client.got()) == (200, b'{"header":' + HEADER_TEXT + b',"succeeded":true,"responses":' + ops + b"}")


def test_an_error_has_its_http_status_and_the_text_where_old_and_new_clients_look(world: World, client: Client) -> None:
    client.post("/v3/lease/revoke", b'{"ID":"7"}')
    world.applied(world.link.apply[-1], b"etcdserver: requested lease not found", status=5)
    text = b'"etcdserver: requested lease not found"'
    body = b'{"error":' + text + b',"code":5,"message":' + text + b',"details":[]}'
    assert client.got() == answer("404 Not Found", "application/json", body)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((0, 200), (1, 499), (2, 500), (3, 400), (4, 504), (5, 404), (6, 409), (7, 403), (8, 429)),
        *((9, 400), (10, 409), (11, 400), (12, 501), (13, 500), (14, 503), (15, 500), (16, 401), (99, 500)),
    ],
)
def test_codes_have_their_status(code: int, status: int) -> None:
    assert status_of(code) == status


def test_what_the_gateway_answers_itself_is_there_too(world: World, client: Client) -> None:
    client.post("/v3/maintenance/defragment", b"{}")
    assert client.got() == answer("200 OK", "application/json", b"{}", grpc=True)
    client.post("/v3/auth/status")
    world.applied(world.link.apply[-1], pb.RangeResponse(header=HEADER).SerializeToString())
    assert said(client.got()) == (200, b'{"header":' + HEADER_TEXT + b',"authRevision":"1"}')
    client.post("/v3/auth/enable")
    status, body = said(client.got())
    assert (status, json.loads(body)["code"]) == (400, 9)


@pytest.mark.parametrize("old", ["/v3beta", "/v3alpha"])
def test_old_prefixes_are_the_same(world: World, client: Client, old: str) -> None:
    client.post(f"{old}/kv/range?x=y", b'{"key":"Zm9v"}')
    assert world.link.apply[-1].method == Method.RANGE


def test_other_verbs_and_paths(client: Client) -> None:
    client.get("/v3/kv/put")
    body = b'{"code":12,"message":"Method Not Allowed","details":[]}'
    assert client.got() == answer("501 Not Implemented", "application/json", body)
    client.post("/v3/kv/nothing", b"{}")
    body = b'{"code":5,"message":"Not Found","details":[]}'
    assert client.got() == answer("404 Not Found", "application/json", body)
    client.get("/v3/kv/put", "OPTIONS")
    assert client.got() == b"HTTP/1.1 200 OK\r\n" + CORS + b"Content-Length: 0\r\n\r\n"
    assert not client.closed


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_etcd_is_known(world: World, client: Client, path: str) -> None:
    """It is answered, or apply or watch has been asked."""
    client.post(path, b"{}")
    got = client.got()
    assert got == b"" or said(got)[0] != 404 or "UserGet" in PATHS[path] or b"etcdserver" in got
    assert got or world.link.apply or world.link.watch or "keepalive" in path


def test_what_is_no_request_is_refused(world: World, client: Client) -> None:
    client.post("/v3/kv/put", b"garbage")
    status, body = said(client.got())
    text = "invalid character 'g' looking for beginning of value"
    assert (status, json.loads(body)) == (400, {"error": text, "code": 3, "message": text, "details": []})
    assert not world.link.apply
    client.post("/v3/kv/put", b'{"key":"' + b"QUFB" * 700_000 + b'"}')
    status, body = said(client.got())
    text = "grpc: received message larger than max (2100005 vs. 2097152)"
    assert (status, json.loads(body)["message"]) == (429, text)
    assert not world.link.apply
    assert not client.closed


def test_a_body_without_end_is_refused_and_not_kept(world: World, client: Client) -> None:
    client.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(70):
        client.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    status, body = said(client.got())
    assert (status, json.loads(body)["code"]) == (429, 8)
    assert client.closed
    assert world.gateway.json.held == 0


# ---- HTTP


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


# ---- streams


def created(world: World) -> wire.Record:
    return next(record for record in world.link.watch if record.kind == Kind.STREAM_OPEN)


def streams(world: World, to: wire.Record, kind: int, payload: bytes, status: int = 0) -> None:
    world.arrives(Streamed(wire.encode(Method.WATCH, kind, status, to.id, payload)))


CHUNKED = (
    b"HTTP/1.1 200 OK\r\n" + CORS + b"Content-Type: application/json\r\n"
    b"Grpc-Metadata-Content-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(line: bytes) -> bytes:
    return f"{len(line):x}\r\n".encode() + line + b"\r\n"


def test_a_watch_to_the_byte(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}{"progress_request":{}}')
    opened, *messages = world.link.watch
    assert opened.payload == b"", "what is told to many at once would not come here"
    assert [pb.WatchRequest.FromString(one.payload).WhichOneof("request_union") for one in messages] == [
        "create_request",
        "progress_request",
    ]
    assert client.got() == b"", "etcd says nothing before there is something to say"
    streams(world, opened, Kind.STREAM_MESSAGE, pb.WatchResponse(header=HEADER, created=True).SerializeToString())
    line = b'{"result":{"header":' + HEADER_TEXT + b',"created":true}}\n'
    assert client.got() == CHUNKED + chunk(line)
    event = pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"foo", mod_revision=3))
    streams(world, opened, Kind.STREAM_MESSAGE, pb.WatchResponse(events=[event]).SerializeToString())
    line = b'{"result":{"events":[{"type":"DELETE","kv":{"key":"Zm9v","mod_revision":"3"}}]}}\n'
    assert client.got() == chunk(line)
    world.event(edge.CLOSED, CONNECTION)
    assert (world.link.watch[-1].kind, world.link.watch[-1].id) == (Kind.STREAM_CLOSE, opened.id)
    streams(world, opened, Kind.STREAM_MESSAGE, b"")
    assert client.got() == b""


def test_a_watch_may_be_told_more_while_it_runs(world: World, client: Client) -> None:
    client.send(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not world.link.watch
    client.send(chunk(b'{"create_request":{"key":"Zm9v"}} {"canc'))
    assert len(world.link.watch) == 2
    client.send(chunk(b'el_request":{}}'))
    assert pb.WatchRequest.FromString(world.link.watch[-1].payload).HasField("cancel_request")
    for _ in range(int(http1.BODY_SECONDS / 0.1) + 1):
        world.arrives(Tick())
    assert not client.closed, "its body has no end"


def test_a_watch_that_ends_says_why(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    opened = created(world)
    streams(world, opened, Kind.STREAM_MESSAGE, pb.WatchResponse(created=True).SerializeToString())
    client.got()
    streams(world, opened, Kind.STREAM_CLOSE, b"etcdserver: no leader", status=14)
    text = b'"message":"etcdserver: no leader"'
    old = b'"grpc_code":14,"http_code":503,' + text + b',"http_status":"Service Unavailable"'
    assert client.got() == chunk(b'{"error":{' + old + b',"code":14,"details":[]}}\n') + b"0\r\n\r\n"
    assert not client.closed


def test_a_watch_that_cannot_begin_is_an_error(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    world.arrives(Lost("watch"))
    status, body = said(client.got())
    assert (status, json.loads(body)["error"]["code"]) == (503, 14)


def test_mistakes_in_a_stream(world: World, client: Client) -> None:
    """The first message: an error as etcd says it. Later: nothing more is heard, and the stream goes on."""
    client.post("/v3/watch", b"x")
    status, body = said(client.got())
    assert (status, json.loads(body)["code"]) == (500, 2)
    client = Client(world, OTHER)
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}} x {"create_request":{"key":"Zm9v"}}')
    assert len(world.link.watch) == 2
    streams(world, created(world), Kind.STREAM_MESSAGE, b"")
    assert client.got() == CHUNKED + chunk(b'{"result":{}}\n')


def test_a_slow_reader_of_a_watch_pauses_it(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    world.event(edge.BLOCKED, CONNECTION)
    world.event(edge.WRITABLE, CONNECTION)
    assert [record.kind for record in world.link.watch[2:]] == [Kind.STREAM_PAUSE, Kind.STREAM_RESUME]


def test_a_watcher_that_closes_its_half_has_gone(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    world.event(edge.HALF_CLOSED, CONNECTION)
    assert world.link.watch[-1].kind == Kind.STREAM_CLOSE
    assert client.closed


def test_streams_of_ours_do_not_go_with_somebody_elses_connection(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    for number in range(1, 5):
        world.event(edge.CLOSED, number << 32)
    assert world.link.watch[-1].kind == Kind.STREAM_MESSAGE


def test_keep_alives_are_answered_and_end(world: World, client: Client) -> None:
    client.post("/v3/lease/keepalive", b'{"ID":"8"}{"ID":9}')
    one, two = world.link.apply
    world.applied(one, pb.LeaseKeepAliveResponse(header=HEADER, ID=8, TTL=60).SerializeToString())
    world.applied(two, pb.LeaseKeepAliveResponse(header=HEADER, ID=9).SerializeToString())
    first = b'{"result":{"header":' + HEADER_TEXT + b',"ID":"8","TTL":"60"}}\n'
    second = b'{"result":{"header":' + HEADER_TEXT + b',"ID":"9"}}\n'
    assert client.got() == CHUNKED + chunk(first) + chunk(second) + b"0\r\n\r\n"
    client.post("/v3/lease/keepalive")
    assert client.got() == CHUNKED.replace(b"Grpc-Metadata-Content-Type: application/grpc\r\n", b"") + b"0\r\n\r\n"
    assert not client.closed


def test_over_http_2_it_is_the_same(world: World) -> None:
    """curl over TLS: the edge has the request whole."""

    def request(id: int, head: bytes, body: bytes) -> None:
        world.front.batches.append(
            edge.Batch(b"", 0, [(id, 0, 0, len(body), len(head), edge.REQUEST, 0, 0)], body + head)
        )
        world.gateway.turn()

    request(CONNECTION | 1, b"POST /v3/kv/range", b'{"key":"Zm9v"}')
    world.applied(world.link.apply[0], pb.RangeResponse(count=1).SerializeToString())
    (said,) = world.front.said[CONNECTION | 1]
    cors = re.sub(rb"(?m)^[^:]*", lambda name: name[0].lower(), CORS).replace(b"\r\n", b"\n")
    head = b"application/json\n" + cors + b"grpc-metadata-content-type: application/grpc\0"
    assert (said.kind, said.status, said.payload) == (edge.RESPONSE, 200, head + b'{"count":"1"}')
    request(CONNECTION | 3, b"POST /v3/watch", b'{"create_request":{"key":"Zm9v"}}')
    streams(world, created(world), Kind.STREAM_MESSAGE, b"")
    begun, line = world.front.said[CONNECTION | 3]
    assert (begun.kind, begun.payload) == (edge.RESPONSE_BEGUN, head)
    assert (line.kind, line.payload) == (edge.SEND, b'{"result":{}}\n')
    world.event(edge.CANCELLED, CONNECTION | 3, status=1)
    assert world.link.watch[-1].kind == Kind.STREAM_CLOSE


# ---- pages


def test_version(client: Client) -> None:
    client.get("/version")
    status, body = said(client.got())
    assert status == 200
    assert {"etcdserver", "etcdcluster", "storage"} <= set(json.loads(body))
    client.get("/version", "POST")
    assert b"Allow: GET\r\n" in client.got()


NOSPACE, CORRUPT = "memberID:7 alarm:NOSPACE ", "memberID:8 alarm:CORRUPT "


def alarms(world: World, *alarms: str) -> None:
    """Apply answers which alarms stand, which etcd looks at first."""
    asked = world.link.apply[-1]
    assert asked.method == Method.STATUS
    world.applied(asked, pb.StatusResponse(errors=alarms).SerializeToString())


def test_health_reads(world: World, client: Client) -> None:
    client.get("/health")
    alarms(world)
    read = pb.RangeRequest.FromString(world.link.apply[-1].payload)
    assert not read.serializable
    world.applied(world.link.apply[-1], b"")
    assert said(client.got()) == (200, b'{"health":"true","reason":""}')
    client.get("/health?serializable=true")
    alarms(world)
    assert pb.RangeRequest.FromString(world.link.apply[-1].payload).serializable
    world.applied(world.link.apply[-1], b"etcdserver: request timed out", status=14)
    text = b'{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}\n'
    assert said(client.got()) == (503, text)


@pytest.mark.parametrize(
    ("query", "stand", "reason"),
    [
        ("", [NOSPACE], b"ALARM NOSPACE"),
        ("?serializable=true", [NOSPACE], b"ALARM NOSPACE"),
        ("", ["etcdserver: no leader", CORRUPT], b"ALARM CORRUPT"),
        ("", ["alarm:7 "], b"ALARM UNKNOWN"),
        ("?exclude=NOSPACE", [NOSPACE, CORRUPT], b"ALARM CORRUPT"),
    ],
)
def test_health_says_which_alarm_stands(
    world: World, client: Client, query: str, stand: list[str], reason: bytes
) -> None:
    client.get("/health" + query)
    alarms(world, *stand)
    assert said(client.got()) == (503, b'{"health":"false","reason":"' + reason + b'"}\n')


def test_health_is_asked_to_overlook_an_alarm(world: World, client: Client) -> None:
    client.get("/health?exclude=NOSPACE&exclude=CORRUPT")
    alarms(world, NOSPACE, CORRUPT)
    world.applied(world.link.apply[-1], b"")
    assert said(client.got()) == (200, b'{"health":"true","reason":""}')


def test_health_does_not_wait_for_ever(world: World, client: Client) -> None:
    client.get("/health")
    call = world.link.apply[0]
    for _ in range(51):
        world.arrives(Tick())
    text = b'{"health":"false","reason":"RANGE ERROR:context deadline exceeded"}\n'
    assert said(client.got()) == (503, text)
    world.applied(call, b"")
    assert client.got() == b""


def test_health_without_a_leader(world: World, client: Client) -> None:
    world.gateway.leadership.known = False
    client.get("/health")
    alarms(world, "etcdserver: no leader")
    assert said(client.got()) == (503, b'{"health":"false","reason":"RAFT NO LEADER"}\n')
    client.get("/readyz")
    *_, corruption, read = world.link.apply
    world.applied(corruption, b"")
    world.applied(read, b"")
    lines = b"[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: no leader\n"
    assert said(client.got()) == (503, lines)


def test_probes(world: World, client: Client) -> None:
    client.get("/livez")
    world.applied(world.link.apply[-1], b"")
    assert said(client.got()) == (200, b"ok\n")
    client.get("/readyz?verbose&exclude=linearizable_read&exclude=data_corruption")
    world.applied(world.link.apply[-1], b"")
    assert said(client.got()) == (200, b"[+]serializable_read ok\nok\n")
    client.get("/readyz/linearizable_read")
    world.applied(world.link.apply[-1], b"")
    assert said(client.got()) == (200, b"ok\n")
    client.get("/readyz/data_corruption")
    alarms(world, CORRUPT)
    assert said(client.got()) == (503, b"[-]data_corruption failed: alarm activated: CORRUPT\n")
    client.get("/readyz/data_corruption")
    alarms(world, NOSPACE)
    assert said(client.got()) == (200, b"ok\n")
    client.get("/readyz/nothing")
    assert said(client.got()) == (404, b"404 page not found\n")


def test_no_supervisor_no_metrics(world: World, client: Client) -> None:
    client.get("/metrics")
    answer, deadline = b"", time.monotonic() + 20
    while not answer and time.monotonic() < deadline:  # a thread fetches them
        world.arrives(Tick())
        answer = client.got()
    status, body = said(answer)
    assert (status, body.startswith(b"the supervisor of this node does not answer: ")) == (503, True)


def late(world: World, client: Client) -> bytes:
    """How many ticks of 100 ms until it is answered, and what with."""
    for _ in range(10):
        world.arrives(Tick())
    return client.got()


def test_a_timeout_ends_a_call(world: World, client: Client) -> None:
    client.post("/v3/kv/range", b"{}", "Grpc-Timeout: 250m\r\n")
    call = world.link.apply[0]
    for _ in range(3):
        world.arrives(Tick())
    assert client.got() == b""
    world.arrives(Tick())
    status, body = said(client.got())
    assert (status, json.loads(body)["message"]) == (504, "context deadline exceeded")
    world.applied(call, b"")
    assert client.got() == b"", "nobody waits for it any more"
    client.post("/v3/kv/range", b"{}", "Grpc-Timeout: 1S\r\n")
    world.applied(world.link.apply[-1], b"")
    assert said(client.got())[0] == 200
    client.post("/v3/kv/range", b"[", "Grpc-Timeout: 1S\r\n")
    assert said(client.got())[0] == 400
    assert len(world.gateway.json.deadlines) == 0


def test_a_timeout_ends_a_stream(world: World, client: Client) -> None:
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}', "Grpc-Timeout: 200m\r\n")
    opened = world.link.watch[0].id
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, opened, b"\x18\x01")))
    assert b'"created":true' in client.got()
    end = late(world, client)
    assert b'{"error":{"grpc_code":4,"http_code":504,"message":"context deadline exceeded"' in end
    assert end.endswith(b"0\r\n\r\n")
    assert world.link.watch[-1] == wire.Record(Method.WATCH, Kind.STREAM_CLOSE, 0, opened, b"")
    client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}', "Grpc-Timeout: 200m\r\n")
    assert json.loads(said(late(world, client))[1])["error"]["grpc_code"] == 4
    assert len(world.gateway.json.deadlines) == 0


def test_a_timeout_of_somebody_who_has_gone_ends_nothing(world: World, client: Client) -> None:
    client.post("/v3/lock/lock", b'{"name":"bA=="}', "Grpc-Timeout: 1S\r\n")
    world.event(edge.CLOSED, client.id)
    assert len(world.gateway.json.deadlines) == 0


@pytest.mark.parametrize("text", ["x", "5", "S", "-", "1.5S", "1s", "1 S", "9" * 30 + "S", "+-1S", "-+1S"])
def test_a_timeout_that_makes_no_sense(client: Client, text: str) -> None:
    client.post("/v3/kv/range", b"{}", f"Grpc-Timeout: {text}\r\n")
    status, body = said(client.got())
    assert (status, json.loads(body)["message"]) == (400, f"invalid grpc-timeout: {text}")


def test_a_timeout_that_is_over_and_none(world: World, client: Client) -> None:
    client.post("/v3/kv/range", b"{}", "Grpc-Timeout: -1S\r\n")
    assert said(client.got())[0] == 504
    assert world.link.apply == []
    for none in ("0n", "99999999H"):
        client.post("/v3/kv/range", b"{}", f"Grpc-Timeout: {none}\r\n")
        world.applied(world.link.apply.pop(), b"")
        assert said(client.got())[0] == 200


def test_origins_that_may_ask() -> None:
    world = World(access=Access(origins=("http://a:1", "http://b")))
    client = Client(world)
    for origin, told in (("http://a:1", True), ("http://b", True), ("http://c", False), ("", False)):
        client.post("/v3/nothing", b"", f"Origin: {origin}\r\n" if origin else "")
        got = client.got()
        assert (f"Access-Control-Allow-Origin: {origin}\r\n".encode() in got) == told
        assert (b"Access-Control" in got) == told, "all of them or none"


def test_origins_over_http_2() -> None:
    """Where a browser asks that has agreed on TLS."""
    world = World(access=Access(origins=("http://a:1",)))
    for stream, origin in ((1, b"http://a:1"), (3, b"http://b")):
        head = b"GET /version\0authorization\0t.1\0origin\0" + origin
        event = (CONNECTION | stream, 0, 0, 0, len(head), edge.REQUEST, 0, 0)
        world.front.batches.append(Batch(b"", 0, [event], head))
        world.gateway.turn()
        (answer,) = world.front.said[CONNECTION | stream]
        assert (b"access-control-allow-origin: " + origin in answer.payload) == (stream == 1)


def test_names_by_which_it_may_be_asked() -> None:
    """On every path; not over TLS."""
    world = World(access=Access(hosts=("a", "::1")))
    client = Client(world)
    client.get("/version")
    assert said(client.got())[0] == 200
    for host, status in (("a:99", 200), ("[::1]:2379", 200), ("b", 421), ("b:2379", 421), ("A", 421), ("a.", 421)):
        for path in ("/version", "/v3/kv/put", "/nothing"):
            client.send(f"OPTIONS {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            got = client.got()
            assert said(got)[0] == status, (host, path)
    assert b'asked by the name "a."' in got
    client.send(b"GET /version HTTP/1.0\r\n\r\n")
    assert said(client.got())[0] == 421
    secure = Client(world, CONNECTION + (1 << 32))
    world.event(edge.OPENED, secure.id, method=1, status=edge.HTTP1)
    secure.send(b"GET /version HTTP/1.1\r\nHost: b\r\n\r\n")
    assert said(secure.got())[0] == 200


@pytest.mark.parametrize(
    ("headers", "flags", "token"),
    [
        ("", 0, b""),
        ("Authorization: Bearer t.1\r\n", edge.AUTHORIZATION, b"Bearer t.1"),
        ("Grpc-Metadata-Authorization: t.1\r\n", edge.AUTHORIZATION, b"t.1"),
        ("Grpc-Metadata-Token: t.1\r\nAuthorization: t.2\r\n", edge.TOKEN, b"t.1"),
        ("Authorization: t\r\nGrpc-Metadata-Hasleader: true\r\n", edge.AUTHORIZATION | edge.HAS_LEADER, b"t"),
    ],
)
def test_a_token_becomes_metadata(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch, headers: str, flags: int, token: bytes
) -> None:
    """As gRPC would have brought it: of calls, of streams, and over HTTP/2, where the edge has found it."""
    seen: list[tuple[int, bytes]] = []
    monkeypatch.setattr(world.gateway, "_call", lambda call, flags: seen.append((flags, call.token)))
    monkeypatch.setattr(world.gateway, "_begun", lambda id, method, flags, token: seen.append((flags, token)))
    client.post("/v3/kv/range", b"{}", headers)
    Client(world, OTHER).post("/v3/watch", b"{}", headers)
    assert seen == [(flags, token)] * 2
    more = [part.encode() for line in headers.split("\r\n")[:-1] for part in line.lower().split(": ", 1)]
    head = b"\0".join([b"POST /v3/kv/range", *more])
    batch = Batch(b"", 0, [(7 << 32 | 1, 0, 0, 2, len(head), edge.REQUEST, 0, 0)], b"{}" + head)
    world.front.batches.append(batch)
    world.gateway.turn()
    assert seen[2:] == [(flags, token.lower())]
