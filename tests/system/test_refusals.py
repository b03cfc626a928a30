"""What a real node refuses, with which code and which words: the rows of RELIABILITY 3, by either way in.

One table, two drivers: the native protocol and the gateway, over gRPC. A refusal with a definite code has no effect, so
each is followed by a look at the revision. Watches and leases are in test_refused_watches.py; rows about members and
auth come with those; what only one of the protocols can say is below the table and in test_bad_input.py. That etcd says
the same is in realclients/test_answers.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import zmq

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import Code
from kvorum.wire import Kind, Method
from tests.system.cluster import Cluster, eventually

NO_KEY = (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
NO_SUCH_KEY = (Code.INVALID_ARGUMENT, "etcdserver: key not found")
TOO_MANY_OPS = (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE = (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
BAD_SORT = (Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")
TOO_LARGE = (Code.INVALID_ARGUMENT, "etcdserver: request is too large")
FUTURE = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
COMPACTED = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
NO_LEASE = (Code.NOT_FOUND, "etcdserver: requested lease not found")
NO_ROOM = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
BUSY = (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
BAD_TRANSFEREE = (Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
NOT_LEADER = (Code.FAILED_PRECONDITION, "etcdserver: not leader")
CORRUPT = (Code.DATA_LOSS, "etcdserver: corrupt cluster")
JUNK = (Code.INTERNAL, "grpc: error unmarshalling request")
DONE = (Code.OK, "")

Put, Range, Delete, Txn, Compare = pb.PutRequest, pb.RangeRequest, pb.DeleteRangeRequest, pb.TxnRequest, pb.Compare


def op(request: Any) -> pb.RequestOp:
    name = {Put: "request_put", Range: "request_range", Delete: "request_delete_range", Txn: "request_txn"}
    return pb.RequestOp(**{name[type(request)]: request})


def txn(*success: Any, otherwise: tuple[Any, ...] = (), compare: tuple[pb.Compare, ...] = ()) -> pb.TxnRequest:
    return Txn(compare=compare, success=map(op, success), failure=map(op, otherwise))


def puts(count: int, of: bytes = b"k") -> list[pb.PutRequest]:
    return [Put(key=b"%s%d" % (of, number)) for number in range(count)]


IS = Compare(key=b"seen", target=Compare.VERSION, version=1)
ISNT = Compare(key=b"seen", target=Compare.VERSION, version=99)
LARGE, HALF = bytes(1572864), bytes(800_000)
LARGEST = (1536 + 512) << 10

ROWS: dict[str, tuple[Any, tuple[int, str]]] = {
    # empty keys
    "range of no key": (Range(), NO_KEY),
    "range to a key from none": (Range(range_end=b"z"), NO_KEY),
    "put of no key": (Put(value=b"v"), NO_KEY),
    "delete of no key": (Delete(), NO_KEY),
    "compare of no key": (txn(compare=(Compare(target=Compare.VERSION),)), NO_KEY),
    "put of no key in a txn": (txn(Put()), NO_KEY),
    "range of no key in a txn": (txn(Range()), NO_KEY),
    "delete of no key in a txn": (txn(Delete()), NO_KEY),
    "put of no key in the branch not taken": (txn(otherwise=(Put(),), compare=(IS,)), NO_KEY),
    "range of no key in the branch not taken": (txn(Range(), compare=(ISNT,)), NO_KEY),
    "put of no key, nested": (txn(txn(Put())), NO_KEY),
    "compare of no key, nested in the branch not taken": (
        txn(otherwise=(txn(compare=(Compare(),)),), compare=(IS,)), NO_KEY,
    ),
    # what isn't there
    "ignore_value of a missing key": (Put(key=b"missing", ignore_value=True), NO_SUCH_KEY),
    "ignore_lease of a missing key": (Put(key=b"missing", value=b"v", ignore_lease=True), NO_SUCH_KEY),
    "ignore_value of a missing key in a txn": (txn(Put(key=b"missing", ignore_value=True)), NO_SUCH_KEY),
    "an operation without a request": (Txn(success=[pb.RequestOp()]), NO_SUCH_KEY),
    "an operation without a request, not taken": (Txn(compare=[IS], failure=[pb.RequestOp()]), NO_SUCH_KEY),
    "an unknown lease": (Put(key=b"a", lease=12345), NO_LEASE),
    "an unknown lease in a txn": (txn(Put(key=b"a", lease=12345)), NO_LEASE),
    # what contradicts itself
    "ignore_value with a value": (
        Put(key=b"a", value=b"v", ignore_value=True), (Code.INVALID_ARGUMENT, "etcdserver: value is provided"),
    ),
    "ignore_lease with a lease": (
        Put(key=b"a", lease=1, ignore_lease=True), (Code.INVALID_ARGUMENT, "etcdserver: lease is provided"),
    ),
    "a key put twice": (txn(Put(key=b"a"), Put(key=b"a")), DUPLICATE),
    "a key put twice, not taken": (txn(otherwise=(Put(key=b"a"), Put(key=b"a")), compare=(IS,)), DUPLICATE),
    "a key put and deleted": (txn(Put(key=b"a"), Delete(key=b"a")), DUPLICATE),
    "a key deleted and put": (txn(Delete(key=b"a"), Put(key=b"a")), DUPLICATE),
    "a key put and deleted by a range": (txn(Put(key=b"a5"), Delete(key=b"a", range_end=b"b")), DUPLICATE),
    "a key put here and nested": (txn(Put(key=b"a"), txn(Put(key=b"a"))), DUPLICATE),
    "a key put nested twice": (txn(txn(Put(key=b"a")), txn(Put(key=b"a"))), DUPLICATE),
    "a key put nested and deleted by a range": (txn(txn(Put(key=b"a5")), Delete(key=b"a", range_end=b"b")), DUPLICATE),
    "a key put in both branches of a nested one": (txn(txn(Put(key=b"a"), otherwise=(Put(key=b"a"),))), DONE),
    "a key put in both branches": (txn(Put(key=b"a"), otherwise=(Put(key=b"a"),)), DONE),
    # sizes
    "128 operations": (txn(*puts(128)), DONE),
    "129 operations": (txn(*puts(129)), TOO_MANY_OPS),
    "129 operations in the branch not taken": (txn(otherwise=tuple(puts(129)), compare=(IS,)), TOO_MANY_OPS),
    "129 comparisons": (Txn(compare=[IS] * 129), TOO_MANY_OPS),
    "128 operations nested in one of 1": (txn(txn(*puts(128))), TOO_MANY_OPS),
    "127 operations nested in one of 1": (txn(txn(*puts(127))), DONE),
    "a put over the limit": (Put(key=b"a", value=LARGE), TOO_LARGE),
    "a txn over the limit": (txn(Put(key=b"a", value=HALF), Put(key=b"b", value=HALF)), TOO_LARGE),
    "a put just within": (Put(key=b"a", value=LARGE[:-64]), DONE),  # etcd counts what it wraps around it
    # sorting
    "an unknown order": (Range(key=b"a", sort_order=9), BAD_SORT),
    "an unknown target": (Range(key=b"a", range_end=b"b", sort_target=9), BAD_SORT),
    "an unknown target in a txn": (txn(Range(key=b"a", range_end=b"b", sort_target=9)), BAD_SORT),
    # time
    "a range in the future": (Range(key=b"a", revision=1 << 40), FUTURE),
    "a serializable range in the future": (Range(key=b"a", revision=1 << 40, serializable=True), FUTURE),
    "a range of what was compacted": (Range(key=b"a", revision=2), COMPACTED),
    "a serializable range of what was compacted": (Range(key=b"a", revision=2, serializable=True), COMPACTED),
    "a txn that reads what was compacted": (txn(Range(key=b"a", revision=2)), COMPACTED),
    "a txn that writes and reads what was compacted": (txn(Put(key=b"a"), Range(key=b"a", revision=2)), COMPACTED),
    "a txn that writes and reads the future": (txn(Put(key=b"a"), Range(key=b"a", revision=1 << 40)), FUTURE),
    "a compaction of what is compacted": (pb.CompactionRequest(revision=3), COMPACTED),
    "a compaction of the future": (pb.CompactionRequest(revision=1 << 40), FUTURE),
    "a hash of what was compacted": (pb.HashKVRequest(revision=2), COMPACTED),
    "a hash of the future": (pb.HashKVRequest(revision=1 << 40), FUTURE),
    # leadership
    "leadership for nobody": (pb.MoveLeaderRequest(), BAD_TRANSFEREE),
    "leadership for a stranger": (pb.MoveLeaderRequest(targetID=12345), BAD_TRANSFEREE),
}  # fmt: skip
METHODS = {
    Put: Method.PUT, Range: Method.RANGE, Delete: Method.DELETE_RANGE, Txn: Method.TXN,
    pb.CompactionRequest: Method.COMPACT, pb.MoveLeaderRequest: Method.MOVE_LEADER, pb.AlarmRequest: Method.ALARM,
    pb.LeaseGrantRequest: Method.LEASE_GRANT, pb.LeaseRevokeRequest: Method.LEASE_REVOKE,
    pb.HashKVRequest: Method.HASH_KV, pb.StatusRequest: Method.STATUS,
}  # fmt: skip


class Way:
    """A connection that tells code and payload as they come."""

    def ask(self, method: int, payload: bytes, seconds: float = 15.0) -> tuple[int, bytes]:
        raise NotImplementedError

    def told(self, request: Any, seconds: float = 15.0) -> tuple[int, str]:
        """Code and text; no text if it was done."""
        status, payload = self.ask(METHODS[type(request)], request.SerializeToString(), seconds)
        return status, payload.decode() if status else ""

    def answer(self, request: Any) -> Any:
        method = METHODS[type(request)]
        status, payload = self.ask(method, request.SerializeToString())
        assert status == 0, payload
        return wire.METHODS[method].response.FromString(payload)

    def revision(self) -> int:
        return int(self.answer(Range(key=b"revision")).header.revision)

    def close(self) -> None:
        raise NotImplementedError


class Gate(Way):
    """Through the gateway."""

    def __init__(self, cluster: Cluster, node: int = 0) -> None:
        self._channel = grpc.insecure_channel(cluster.gateway(node), [("grpc.max_receive_message_length", -1)])

    def ask(self, method: int, payload: bytes, seconds: float = 15.0) -> tuple[int, bytes]:
        try:
            return 0, self._channel.unary_unary(wire.METHODS[Method(method)].path)(payload, timeout=seconds)
        except grpc.RpcError as error:
            return error.code().value[0], error.details().encode()

    def close(self) -> None:
        self._channel.close()


class Wire(Way):
    """By the native protocol."""

    def __init__(self, cluster: Cluster, node: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{cluster.endpoint(node)}")
        self._id = 0
        self._come: list[wire.Record] = []

    def send(self, method: int, payload: bytes) -> None:
        self._id += 1
        self._socket.send(wire.encode(method, Kind.CALL, 0, self._id, payload))

    def receive(self, seconds: float = 15.0) -> wire.Record:
        if not self._come:
            assert self._socket.poll(int(seconds * 1000)), "no answer"
            self._come = wire.decode(self._socket.recv())
        return self._come.pop(0)

    def ask(self, method: int, payload: bytes, seconds: float = 15.0) -> tuple[int, bytes]:
        self.send(method, payload)
        record = self.receive(seconds)
        assert (record.id, record.method, record.kind) == (self._id, method, Kind.REPLY)
        return record.status, record.payload

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("refusals"), nodes=1, shared=True) as cluster:
        at = Wire(cluster)
        for request in (Put(key=b"seen"), *puts(4, b"old"), pb.CompactionRequest(revision=4)):
            assert at.told(request) == DONE
        at.close()
        yield cluster


WAYS = {"native": Wire, "gateway": Gate}


@pytest.fixture(params=WAYS)
def at(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Way]:
    at = WAYS[request.param](cluster)
    yield at
    at.close()


@pytest.mark.parametrize("row", ROWS)
def test_a_request_that_cannot_be_is_refused_in_etcds_words_and_changes_nothing(at: Way, row: str) -> None:
    """RELIABILITY 3; K10."""
    request, wanted = ROWS[row]
    before = at.revision()
    assert at.told(request) == wanted
    if wanted != DONE:
        assert at.revision() == before, "a refused request has no effect"


@pytest.mark.parametrize("method", [Method.RANGE, Method.PUT, Method.DELETE_RANGE, Method.TXN, Method.COMPACT])
def test_bytes_that_are_no_message_are_an_internal_error(at: Way, method: Method) -> None:
    """RELIABILITY 3: INTERNAL, any text; no hang, no crash."""
    for junk in (b"\xff", b"\x0a\x05a", b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"):
        status, text = at.ask(method, junk)
        assert (status, text.decode()) == JUNK


def test_an_unknown_method_is_unimplemented(cluster: Cluster) -> None:
    at = Wire(cluster)
    for method in (0, 24, 63, 65, 255):
        assert at.ask(method, b"") == (Code.UNIMPLEMENTED, b"unknown method %d" % method)
    at.close()
    with grpc.insecure_channel(cluster.gateway(0)) as channel:
        for path, text in (
            ("/etcdserverpb.KV/Nothing", "unknown method Nothing for service etcdserverpb.KV"),
            ("/nobody.Nothing/At", "unknown service nobody.Nothing"),
            ("/kvorum.Node/Hello", "unknown service kvorum.Node"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(b"", timeout=15)
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, text)


def test_a_message_over_the_limit_of_the_transport_is_refused_by_it(cluster: Cluster) -> None:
    """1.5 MiB and 512 KiB; grpc-go's words. The native limit is that of a frame (test_bad_input.py)."""
    at = Gate(cluster)
    code, text = at.told(Put(key=b"a", value=bytes(LARGEST)))
    size = len(Put(key=b"a", value=bytes(LARGEST)).SerializeToString())
    assert (code, text) == (
        Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {LARGEST})",
    )  # fmt: skip
    assert at.told(Put(key=b"a", value=bytes(LARGEST - 100))) == TOO_LARGE
    at.close()


@pytest.mark.parametrize("what", ["below the compaction", "before time", "an empty range", "an id twice"])
def test_a_watch_that_cannot_be_is_created_and_cancelled_with_the_reason(cluster: Cluster, what: str) -> None:
    """RELIABILITY 3 and W9: created comes first; nothing comes after the cancellation."""
    creates = {
        "below the compaction": [pb.WatchCreateRequest(key=b"a", start_revision=2)],
        "before time": [pb.WatchCreateRequest(key=b"a", start_revision=-1)],
        "an empty range": [pb.WatchCreateRequest(key=b"b", range_end=b"a")],
        "an id twice": [pb.WatchCreateRequest(key=b"a", watch_id=5)] * 2,
    }[what]
    with zmq.Context() as context:
        stream = context.socket(zmq.DEALER)
        stream.setsockopt(zmq.LINGER, 0)
        stream.connect(cluster.places[0].url(3))
        stream.send(wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 1, b""))
        for create in creates:
            request = pb.WatchRequest(create_request=create).SerializeToString()
            stream.send(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, request))
        said: list[pb.WatchResponse] = []
        while not said or not said[-1].canceled:
            assert stream.poll(5000)
            said += [pb.WatchResponse.FromString(record.payload) for record in wire.decode(stream.recv())]
        stream.close()
    last = said[-1]
    if what == "below the compaction":
        assert [each.created for each in said] == [True, False]
        assert (last.watch_id, last.compact_revision) == (said[0].watch_id, 4)
    else:
        assert (last.created, last.watch_id) == (True, -1)
        reason = {
            "before time": "required revision has been compacted",
            "an empty range": "mvcc: watcher range is empty",
            "an id twice": "mvcc: duplicate watch ID provided on the WatchStream",
        }[what]
        assert reason in last.cancel_reason


Alarm = pb.AlarmRequest
LIST = Alarm()


def listed(at: Way) -> list[tuple[int, int]]:
    return [(alarm.memberID, alarm.alarm) for alarm in at.answer(LIST).alarms]


def fill(at: Way) -> None:
    """Until it is refused."""
    for number in range(200):
        told = at.told(Put(key=b"fill%d" % number, value=random.Random(number).randbytes(100_000)))
        if told != DONE:
            assert told == NO_ROOM
            return
    raise AssertionError("the quota was never reached")


def test_past_the_quota_an_alarm_stands_until_somebody_takes_it_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """RELIABILITY 3, F16, api.md 10.2: put, txn with put and lease grant are refused on every member, after restarts,
    too; reads, deletions, compaction and revocation are the way out."""
    settings = {"quota-backend-bytes": str(4 << 20), "heartbeat-interval": "10"}  # flushed every 3 s
    with Cluster(tmp_path_factory.mktemp("quota"), nodes=3, settings=settings) as cluster:
        at, elsewhere = Gate(cluster, 0), Wire(cluster, 1)
        lease = at.answer(pb.LeaseGrantRequest(TTL=600)).ID
        assert at.told(Put(key=b"leased", lease=lease)) == DONE
        fill(at)
        member = at.answer(LIST).header.member_id
        assert (member, pb.NOSPACE) in listed(elsewhere), "who is told so finds the alarm"
        text = f"memberID:{member} alarm:NOSPACE "
        for node, way in ((0, at), (1, elsewhere)):
            assert text in way.answer(pb.StatusRequest()).errors
            assert way.told(Put(key=b"a")) == NO_ROOM
            assert way.told(txn(Put(key=b"a"))) == NO_ROOM
            assert way.told(txn(otherwise=(Put(key=b"a"),), compare=(IS,))) == NO_ROOM
            assert way.told(txn(txn(Put(key=b"a")))) == NO_ROOM
            assert way.told(pb.LeaseGrantRequest(TTL=60)) == NO_ROOM
            assert way.told(Range(key=b"fill0")) == DONE
            assert way.told(txn(Range(key=b"fill0"))) == DONE
            assert way.told(txn(Delete(key=b"no such key"), compare=(IS,))) == DONE
            assert cluster.http(node, "/health") == (503, '{"health":"false","reason":"ALARM NOSPACE"}\n')
            assert cluster.http(node, "/health?exclude=NOSPACE")[0] == 200
            assert cluster.http(node, "/readyz")[0] == 200
            assert cluster.metric(node, f'etcd_debugging_server_alarms{{alarm_type="NOSPACE",server_id="{member:x}"}}')
        assert at.told(pb.LeaseRevokeRequest(ID=lease)) == DONE
        assert at.told(Delete(key=b"fill", range_end=b"g")) == DONE
        stands = listed(at)  # others may have noticed the same
        assert at.told(pb.CompactionRequest(revision=at.revision(), physical=True), 60.0) == DONE
        at.close()
        for node in range(3):
            cluster.destroy(node)
        for node in range(3):
            cluster.start(node, wait=False)
        at.close()
        at = Gate(cluster, 0)
        eventually(lambda: at.told(Range(key=b"fill0")) == DONE, 60.0, "ready again")
        eventually(lambda: at.answer(pb.StatusRequest()).dbSize < 3 << 20, 60.0, "room again")
        assert listed(at) == stands
        assert at.told(Put(key=b"a")) == NO_ROOM, "also when there is room"
        for of, kind in stands:
            gone = at.answer(Alarm(action=Alarm.DEACTIVATE, memberID=of, alarm=kind)).alarms  # type: ignore[arg-type]
            assert [(one.memberID, one.alarm) for one in gone] == [(of, kind)]
        elsewhere.close()
        elsewhere = Wire(cluster, 1)
        for way in (at, elsewhere):
            assert listed(way) == []
            assert way.told(Put(key=b"a", value=bytes(1000))) == DONE
        at.close()
        elsewhere.close()


def test_a_cluster_said_to_be_corrupt_changes_nothing_until_that_is_taken_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """RELIABILITY 3, api.md 10.2."""
    with Cluster(tmp_path_factory.mktemp("corrupt"), nodes=1) as cluster:
        at = Gate(cluster)
        lease = at.answer(pb.LeaseGrantRequest(TTL=1)).ID
        assert at.told(Put(key=b"leased", lease=lease)) == DONE
        assert at.told(Alarm(action=Alarm.ACTIVATE, memberID=7, alarm=pb.CORRUPT)) == DONE
        before = at.revision()
        writes = (Put(key=b"a"), Delete(key=b"a"), txn(Put(key=b"a")), txn(Delete(key=b"a")))
        others = (pb.CompactionRequest(revision=2), pb.LeaseGrantRequest(TTL=60), pb.LeaseRevokeRequest(ID=lease))
        native = Wire(cluster)
        for way in (at, native):
            for request in (*writes, *others):
                assert way.told(request) == CORRUPT
            assert way.told(Range(key=b"leased")) == DONE
            assert way.told(txn(Range(key=b"leased"))) == DONE
            assert way.told(pb.HashKVRequest()) == DONE
        native.close()
        assert cluster.http(0, "/health") == (503, '{"health":"false","reason":"ALARM CORRUPT"}\n')
        assert cluster.http(0, "/readyz/data_corruption") == (
            503,
            "[-]data_corruption failed: alarm activated: CORRUPT\n",
        )
        assert at.revision() == before, "nor has the lease ended"
        assert at.told(Alarm(action=Alarm.DEACTIVATE, memberID=7, alarm=pb.CORRUPT)) == DONE
        assert at.told(Put(key=b"a")) == DONE
        eventually(lambda: not at.answer(Range(key=b"leased")).kvs, 40.0, "the end of the lease")
        at.close()


@pytest.mark.parametrize("way", WAYS)
def test_only_the_leader_gives_leadership_away(tmp_path_factory: pytest.TempPathFactory, way: str) -> None:
    with Cluster(tmp_path_factory.mktemp("leader"), nodes=2) as cluster:
        leader = cluster.leader()
        ends = [WAYS[way](cluster, node) for node in (leader, 1 - leader)]
        ids = [end.answer(Range(key=b"a")).header.member_id for end in ends]
        assert ends[1].told(pb.MoveLeaderRequest(targetID=ids[1])) == NOT_LEADER
        assert ends[1].told(pb.MoveLeaderRequest(targetID=12345)) == NOT_LEADER
        assert ends[0].told(pb.MoveLeaderRequest(targetID=12345)) == BAD_TRANSFEREE
        assert ends[0].told(pb.MoveLeaderRequest(targetID=ids[0])) == DONE
        assert ends[0].told(pb.MoveLeaderRequest(targetID=ids[1])) == DONE
        for end in ends:
            end.close()


def test_without_a_quorum_nothing_is_acknowledged_and_nobody_waits_for_ever(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """RELIABILITY 3 and D6: "too many requests" when too much is under way, UNAVAILABLE in the end; serializable reads
    go on."""
    with Cluster(tmp_path_factory.mktemp("alone"), nodes=3) as cluster:
        leader = cluster.leader()
        at = Wire(cluster, leader)
        assert at.told(Put(key=b"a", value=b"before")) == DONE
        for node in range(3):
            if node != leader:
                cluster.pause(node, "raft")
        large = Put(key=b"a", value=bytes(1 << 20)).SerializeToString()
        for _ in range(150):  # 64 MiB may be under way
            at.send(Method.PUT, large)
        told = set()
        for _ in range(150):
            record = at.receive(30.0)
            told.add((record.status, record.payload.decode() if record.status else ""))
        assert BUSY in told
        assert DONE not in told
        assert {code for code, _ in told} == {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}
        assert at.told(Range(key=b"a"))[0] == Code.UNAVAILABLE
        status, payload = at.ask(Method.RANGE, Range(key=b"a", serializable=True).SerializeToString())
        assert (status, pb.RangeResponse.FromString(payload).kvs[0].value) == (0, b"before")
        cluster.resume()
        eventually(lambda: at.told(Put(key=b"a", value=b"after")) == DONE, 20.0, "service")
        at.close()
