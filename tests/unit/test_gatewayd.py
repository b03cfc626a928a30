"""The gateway between an edge, an apply and a watch process that are only recorded here: what goes where, and what is
said when somebody is gone. No sockets."""

from __future__ import annotations

from array import array
from collections import deque
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster import clientcalls
from cluster.access import ALL, Access
from cluster.gatewayd import LOST, OWN, Gateway, methods
from cluster.internal import Tick
from cluster.links import Answers, Lost, Streamed
from cluster.local_answers import LOCAL
from cluster.metrics import GatewayBoard
from cluster.streams import SHARES, Stream, StreamKey, Watcher, share
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from native import edge
from native.edge import Batch


class Said(NamedTuple):
    """An answer at the edge."""

    kind: int
    status: int
    payload: bytes


class Front:
    """An edge that has what the test gives it."""

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()
        self.said: dict[int, list[Said]] = {}
        self.failed: list[int] = []
        self.versions: list[tuple[str, list[int]]] = []

    def poll(self, timeout: float = 0) -> Batch:
        return self.batches.popleft() if self.batches else Batch(b"", 0, [], b"")

    def deliver(self, batch: bytes) -> int:
        for record in wire.decode(batch) if len(batch) <= wire.BATCH_BYTES_MAX else []:
            if record.id & OWN:
                continue  # no call of the edge's
            self.said.setdefault(record.id, []).append(Said(record.kind, record.status, record.payload))
        return 0

    def fan_out(self, payload: bytes, calls: array[int], suffixes: bytes, ends: array[int]) -> int:
        at = 0
        for id, end in zip(calls, ends, strict=True):
            self.said.setdefault(id, []).append(Said(edge.SEND, 0, payload + suffixes[at:end]))
            at = end
        return len(calls)

    def version_stats(self) -> list[tuple[str, list[int]]]:
        return self.versions

    def fail(self, status: int, text: str, *, method: int = 0) -> int:
        self.failed.append(method)
        return 0


class Link:
    """Apply and watch that note what they are sent. `room` False: they take nothing."""

    def __init__(self) -> None:
        self.arriving: deque[Tick | Answers | Streamed | Lost] = deque()
        self.apply: list[wire.Record] = []
        self.watch: list[wire.Record] = []
        self.room = True

    def receive(self) -> list[Tick | Answers | Streamed | Lost]:
        items = list(self.arriving)
        self.arriving.clear()
        return items

    def to_apply(self, frame: bytes) -> bool:
        if self.room:
            self.apply += wire.decode(frame)
        return self.room

    def to_watch(self, frame: bytes) -> bool:
        if self.room:
            self.watch += wire.decode(frame)
        return self.room


class World:
    def __init__(self, access: Access = ALL, client_calls: clientcalls.ClientCalls | None = None) -> None:
        self.front, self.link, board = Front(), Link(), GatewayBoard()
        board.open(None)
        self.gateway = Gateway(self.front, self.link, board, access=access, client_calls=client_calls)

    def event(self, kind: int, id: int, *, method: int = 0, payload: bytes = b"", status: int = 0) -> None:
        self.front.batches.append(Batch(b"", 0, [(id, 0, 0, len(payload), 0, kind, method, status)], payload))
        self.gateway.turn()

    def calls(self, *records: bytes) -> None:
        self.front.batches.append(Batch(b"".join(records), len(records), [], b""))
        self.gateway.turn()

    def arrives(self, item: Tick | Answers | Streamed | Lost) -> None:
        self.link.arriving.append(item)
        self.gateway.turn()

    def applied(self, to: wire.Record, payload: bytes, status: int = 0) -> None:
        self.arrives(Answers(wire.encode(to.method, Kind.REPLY, status, to.id, payload)))


@pytest.fixture
def world() -> World:
    return World()


CALL = 5 << 32 | 7


def local(path: str) -> int:
    return next(number for number, one in LOCAL.items() if one.path == path)


def test_plain_calls_go_to_apply_and_their_answers_back_as_they_are(world: World) -> None:
    put = wire.encode(Method.PUT, Kind.CALL, 0, CALL, b"a put")
    world.calls(put)
    assert world.link.apply == wire.decode(put)
    world.arrives(Answers(wire.encode(Method.PUT, Kind.REPLY, 0, CALL, b"its answer")))
    assert world.front.said == {CALL: [Said(Kind.REPLY, 0, b"its answer")]}


def test_what_apply_has_no_room_for_waits_and_the_edge_is_not_asked_meanwhile(world: World) -> None:
    world.link.room = False
    world.calls(wire.encode(Method.PUT, Kind.CALL, 0, CALL, b"1"))
    assert world.gateway.stuck
    world.calls(wire.encode(Method.PUT, Kind.CALL, 0, CALL + 2, b"2"))
    assert len(world.front.batches) == 1
    world.link.room = True
    world.gateway.turn()
    assert [record.payload for record in world.link.apply] == [b"1", b"2"]
    assert not world.gateway.stuck


def test_what_apply_never_takes_is_answered_after_a_while(world: World) -> None:
    world.link.room = False
    world.event(edge.BEGUN, CALL, method=Method.LEASE_KEEP_ALIVE, status=edge.TOKEN)
    world.event(edge.MESSAGE, CALL, payload=b"1")
    for _ in range(60):
        world.arrives(Tick())
    assert Method.PUT in world.front.failed
    assert world.front.said == {CALL: [Said(edge.END, LOST.code, LOST.text.encode())]}


def test_a_call_with_credentials_is_passed_on_too(world: World) -> None:
    world.event(edge.CALL, CALL, method=Method.RANGE, payload=b"a range", status=edge.TOKEN)
    assert world.link.apply == [wire.Record(Method.RANGE, Kind.CALL, 0, CALL, b"a range")]


def test_whoever_requires_a_leader_is_told_when_there_is_none(world: World) -> None:
    for _ in range(5):
        world.arrives(Tick())
    (status,) = world.link.apply
    assert status.id & OWN
    world.applied(status, pb.StatusResponse(leader=0).SerializeToString())
    no_leader = Said(edge.END, errors.NoLeader.code, errors.NoLeader.text.encode())
    world.event(edge.CALL, CALL, method=Method.RANGE, status=edge.HAS_LEADER)
    world.event(edge.BEGUN, CALL + 2, method=Method.WATCH, status=edge.HAS_LEADER)
    assert world.front.said == {CALL: [no_leader], CALL + 2: [no_leader]}
    world.event(edge.CALL, CALL + 4, method=Method.RANGE)
    assert world.link.apply[-1].id == CALL + 4, "who doesn't ask for one may read what is here"


def ticks(world: World, count: int) -> None:
    """So much time, in which apply says that there is no leader."""
    for _ in range(count):
        world.arrives(Tick())
        for asked in [record for record in world.link.apply if record.method == Method.STATUS]:
            world.link.apply.remove(asked)
            world.applied(asked, pb.StatusResponse(leader=0).SerializeToString())


def test_streams_that_need_a_leader_end_when_there_is_none_for_long(world: World) -> None:
    """After three election timeouts, of ten ticks each; others live on, whatever kind they are of."""
    observe = local("/v3electionpb.Election/Observe")
    for more, flags in ((0, edge.HAS_LEADER), (100, 0)):
        world.event(edge.BEGUN, CALL + more, method=Method.WATCH, status=flags)
        world.event(edge.BEGUN, CALL + more + 2, method=Method.LEASE_KEEP_ALIVE, status=flags)
        world.event(edge.CALL, CALL + more + 4, method=observe, status=flags)
    world.event(edge.CALL, CALL + 6, method=local("/v3lockpb.Lock/Lock"), status=edge.HAS_LEADER)  # is no stream
    ticks(world, 30)
    assert world.front.said == {}
    ticks(world, 1)
    no_leader = [Said(edge.END, errors.NoLeader.code, errors.NoLeader.text.encode())]
    assert world.front.said == {CALL: no_leader, CALL + 2: no_leader, CALL + 4: no_leader}
    assert [record.id for record in world.link.watch if record.kind == Kind.STREAM_CLOSE] == [CALL]
    world.event(edge.BEGUN, CALL + 200, method=Method.WATCH, status=edge.HAS_LEADER)
    assert world.front.said.pop(CALL + 200) == no_leader, "and none begins"
    ticks(world, 100)
    assert len(world.front.said) == 3


def test_a_short_time_without_a_leader_ends_nothing(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.WATCH, status=edge.HAS_LEADER)
    for _ in range(5):
        ticks(world, 29)
        world.arrives(Tick())
        world.applied(world.link.apply.pop(), pb.StatusResponse(leader=7).SerializeToString())
    assert world.front.said == {}


def test_streams_that_have_ended_need_no_leader(world: World) -> None:
    """Nothing is kept of them, however they end."""
    for at in range(0, 12, 2):
        method = Method.LEASE_KEEP_ALIVE if at % 4 else Method.WATCH
        world.event(edge.BEGUN, CALL + at, method=method, status=edge.HAS_LEADER)
    for at in (0, 2):
        world.event(edge.CANCELLED, CALL + at, status=1)
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_CLOSE, 13, CALL + 4, b"why")))
    world.event(edge.HALF_CLOSED, CALL + 6)
    assert len(world.gateway.leadership) == 2
    world.event(edge.CLOSED, CALL >> 32 << 32)
    assert len(world.gateway.leadership) == 0


def test_apply_is_asked_for_its_leader_once_at_a_time(world: World) -> None:
    for _ in range(20):
        world.arrives(Tick())
    assert [record.method for record in world.link.apply] == [Method.STATUS]


def test_a_watch_stream_is_a_stream_of_ours(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.WATCH)
    world.event(edge.MESSAGE, CALL, payload=b"create")
    world.arrives(Streamed(b""))
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, CALL, b"created")))
    world.event(edge.HALF_CLOSED, CALL)
    assert [(record.kind, record.payload) for record in world.link.watch] == [
        (Kind.STREAM_OPEN, SHARES),
        (Kind.STREAM_MESSAGE, b"create"),
    ], "it goes on after its client has said all"
    world.event(edge.CANCELLED, CALL, status=1)
    assert world.link.watch[-1].kind == Kind.STREAM_CLOSE
    assert world.front.said == {CALL: [Said(edge.SEND, 0, b"created")]}


def test_one_message_for_many_streams_has_each_ones_watch_id(world: World) -> None:
    watchers = []
    for at, watch_id in ((0, 0), (2, 7), (4, -1)):
        world.event(edge.BEGUN, CALL + at, method=Method.WATCH)
        stream = Stream(StreamKey(b"gateway", CALL + at), takes_shares=True)
        watchers.append(Watcher(stream, watch_id, pb.WatchCreateRequest(key=b"k"), 1))
    assert {record.payload for record in world.link.watch} == {SHARES}
    header = pb.WatchResponse(header=pb.ResponseHeader(revision=9)).SerializeToString()
    event = pb.WatchResponse(events=[pb.Event(kv=pb.KeyValue(key=b"k", value=b"v"))]).SerializeToString()
    world.arrives(Streamed(share(watchers, header, [event])))
    told = {id: pb.WatchResponse.FromString(said.payload) for id, (said,) in world.front.said.items()}
    assert {id: one.watch_id for id, one in told.items()} == {CALL: 0, CALL + 2: 7, CALL + 4: -1}
    assert all(one.header.revision == 9 and one.events[0].kv.value == b"v" for one in told.values())


def test_a_watch_whose_reader_is_slow_is_paused(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.WATCH)
    world.event(edge.BLOCKED, CALL)
    world.event(edge.WRITABLE, CALL)
    world.event(edge.BLOCKED, CALL + 2)
    assert [record.kind for record in world.link.watch[1:]] == [Kind.STREAM_PAUSE, Kind.STREAM_RESUME]


def test_a_connection_that_closes_takes_its_streams_along(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.WATCH)
    world.event(edge.BEGUN, CALL + 2, method=Method.LEASE_KEEP_ALIVE)
    world.event(edge.BEGUN, CALL + (1 << 32), method=Method.WATCH)
    world.event(edge.CLOSED, 5 << 32)
    assert [record.id for record in world.link.watch if record.kind == Kind.STREAM_CLOSE] == [CALL]
    world.arrives(Lost("watch"))
    assert list(world.front.said) == [CALL + (1 << 32)]


def test_a_lease_stream_without_metadata_is_the_edge_s(world: World) -> None:
    """Its messages come as calls, mostly in the batch, and are answered as such."""
    world.event(edge.BEGUN, CALL, method=Method.LEASE_KEEP_ALIVE)
    world.event(edge.MESSAGE, CALL, payload=b"1")
    assert world.link.apply == [wire.Record(Method.LEASE_KEEP_ALIVE, Kind.CALL, 0, CALL, b"1")]
    answer = wire.encode(Method.LEASE_KEEP_ALIVE, Kind.REPLY, 0, CALL, b"first")
    world.arrives(Answers(answer))
    assert world.front.said == {CALL: [Said(edge.REPLY, 0, b"first")]}
    world.event(edge.CANCELLED, CALL, status=0)
    world.event(edge.MESSAGE, CALL, payload=b"2")
    assert len([record for record in world.link.apply if record.method == Method.LEASE_KEEP_ALIVE]) == 1


def test_a_lease_stream_with_metadata_ends_when_all_is_answered(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.LEASE_KEEP_ALIVE, status=edge.TOKEN)
    world.event(edge.MESSAGE, CALL, payload=b"1")
    world.event(edge.MESSAGE, CALL, payload=b"2")
    world.event(edge.HALF_CLOSED, CALL)
    one, two = world.link.apply
    assert (one.method, one.payload, two.payload) == (Method.LEASE_KEEP_ALIVE, b"1", b"2")
    world.applied(one, b"first")
    assert world.front.said == {CALL: [Said(edge.SEND, 0, b"first")]}
    world.applied(two, b"second")
    assert world.front.said[CALL][1:] == [Said(edge.SEND, 0, b"second"), Said(edge.END, 0, b"")]


def test_an_answer_may_be_larger_than_a_batch(world: World) -> None:
    """A Range without a limit, while something of the gateway's own is under way; and the events of a huge revision."""
    large = bytes(wire.BATCH_BYTES_MAX + 1)
    for _ in range(5):
        world.arrives(Tick())
    (status,) = world.link.apply
    told = wire.encode(Method.STATUS, Kind.REPLY, 0, status.id, pb.StatusResponse(leader=0).SerializeToString())
    assert world.gateway.has_leader
    world.arrives(Answers(wire.encode(Method.RANGE, Kind.REPLY, 0, CALL, large) + told))
    assert not world.gateway.has_leader
    id = world.gateway.watch(pb.WatchRequest(), lambda status, payload: heard.append(len(payload)))
    heard: list[int] = []
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, id, large)))
    assert heard == [len(large)]


SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"


def snapshot_begun(world: World) -> wire.Record:
    """A snapshot call whose next piece apply is asked for: that request."""
    world.event(edge.CALL, CALL, method=local(SNAPSHOT))
    world.applied(world.link.apply.pop(), pb.SnapshotResponse(snapshot=9).SerializeToString())
    (asked,) = world.link.apply
    world.link.apply.clear()
    assert (asked.method, pb.SnapshotRequest.FromString(asked.payload)) == (22, pb.SnapshotRequest(snapshot=9))
    return asked


def test_a_snapshot_is_fetched_piece_by_piece_while_its_client_reads(world: World) -> None:
    asked = snapshot_begun(world)
    world.event(edge.BLOCKED, CALL)
    world.applied(asked, pb.SnapshotResponse(blob=bytes(40_000), remaining_bytes=0).SerializeToString())
    assert [(one.kind, len(pb.SnapshotResponse.FromString(one.payload).blob)) for one in world.front.said[CALL]] == [
        (edge.SEND, 32 << 10),
        (edge.SEND, 40_000 - (32 << 10)),
    ]
    assert world.link.apply == []
    world.event(edge.WRITABLE, CALL)
    world.applied(world.link.apply.pop(), pb.SnapshotResponse(blob=bytes(32)).SerializeToString())
    assert [one.kind for one in world.front.said[CALL][2:]] == [edge.SEND, edge.END]


@pytest.mark.parametrize(("kind", "id"), [(edge.CANCELLED, CALL), (edge.CLOSED, CALL >> 32 << 32)])
def test_a_snapshot_whose_client_goes_is_given_up(world: World, kind: int, id: int) -> None:
    snapshot_begun(world)
    world.event(kind, id)
    (said,) = world.link.apply
    assert pb.SnapshotRequest.FromString(said.payload) == pb.SnapshotRequest(snapshot=9, cancel=True)
    assert not world.gateway.snapshots


def test_a_snapshot_breaks_off_when_apply_is_gone(world: World) -> None:
    snapshot_begun(world)
    world.arrives(Lost("apply"))
    assert world.front.said[CALL] == [Said(edge.END, LOST.code, LOST.text.encode())]


def test_a_renewal_that_fails_ends_its_stream_with_the_reason(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.LEASE_KEEP_ALIVE, status=edge.TOKEN)
    for payload in (b"1", b"2"):
        world.event(edge.MESSAGE, CALL, payload=payload)
    one, two = world.link.apply
    world.applied(one, b"no leader", status=14)
    world.applied(two, b"late")
    assert world.front.said == {CALL: [Said(edge.END, 14, b"no leader")]}


def test_when_apply_is_gone_everything_under_way_there_is_told(world: World) -> None:
    world.event(edge.BEGUN, CALL, method=Method.LEASE_KEEP_ALIVE, status=edge.TOKEN)
    world.event(edge.MESSAGE, CALL, payload=b"1")
    world.event(edge.BEGUN, CALL + 2, method=Method.WATCH)
    world.arrives(Lost("apply"))
    assert {Method.PUT, Method.LEASE_KEEP_ALIVE} <= set(world.front.failed)
    assert Method.WATCH not in world.front.failed
    assert world.front.said == {CALL: [Said(edge.END, LOST.code, LOST.text.encode())]}


def test_what_is_answered_here_has_the_header_of_a_read(world: World) -> None:
    world.event(edge.CALL, CALL, method=local("/etcdserverpb.Auth/AuthStatus"))
    (read,) = world.link.apply
    assert not pb.RangeRequest.FromString(read.payload).serializable  # etcd has no answer without a quorum either
    header = pb.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
    world.applied(read, pb.RangeResponse(header=header).SerializeToString())
    ((said,),) = world.front.said.values()
    assert pb.AuthStatusResponse.FromString(said.payload) == pb.AuthStatusResponse(header=header, authRevision=1)


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/etcdserverpb.Auth/Authenticate", 9, b"etcdserver: authentication is not enabled"),
        ("/etcdserverpb.Auth/AuthEnable", 9, b"etcdserver: root user does not exist"),
        ("/etcdserverpb.Cluster/MemberAdd", 12, b"kvorum: members are fixed"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(world: World, path: str, code: int, text: bytes) -> None:
    world.event(edge.CALL, CALL, method=local(path))
    ((said,),) = world.front.said.values()
    assert (said.kind, said.status, said.payload[: len(text)]) == (edge.END, code, text)


def test_a_range_stream_is_apply_s_and_is_held_back_while_its_reader_is_slow(world: World) -> None:
    world.event(edge.CALL, CALL, method=Method.RANGE_STREAM, payload=b"a range")
    world.arrives(Answers(wire.encode(Method.RANGE_STREAM, Kind.STREAM_MESSAGE, 0, CALL, b"part")))
    world.event(edge.BLOCKED, CALL)
    world.event(edge.WRITABLE, CALL)
    world.arrives(Answers(wire.encode(Method.RANGE_STREAM, Kind.STREAM_CLOSE, 0, CALL, b"")))
    world.event(edge.BLOCKED, CALL)
    said = [(record.kind, record.id, record.payload) for record in world.link.apply]
    assert said == [
        (Kind.STREAM_OPEN, CALL, b"a range"),
        (Kind.STREAM_PAUSE, CALL, b""),
        (Kind.STREAM_RESUME, CALL, b""),
    ]
    assert world.front.said[CALL] == [Said(edge.SEND, 0, b"part"), Said(edge.END, 0, b"")]


@pytest.mark.parametrize("how", ["cancelled", "closed", "apply died"])
def test_a_range_stream_ends_with_its_caller_and_with_apply(world: World, how: str) -> None:
    world.event(edge.CALL, CALL, method=Method.RANGE_STREAM)
    if how == "apply died":
        world.arrives(Lost("apply"))
        assert world.front.said[CALL] == [Said(edge.END, LOST.code, LOST.text.encode())]
        return
    world.event(edge.CANCELLED if how == "cancelled" else edge.CLOSED, CALL)
    assert world.link.apply[-1] == (Method.RANGE_STREAM, Kind.STREAM_CLOSE, 0, CALL, b"")
    world.event(edge.CANCELLED, CALL)
    assert len(world.link.apply) == 2


def test_calls_of_a_client_whose_version_is_no_text_are_refused(world: World) -> None:
    world.event(edge.CALL, CALL, method=Method.PUT, status=edge.BAD_VERSION | edge.HAS_LEADER)
    world.event(edge.BEGUN, CALL + 2, method=Method.WATCH, status=edge.BAD_VERSION)
    refused = Said(edge.END, 3, b"etcdserver: invalid client api version")
    assert world.front.said == {CALL: [refused], CALL + 2: [refused]}


def test_calls_are_counted_by_type_and_version_and_a_successor_goes_on(tmp_path: Path) -> None:
    file = clientcalls.path(str(tmp_path), "gateway")
    assert clientcalls.read(file) == {}
    for life in (1, 2):
        world = World(client_calls=clientcalls.ClientCalls(file))
        started = [0] * 256
        started[Method.PUT], started[local("/v3lockpb.Lock/Lock")], started[Method.WATCH] = 5, 1, 2
        started[local("/v3electionpb.Election/Observe")] = started[Method.RANGE_STREAM] = 1
        world.front.versions = [("unknown", [0] * 256), ("3.5", started)]
        world.gateway.inner_call(world.gateway.inner(lambda *_: None), Method.PUT, b"", 0, b"")
        for _ in range(10):
            world.arrives(Tick())
        counted = {("unary", "unknown"): 1, ("unary", "3.5"): 6, ("stream", "3.5"): 4}
        assert clientcalls.read(file) == {series: life * count for series, count in counted.items()}


def test_requests_that_are_none_and_paths_that_nobody_knows(world: World) -> None:
    world.event(edge.CALL, CALL, method=local("/v3lockpb.Lock/Lock"), payload=b"\xff")
    world.event(edge.UNKNOWN, CALL + 2, payload=b"/etcdserverpb.KV/Nothing")
    world.event(edge.UNKNOWN, CALL + 4, payload=b"/nobody.Nothing/At")
    assert [said.status for (said,) in world.front.said.values()] == [errors.Malformed.code, 12, 12]
    assert world.front.said[CALL + 2][0].payload == b"unknown method Nothing for service etcdserverpb.KV"
    assert world.front.said[CALL + 4][0].payload == b"unknown service nobody.Nothing"


def test_the_table_has_every_path_once() -> None:
    table = methods()
    assert len({one.path for one in table}) == len({one.number for one in table}) == len(table)
