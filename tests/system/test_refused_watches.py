"""What a real node says to watches and leases that cannot be, and what a real etcd says to the same.

api.md 7 and 8, RELIABILITY 1.2, 1.3 and 3. Each row is asked of both, of us by our own protocol and through the
gateway, of fresh stores with the same content, so ids and revisions must agree too. Where etcd 3.5.1 is known to be
wrong, or does what later releases do otherwise, the row says so and is asked of us alone. What only our protocol can
say (streams, topics) is in test_bad_input.py.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc
import pytest
import zmq
from google.protobuf import json_format

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import Code
from kvorum.wire import METHODS, Kind, Method
from tests import etcds
from tests.system.cluster import ELECTION_MS, HEARTBEAT_MS, Cluster

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
LAST = 7777
"""The id of a watch that ends each row: its event is newer than all others, and comes after them."""


def create(**fields: Any) -> pb.WatchRequest:
    return pb.WatchRequest(create_request=pb.WatchCreateRequest(**{"key": b"a", **fields}))


def cancel(id: int) -> pb.WatchRequest:
    return pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=id))


def created(id: int = 0) -> str:
    return f"{id} created"


def cancelled(id: int = 0) -> str:
    return f"{id} canceled"


def seen(id: int, *events: str) -> str:
    return f"{id} {' '.join(events)}"


def refused(reason: str) -> str:
    return f"-1 created canceled {reason!r}"


EMPTY = refused("mvcc: watcher range is empty")
TWICE = refused("mvcc: duplicate watch ID provided on the WatchStream")
BEFORE = refused("etcdserver: mvcc: required revision has been compacted")
PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
OURS = "ours"
"""etcd 3.5.1 does otherwise, or its JSON gateway cannot pass the question on."""


class Row(NamedTuple):
    asked: list[pb.WatchRequest]
    told: list[str]
    of: str = ""


# Revisions: 2 \0, 3 to 5 a, 6 b, 7 a deleted, 8 c; compacted at 4.
WATCHES: dict[str, Row] = {
    "an end before the key": Row([create(key=b"b", range_end=b"a")], [EMPTY]),
    "an end that is the key": Row([create(key=b"b", range_end=b"b")], [EMPTY]),
    "the end of the first key": Row([create(key=b"", range_end=b"\0\0", start_revision=4)], [created()]),
    "no key and no end": Row([create(key=b"", start_revision=4)], [created()]),
    "no key and any end": Row([create(key=b"", range_end=b"b", start_revision=7)], [created(), seen(0, "-a@7")]),
    "every key": Row(
        [create(key=b"", range_end=b"\0", start_revision=6)], [created(), seen(0, "b@6", "-a@7", "c@8")],
    ),
    "every key from one on": Row(
        [create(key=b"b", range_end=b"\0", start_revision=6)], [created(), seen(0, "b@6", "c@8")],
    ),
    "before time": Row([create(start_revision=-1)], [BEFORE], OURS),  # 3.5.24
    "long before time": Row([create(start_revision=INT64_MIN)], [BEFORE], OURS),
    "below the compaction": Row([create(start_revision=3)], [created(), "0 canceled compacted=4"]),
    "the first revision": Row([create(start_revision=1, watch_id=9)], [created(9), "9 canceled compacted=4"]),
    "at the compaction": Row([create(start_revision=4)], [created(), seen(0, "a@4", "a@5", "-a@7")]),
    "the future": Row([create(start_revision=1 << 40)], [created()]),
    "the end of time": Row([create(start_revision=INT64_MAX)], [created()]),
    "an id twice": Row([create(watch_id=5), create(watch_id=5)], [created(5), TWICE]),
    "an id that was given": Row([create(), create(), create(watch_id=1)], [created(0), created(1), TWICE]),
    "an id that would be given next": Row(
        [create(watch_id=1), create(), create()], [created(1), created(0), created(2)],
    ),
    "an id again after its watch was cancelled": Row(
        [create(watch_id=5), cancel(5), create(watch_id=5)], [created(5), cancelled(5), created(5)],
    ),
    "an id that was refused": Row(
        [create(watch_id=5, range_end=b"a"), create(watch_id=5)], [EMPTY, created(5)],
    ),
    "a negative id": Row([create(watch_id=-5, start_revision=5)], [created(-5), seen(-5, "a@5", "-a@7")]),
    "the least id": Row(
        [create(watch_id=INT64_MIN, start_revision=7)], [created(INT64_MIN), seen(INT64_MIN, "-a@7")],
    ),
    "the greatest id": Row(
        [create(watch_id=INT64_MAX, start_revision=7)], [created(INT64_MAX), seen(INT64_MAX, "-a@7")],
    ),
    "a negative id twice": Row([create(watch_id=-5), create(watch_id=-5)], [created(-5), TWICE]),
    "a cancellation of nothing": Row([cancel(0), cancel(5), cancel(-1), cancel(INT64_MIN), create()], [created()]),
    "a cancellation twice": Row([create(), cancel(0), cancel(0)], [created(), cancelled()]),
    "a cancellation of a negative id": Row([create(watch_id=-5), cancel(-5)], [created(-5), cancelled(-5)]),
    "unknown filters": Row([create(filters=[7, 2], start_revision=5)], [created(), seen(0, "a@5", "-a@7")]),
    "a negative filter": Row([create(filters=[-1], start_revision=5)], [created(), seen(0, "a@5", "-a@7")], OURS),
    "every filter": Row([create(filters=[0, 1], start_revision=5)], [created()]),
    "a filter twice": Row([create(filters=[1, 1], start_revision=5)], [created(), seen(0, "a@5")]),
    "no request": Row([pb.WatchRequest(), create()], [created()]),
    "progress of nothing": Row([PROGRESS], ["-1"]),
    "progress of the future": Row([create(start_revision=1 << 40), PROGRESS], [created()], OURS),  # etcd #20221
}  # fmt: skip


def said(response: pb.WatchResponse) -> str:
    """A response without its header, in words."""
    words = [str(response.watch_id)]
    words += [name for name in ("created", "canceled", "fragment") if getattr(response, name)]
    if response.cancel_reason:
        words.append(repr(response.cancel_reason))
    if response.compact_revision:
        words.append(f"compacted={response.compact_revision}")
    words += [f"{'-' * event.type}{event.kv.key.decode()}@{event.kv.mod_revision}" for event in response.events]
    return " ".join(words)


def told(responses: Iterator[pb.WatchResponse], count: int) -> list[str]:
    """The first `count` answers beside those of the last watch, and what else comes before its event."""
    found: list[str] = []
    ended = False
    while not ended or len(found) < count:
        response = next(responses)
        if response.watch_id == LAST:
            ended |= bool(response.events)
        else:
            found.append(said(response))
    return found


class Etcd:
    """By its JSON gateway."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: list[http.client.HTTPConnection] = []

    def ask(self, request: Any) -> Any:
        method = CALLS[type(request)]
        reply = self._post(PATHS[method], json_format.MessageToJson(request, preserving_proto_field_name=True))
        answer = json.loads(reply.readline())
        if reply.status != 200:
            return answer["code"], answer["message"]
        return bare(json_format.ParseDict(answer.get("result", answer), METHODS[method].response()))

    def watch(self, requests: list[pb.WatchRequest]) -> Iterator[pb.WatchResponse]:
        body = "".join(json_format.MessageToJson(one, preserving_proto_field_name=True) for one in requests)
        reply = self._post("watch", body)
        while True:
            answer = json.loads(reply.readline())
            yield json_format.ParseDict(answer["result"], pb.WatchResponse())

    def _post(self, path: str, body: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self._streams.append(connection)
        connection.request("POST", f"/v3/{path}", body)
        return connection.getresponse()

    def close(self) -> None:
        for connection in self._streams:
            connection.close()
        self._streams.clear()


class Ours:
    """By our own protocol."""

    def __init__(self, cluster: Cluster) -> None:
        self._context = zmq.Context()
        self._calls, self._watch = (self._connect(cluster.places[0].url(step)) for step in (2, 3))
        self._id = 0

    def _connect(self, url: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.connect(url)
        return socket

    def ask(self, request: Any) -> Any:
        method = CALLS[type(request)]
        self._id += 1
        self._calls.send(wire.encode(method, Kind.CALL, 0, self._id, request.SerializeToString()))
        assert self._calls.poll(30_000), "no answer"
        (record,) = wire.decode(self._calls.recv())
        assert record.id == self._id
        if record.status:
            return record.status, record.payload.decode()
        return bare(METHODS[method].response().FromString(record.payload))

    def watch(self, requests: list[pb.WatchRequest]) -> Iterator[pb.WatchResponse]:
        self._id += 1
        self._watch.send(wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, self._id, b""))
        for request in requests:
            payload = request.SerializeToString()
            self._watch.send(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, self._id, payload))
        while True:
            assert self._watch.poll(30_000), "no answer"
            for record in wire.decode(self._watch.recv()):
                assert (record.kind, record.id) == (Kind.STREAM_MESSAGE, self._id), record
                yield pb.WatchResponse.FromString(record.payload)

    def close(self) -> None:
        self._context.destroy(linger=0)


class Gate:
    """Through our gateway."""

    def __init__(self, cluster: Cluster) -> None:
        self._channel = grpc.insecure_channel(cluster.gateway(0))
        self._streams: list[Any] = []

    def ask(self, request: Any) -> Any:
        shape = METHODS[CALLS[type(request)]]
        try:
            if CALLS[type(request)] == Method.LEASE_KEEP_ALIVE:
                (payload,) = self._channel.stream_stream(shape.path)(iter([request.SerializeToString()]), timeout=30)
            else:
                payload = self._channel.unary_unary(shape.path)(request.SerializeToString(), timeout=30)
        except grpc.RpcError as error:
            return error.code().value[0], error.details()
        return bare(shape.response.FromString(payload))

    def watch(self, requests: list[pb.WatchRequest]) -> Iterator[pb.WatchResponse]:
        queue: SimpleQueue[bytes | None] = SimpleQueue()
        for request in requests:
            queue.put(request.SerializeToString())
        answers = self._channel.stream_stream(METHODS[Method.WATCH].path)(iter(queue.get, None), timeout=60)
        self._streams.append((answers, queue))
        return (pb.WatchResponse.FromString(answer) for answer in answers)

    def close(self) -> None:
        for answers, queue in self._streams:
            answers.cancel()
            queue.put(None)
        self._channel.close()


CALLS = {
    pb.PutRequest: Method.PUT,
    pb.RangeRequest: Method.RANGE,
    pb.DeleteRangeRequest: Method.DELETE_RANGE,
    pb.TxnRequest: Method.TXN,
    pb.CompactionRequest: Method.COMPACT,
    pb.LeaseGrantRequest: Method.LEASE_GRANT,
    pb.LeaseRevokeRequest: Method.LEASE_REVOKE,
    pb.LeaseKeepAliveRequest: Method.LEASE_KEEP_ALIVE,
    pb.LeaseTimeToLiveRequest: Method.LEASE_TIME_TO_LIVE,
    pb.LeaseLeasesRequest: Method.LEASE_LEASES,
}
PATHS = {
    Method.PUT: "kv/put",
    Method.RANGE: "kv/range",
    Method.DELETE_RANGE: "kv/deleterange",
    Method.TXN: "kv/txn",
    Method.COMPACT: "kv/compaction",
    Method.LEASE_GRANT: "lease/grant",
    Method.LEASE_REVOKE: "lease/revoke",
    Method.LEASE_KEEP_ALIVE: "lease/keepalive",
    Method.LEASE_TIME_TO_LIVE: "lease/timetolive",
    Method.LEASE_LEASES: "lease/leases",
}


def bare(response: Any) -> Any:
    response.header.CopyFrom(pb.ResponseHeader(revision=response.header.revision))
    return response


HISTORY: list[Any] = [
    pb.PutRequest(key=b"\0"),
    *[pb.PutRequest(key=b"a", value=b"%d" % number) for number in range(3)],
    pb.PutRequest(key=b"b"),
    pb.DeleteRangeRequest(key=b"a"),
    pb.PutRequest(key=b"c"),
    pb.CompactionRequest(revision=4),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("ours"), nodes=1, shared=True) as cluster:
        ours = Ours(cluster)
        for request in HISTORY:
            ours.ask(request)
        ours.close()
        yield cluster


@pytest.fixture(scope="module")
def etcd_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    timing = {"heartbeat-interval": str(HEARTBEAT_MS), "election-timeout": str(ELECTION_MS)}  # the least TTL
    with etcds.etcd(tmp_path_factory.mktemp("etcd"), settings=timing) as running:
        etcd = Etcd(running.port)
        try:
            for request in HISTORY:
                etcd.ask(request)
            yield running.port
        finally:
            etcd.close()


@pytest.fixture
def etcd(etcd_port: int) -> Iterator[Etcd]:
    etcd = Etcd(etcd_port)
    yield etcd
    end_leases(etcd)
    etcd.close()


WAYS: dict[str, type[Ours] | type[Gate]] = {"native": Ours, "gateway": Gate}


@pytest.fixture(params=WAYS)
def ours(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Ours | Gate]:
    ours = WAYS[request.param](cluster)
    yield ours
    end_leases(ours)
    ours.close()


def end_leases(side: Ours | Gate | Etcd) -> None:
    """So that a row finds none of its own, whichever way it was asked before."""
    for lease in side.ask(pb.LeaseLeasesRequest()).leases:
        side.ask(pb.LeaseRevokeRequest(ID=lease.ID))


@pytest.mark.parametrize("row", WATCHES)
def test_a_watch_that_cannot_be_is_told_so_in_etcds_words(ours: Ours | Gate, etcd: Etcd, row: str) -> None:
    asked, wanted, of = WATCHES[row]
    asked = [*asked, create(key=b"c", start_revision=8, watch_id=LAST)]
    assert told(ours.watch(asked), len(wanted)) == wanted
    if of != OURS:
        assert told(etcd.watch(asked), len(wanted)) == wanted


Grant, Revoke = pb.LeaseGrantRequest, pb.LeaseRevokeRequest
KeepAlive, TimeToLive = pb.LeaseKeepAliveRequest, pb.LeaseTimeToLiveRequest
NO_LEASE = (Code.NOT_FOUND, "etcdserver: requested lease not found")
IN_USE = (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
TOO_LARGE = (Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
TTL_MIN = 1
"""One and a half of the test's election timeouts, in whole seconds."""


def put(lease: int) -> pb.PutRequest:
    return pb.PutRequest(key=b"leased", lease=lease)


def in_txn(lease: int) -> pb.TxnRequest:
    return pb.TxnRequest(success=[pb.RequestOp(request_put=put(lease))])


def granted(id: int, ttl: int) -> pb.LeaseGrantResponse:
    return pb.LeaseGrantResponse(ID=id, TTL=ttl)


def lives(id: int, ttl: int, granted: int = 0) -> pb.LeaseTimeToLiveResponse:
    return pb.LeaseTimeToLiveResponse(ID=id, TTL=ttl, grantedTTL=granted)


# What is asked, in order, and what is answered to the last. Leases of other rows don't matter: the ids are the row's.
LEASES: dict[str, tuple[list[Any], Any]] = {
    "an id in use": ([Grant(ID=101, TTL=600), Grant(ID=101, TTL=600)], IN_USE),
    "an id in use with a TTL that is too large": ([Grant(ID=102, TTL=600), Grant(ID=102, TTL=1 << 40)], TOO_LARGE),
    "a negative id": ([Grant(ID=-103, TTL=600)], granted(-103, 600)),
    "a negative id in use": ([Grant(ID=-104, TTL=600), Grant(ID=-104, TTL=600)], IN_USE),
    "the least id": ([Grant(ID=INT64_MIN, TTL=600)], granted(INT64_MIN, 600)),
    "the greatest id": ([Grant(ID=INT64_MAX, TTL=600)], granted(INT64_MAX, 600)),
    "no TTL": ([Grant(ID=105)], granted(105, TTL_MIN)),
    "a negative TTL": ([Grant(ID=106, TTL=-1)], granted(106, TTL_MIN)),
    "the least TTL": ([Grant(ID=107, TTL=INT64_MIN)], granted(107, TTL_MIN)),
    "the longest TTL": ([Grant(ID=108, TTL=9_000_000_000)], granted(108, 9_000_000_000)),
    "a TTL that is too large": ([Grant(ID=109, TTL=9_000_000_001)], TOO_LARGE),
    "the greatest TTL": ([Grant(ID=110, TTL=INT64_MAX)], TOO_LARGE),
    "a lease that was not granted": ([Grant(ID=111, TTL=INT64_MAX), TimeToLive(ID=111)], lives(111, -1)),
    "revoke: unknown": ([Revoke(ID=201)], NO_LEASE),
    "revoke: 0": ([Revoke()], NO_LEASE),
    "revoke: negative": ([Revoke(ID=-202)], NO_LEASE),
    "revoke: twice": ([Grant(ID=203, TTL=600), Revoke(ID=203), Revoke(ID=203)], NO_LEASE),
    "revoke: a negative one": ([Grant(ID=-204, TTL=600), Revoke(ID=-204)], pb.LeaseRevokeResponse()),
    "an id again after it was revoked": (
        [Grant(ID=205, TTL=600), Revoke(ID=205), Grant(ID=205, TTL=700)], granted(205, 700),
    ),
    "keep-alive: unknown": ([KeepAlive(ID=301)], pb.LeaseKeepAliveResponse(ID=301)),
    "keep-alive: 0": ([KeepAlive()], pb.LeaseKeepAliveResponse()),
    "keep-alive: negative": ([KeepAlive(ID=-302)], pb.LeaseKeepAliveResponse(ID=-302)),
    "keep-alive: revoked": (
        [Grant(ID=303, TTL=600), Revoke(ID=303), KeepAlive(ID=303)], pb.LeaseKeepAliveResponse(ID=303),
    ),
    "keep-alive: a negative one": (
        [Grant(ID=-304, TTL=600), KeepAlive(ID=-304)], pb.LeaseKeepAliveResponse(ID=-304, TTL=600),
    ),
    "time to live: unknown": ([TimeToLive(ID=401)], lives(401, -1)),
    "time to live: unknown, with keys": ([TimeToLive(ID=401, keys=True)], lives(401, -1)),
    "time to live: 0": ([TimeToLive()], lives(0, -1)),
    "time to live: negative": ([TimeToLive(ID=-402)], lives(-402, -1)),
    "put: unknown": ([put(501)], NO_LEASE),
    "put: negative": ([put(-502)], NO_LEASE),
    "put: the least": ([Revoke(ID=INT64_MIN), put(INT64_MIN)], NO_LEASE),
    "put: revoked": ([Grant(ID=503, TTL=600), Revoke(ID=503), put(503)], NO_LEASE),
    "put: unknown, in a txn": ([in_txn(504)], NO_LEASE),
    "put: unknown, in the branch not taken": (
        [pb.TxnRequest(failure=in_txn(505).success)], pb.TxnResponse(succeeded=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", LEASES)
def test_a_lease_that_cannot_be_is_told_so_in_etcds_words(ours: Ours | Gate, etcd: Etcd, row: str) -> None:
    asked, wanted = LEASES[row]
    for side in (ours, etcd):
        *before, last = asked
        for request in before:
            side.ask(request)
        revision = side.ask(pb.RangeRequest(key=b"a")).header.revision
        answer = side.ask(last)
        if not isinstance(answer, tuple):
            answer.ClearField("header")
        assert answer == wanted
        assert side.ask(pb.RangeRequest(key=b"a")).header.revision == revision


def test_a_grant_of_no_id_draws_a_positive_one(ours: Ours | Gate, etcd: Etcd) -> None:
    for side in (ours, etcd):
        first, second = (side.ask(Grant(TTL=600)) for _ in range(2))
        assert first.ID > 0
        assert second.ID > 0
        assert first.ID != second.ID
        assert first.TTL == 600


def test_keys_of_leases_with_strange_ids_die_with_them(ours: Ours | Gate, etcd: Etcd) -> None:
    """etcd 3.5.1 loses negative ids at a restart; what they do while they live is the same."""
    for side in (ours, etcd):
        for id in (-601, INT64_MAX - 1, INT64_MIN + 1):
            assert id == side.ask(Grant(ID=id, TTL=600)).ID
            side.ask(pb.PutRequest(key=b"strange", lease=id))
            (found,) = side.ask(pb.RangeRequest(key=b"strange")).kvs
            assert found.lease == id
            assert side.ask(TimeToLive(ID=id, keys=True)).keys == [b"strange"]
            assert id in [lease.ID for lease in side.ask(pb.LeaseLeasesRequest()).leases]
            side.ask(Revoke(ID=id))
            assert not side.ask(pb.RangeRequest(key=b"strange")).kvs
