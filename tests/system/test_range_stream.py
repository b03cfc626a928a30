"""etcd 3.7's RangeStream at a real node: through the gateway and natively, and what a slow reader costs."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import grpc
import pytest
import zmq

from kvorum import aio, errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code
from kvorum.sync import Client
from kvorum.wire import Kind, Method
from tests.client.test_ctl import ctl
from tests.system.cluster import Cluster, eventually
from tests.system.undisturbed import rss_bytes

KEYS, VALUE_BYTES = 2000, 20_000
"""40 MB: more than anybody in between may hold."""
PATH = "/etcdserverpb.KV/RangeStream"
ALL = pb.RangeRequest(key=b"big/", range_end=b"big0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("streams"), nodes=1, shared=True) as cluster:
        value = bytes(VALUE_BYTES)
        for begin in range(0, KEYS, 50):
            puts = [pb.PutRequest(key=b"big/%05d" % (begin + i), value=value) for i in range(50)]
            ops = [pb.RequestOp(request_put=put) for put in puts]
            cluster.request(0, Method.TXN, pb.TxnRequest(success=ops))
        yield cluster


def stream(channel: grpc.Channel, request: pb.RangeRequest) -> Iterator[pb.RangeResponse]:
    call = channel.unary_stream(
        PATH,
        request_serializer=pb.RangeRequest.SerializeToString,
        response_deserializer=pb.RangeStreamResponse.FromString,
    )
    for answer in call(request, timeout=60):
        yield answer.range_response


def whole(parts: list[pb.RangeResponse]) -> pb.RangeResponse:
    found = pb.RangeResponse()
    for part in parts:
        found.MergeFrom(part)
    return found


class Native:
    """A connection by the native protocol, on which little waits."""

    def __init__(self, cluster: Cluster) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 1)
        self.socket.connect(f"tcp://{cluster.endpoint(0)}")

    def say(self, kind: Kind, payload: bytes = b"", id: int = 1) -> None:
        self.socket.send(wire.encode(Method.RANGE_STREAM, kind, 0, id, payload))

    def records(self, seconds: float = 20.0) -> Iterator[wire.Record]:
        while self.socket.poll(int(seconds * 1000)):
            yield from wire.decode(self.socket.recv())

    def parts(self) -> list[pb.RangeResponse]:
        found = []
        for record in self.records():
            if record.kind == Kind.STREAM_CLOSE:
                assert record.status == 0, record
                return found
            assert (record.kind, record.status) == (Kind.STREAM_MESSAGE, 0)
            found.append(pb.RangeStreamResponse.FromString(record.payload).range_response)
        raise AssertionError("no end")

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def native(cluster: Cluster) -> Iterator[Native]:
    native = Native(cluster)
    yield native
    native.close()


@pytest.fixture
def channel(cluster: Cluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.gateway(0), [("grpc.max_receive_message_length", -1)]) as channel:
        yield channel


@pytest.mark.parametrize(
    "request_",
    [ALL, pb.RangeRequest(key=b"big/", range_end=b"big0", limit=123), pb.RangeRequest(key=b"none")],
    ids=["everything", "a limit", "nothing"],
)
def test_the_parts_are_one_range_on_either_way(
    cluster: Cluster, channel: grpc.Channel, native: Native, request_: pb.RangeRequest
) -> None:
    by_gate = list(stream(channel, request_))
    native.say(Kind.STREAM_OPEN, request_.SerializeToString())
    by_wire = native.parts()
    asked = pb.RangeRequest()
    asked.CopyFrom(request_)
    asked.keys_only, asked.limit = True, 0
    count = cluster.request(0, Method.RANGE, asked).count  # type: ignore[attr-defined]
    for parts in (by_gate, by_wire):
        answer = whole(parts)
        assert answer.count == count
        assert len(answer.kvs) == min(count, request_.limit or count)
        assert [kv.key for kv in answer.kvs] == [b"big/%05d" % i for i in range(len(answer.kvs))]
        assert answer.more == (0 < request_.limit < count)
        header = parts[-1].header
        assert header.cluster_id
        assert header.member_id
        assert header.raft_term
        assert header.revision
        assert all(part.ByteSize() < 2 << 20 for part in parts)
        assert not any(part.HasField("header") for part in parts[:-1])
    assert len(by_gate) == len(by_wire)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (pb.RangeRequest(), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (
            pb.RangeRequest(key=b"a", sort_order=pb.RangeRequest.DESCEND),
            Code.UNIMPLEMENTED,
            "RangeStream does not support custom sort orders",
        ),
        (
            pb.RangeRequest(key=b"a", max_mod_revision=1),
            Code.UNIMPLEMENTED,
            "RangeStream does not support revision filters",
        ),
        (
            pb.RangeRequest(key=b"a", revision=1 << 40),
            Code.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ],
)
def test_refusals_are_etcds_on_either_way(
    channel: grpc.Channel, native: Native, request_: pb.RangeRequest, code: Code, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(stream(channel, request_))
    assert (refused.value.code().value[0], refused.value.details()) == (code, text)
    native.say(Kind.STREAM_OPEN, request_.SerializeToString())
    record = next(native.records())
    assert (record.kind, record.status, record.payload.decode()) == (Kind.STREAM_CLOSE, code, text)


def test_readers_that_stop_reading_cost_next_to_nothing_and_go_on_where_they_were(
    cluster: Cluster, channel: grpc.Channel, native: Native
) -> None:
    """Ten of them at once through the gateway, two natively; meanwhile others are served."""
    before = {name: rss_bytes(cluster.pid(0, name)) for name in ("apply", "gateway")}
    calls = [stream(channel, ALL) for _ in range(10)]
    firsts = [next(call) for call in calls]
    native.say(Kind.STREAM_OPEN, ALL.SerializeToString())
    native.say(Kind.STREAM_OPEN, ALL.SerializeToString(), 2)
    native.say(Kind.STREAM_PAUSE, id=2)
    time.sleep(2)
    value = cluster.request(0, Method.PUT, pb.PutRequest(key=b"big/later", value=b"new")).header.revision  # type: ignore[attr-defined]
    grown = {name: rss_bytes(cluster.pid(0, name)) - size for name, size in before.items()}
    assert grown["apply"] < 40 << 20, "not twelve times 40 MB, nor once"
    assert grown["gateway"] < 60 << 20
    answers = [whole([first, *call]) for first, call in zip(firsts, calls, strict=True)]
    for answer in answers:
        assert len(answer.kvs) == KEYS
        assert answer.header.revision < value
    native.say(Kind.STREAM_RESUME, id=2)
    ended = 0
    for record in native.records():
        ended += record.kind == Kind.STREAM_CLOSE
        if ended == 2:
            break
    cluster.request(0, Method.DELETE_RANGE, pb.DeleteRangeRequest(key=b"big/later"))


STREAMS = "kvorum_apply_range_streams"


def test_the_client_reads_it_key_by_key_and_part_by_part(cluster: Cluster) -> None:
    with Client(cluster.endpoint(0)) as client:
        pairs = client.stream_prefix("big/")
        value, meta = next(pairs)
        revision = client.put("big/later", "new").header.revision
        assert (value, meta.key) == (bytes(VALUE_BYTES), b"big/00000")
        rest = list(pairs)
        assert [meta.key for _, meta in rest] == [b"big/%05d" % i for i in range(1, KEYS)], "not the later one"
        assert rest[-1][1].response_header.revision == revision - 1
        parts = list(client.stream(ALL))
        assert whole(parts) == client.get_prefix_response("big/")
        assert len(parts[0].kvs) == 10
        assert len(list(client.stream_range("big/00100", "big/00200", limit=30, keys_only=True))) == 30
        assert len(list(client.stream_all(revision=revision - 1))) == KEYS
        assert list(client.stream_prefix("none")) == []
        client.delete("big/later")
        with pytest.raises(errors.Refused, match="custom sort orders"):
            next(client.stream_prefix("big/", sort_order="descend"))
        with pytest.raises(ValueError, match="limit"):
            client.stream_prefix("big/", limit=-1)


def test_a_reader_who_stops_is_forgotten_by_the_node(cluster: Cluster) -> None:
    """It says close(), or lets go of it; and one that is slow holds little here, and nobody else up."""
    with Client(cluster.endpoint(0)) as client:
        one, other, slow = client.stream_prefix("big/"), client.stream(ALL), client.stream_prefix("big/")
        for each in (one, other, slow):
            next(each)
        time.sleep(1)
        client.get("big/00000")  # takes what has come
        assert client.inflight == 0
        eventually(lambda: cluster.metric(0, STREAMS) == 3, 20.0)
        one.close()  # type: ignore[attr-defined]
        del other, each
        gc.collect()
        eventually(lambda: cluster.metric(0, STREAMS) == 1, 20.0)
        assert len(list(slow)) == KEYS - 1
        eventually(lambda: cluster.metric(0, STREAMS) == 0, 20.0)


def test_the_asyncio_client_reads_it_too(cluster: Cluster) -> None:
    async def run() -> None:
        async with aio.client(cluster.endpoint(0)) as client:

            async def count() -> int:
                return len([meta async for _, meta in client.stream_prefix("big/")])

            assert await asyncio.gather(*(count() for _ in range(3))) == [KEYS] * 3
            parts = [part async for part in client.stream(ALL)]
            assert whole(parts) == await client.get_prefix_response("big/")
            async for _, meta in client.stream_all():
                assert meta.key == b"big/00000"
                break
            await asyncio.sleep(0)
            gc.collect()
            while cluster.metric(0, STREAMS):
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("format", ["simple", "json", "fields", "protobuf"])
def test_kvorumctl_prints_the_same_with_it_as_without(cluster: Cluster, format: str) -> None:
    words = [f"--endpoints={cluster.endpoint(0)}", "get", "big/00", "big/002", "-w", format, "--command-timeout=60s"]
    assert ctl(*words, "--stream") == ctl(*words)
    code, out, err = ctl(*words, "--stream", "--order", "DESCEND")
    assert (code, out) == (1, b"")
    assert b"RangeStream does not support custom sort orders" in err


def test_a_caller_who_goes_away_is_not_served_on(cluster: Cluster, channel: grpc.Channel) -> None:
    call = channel.unary_stream(PATH)(ALL.SerializeToString())
    next(call)
    call.cancel()
    eventually(lambda: cluster.metric(0, 'kvorum_gateway_streams{process="gateway"}') == 0, 20.0, "forgotten")


def test_when_apply_dies_its_streams_end_and_new_ones_are_served(cluster: Cluster, channel: grpc.Channel) -> None:
    call = stream(channel, ALL)
    next(call)
    client = Client(cluster.endpoint(0))
    pairs = client.stream_prefix("big/")
    next(pairs)
    cluster.kill(0, "apply")
    with pytest.raises(grpc.RpcError) as lost:
        list(call)
    with pytest.raises(errors.Unavailable, match="the range broke off"), client:
        list(pairs)
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: cluster.healthy(0), 40.0)
    assert len(whole(list(stream(channel, ALL))).kvs) == KEYS
