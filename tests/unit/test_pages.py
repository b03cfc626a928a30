"""The pages on the client port, and who may ask there, byte for byte, without sockets."""

from __future__ import annotations

import json
import time

import pytest

from cluster.access import Access
from cluster.internal import Tick
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from native import edge
from native.edge import Batch
from tests.unit.jsonclient import CONNECTION, OTHER, Client, said
from tests.unit.test_gatewayd import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


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
