"""The JSON gateway, byte for byte, between an edge and an apply that are only recorded. No sockets."""

from __future__ import annotations

import json
import re

import pytest

from cluster import http1
from cluster.internal import Tick
from cluster.jsonway import PATHS, status_of
from cluster.links import Lost, Streamed
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from native import edge
from tests.unit.jsonclient import CONNECTION, CORS, HEADER, HEADER_TEXT, OTHER, Client, answer, said
from tests.unit.test_gatewayd import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


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
