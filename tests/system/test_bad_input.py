"""What strangers send to a node's ports: they get a clear error or are dropped, and nobody else notices.

RELIABILITY 3, 4.1. One real cluster; `undisturbed` is around every story: meanwhile honest clients of every node are
served, no process ends or grows, and none says "Traceback". What is refused with which words is in test_refusals.py,
what a client costs that never reads in test_memory.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest
import zmq
from google.protobuf.message import DecodeError

import kvorum
from cluster import local, sockets
from cluster.raft import message as raft
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import Code
from kvorum.wire import Kind, Method
from tests.system import zmtp
from tests.system.cluster import Cluster, eventually
from tests.system.undisturbed import undisturbed

PORTS = {
    "peer": local.STEP_PEER,
    "native": local.STEP_NATIVE,
    "watch": local.STEP_WATCH,
    "broadcast": local.STEP_BROADCAST,
    "metrics": local.STEP_METRICS,
    "gateway": local.STEP_GATEWAY,
}
SETTINGS = {"heartbeat-interval": "100", "election-timeout": "1000"}
HANDSHAKE_SECONDS_MAX = 5.0
"""sockets.py: a connection that doesn't finish its handshake by then is closed; the HTTP side waits as long."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bad"), nodes=3, settings=SETTINGS, shared=True) as cluster:
        cluster.http(0, "/metrics")  # its libraries are loaded when somebody asks for the first time
        yield cluster


def port(cluster: Cluster, name: str, node: int = 0) -> int:
    return cluster.places[node].port + PORTS[name]


# ---- below messages


@pytest.mark.parametrize("name", PORTS)
def test_any_bytes_at_any_port_are_dropped_or_answered(cluster: Cluster, name: str) -> None:
    """Whatever is no conversation ends; a connection that has begun a handshake and stops may wait for its time."""
    with undisturbed(cluster):
        connections = []
        for _, opening in zmtp.openings():
            connection = zmtp.connect(port(cluster, name))
            with contextlib.suppress(OSError):  # dropped while we spoke
                connection.sendall(opening)
            connections.append(connection)
        for seed in range(40):
            dice = random.Random(f"{name}/{seed}")
            begin = zmtp.GREETING + zmtp.ready() if dice.random() < 0.5 else b""
            connection = zmtp.connect(port(cluster, name))
            with contextlib.suppress(OSError):
                connection.sendall(begin + dice.randbytes(dice.randrange(1, 20_000)))
            connections.append(connection)
        for at, connection in enumerate(connections):
            if at % 3 == 0:  # some hang up, rudely
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        time.sleep(0.5)
        for connection in connections:
            connection.close()


def test_connections_that_say_nothing_are_let_go(cluster: Cluster) -> None:
    """RELIABILITY 4.1: half-open handshakes. Others connect meanwhile, and the descriptors come back."""
    owners = {
        "peer": "raft", "native": "apply", "watch": "watch", "broadcast": "watch", "metrics": "supervisor",
        "gateway": "gateway",
    }  # fmt: skip
    pids = {name: cluster.pid(0, process) for name, process in owners.items()}
    with undisturbed(cluster):
        before = {name: descriptors(pid) for name, pid in pids.items()}
        connections = []
        for name in PORTS:
            # At the metrics port 32 at a time are heard, and the next waits for its turn.
            count = {"native": 1000, "metrics": 100}.get(name, 300)
            connections += [zmtp.connect(port(cluster, name)) for _ in range(count)]
        for connection in connections[::2]:
            with contextlib.suppress(OSError):
                connection.sendall(zmtp.GREETING[:20])
        cluster.request(0, Method.PUT, pb.PutRequest(key=b"a", value=b"1"), timeout=5.0)
        assert cluster.healthy(0)
        deadline = time.monotonic() + HANDSHAKE_SECONDS_MAX + 5.0
        for connection in connections:
            assert zmtp.is_dropped(connection, max(0.01, deadline - time.monotonic())), "still open"
            connection.close()
        for name, pid in pids.items():
            eventually(lambda name=name, pid=pid: descriptors(pid) <= before[name] + 10, 10.0, "the descriptors back")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_zeromq_at_the_http_port_and_http_at_a_zeromq_port_lead_nowhere(cluster: Cluster) -> None:
    """To libzmq HTTP is the ZMTP 1.0 of 2010 and GET an identity: such a client may stay, as idle as any other."""
    with undisturbed(cluster), zmq.Context() as context:
        for name in ("peer", "native", "watch"):
            with zmtp.connect(port(cluster, name)) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
                connection.settimeout(1.0)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    assert b"HTTP" not in connection.recv(1000)
        asker = context.socket(zmq.DEALER)
        asker.setsockopt(zmq.LINGER, 0)
        asker.connect(f"tcp://127.0.0.1:{port(cluster, 'metrics')}")
        asker.send(wire.encode(Method.STATUS, Kind.CALL, 0, 1, b""))
        assert not asker.poll(1000)
        asker.close()
        assert cluster.http(0, "/health")[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /health HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"405"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /health HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /health?" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X-Head: er\r\n" * 1300 + b"\r\n", b"431"),
        (b"\x00\x01\x02\r\n\r\n", b"400"),
    ],
)
def test_http_that_makes_no_sense_is_told_so(cluster: Cluster, request_: bytes, status: bytes) -> None:
    with zmtp.connect(port(cluster, "metrics")) as connection:
        connection.sendall(request_)
        said = connection.recv(1000)
        assert status in said.split(b"\r\n")[0]
    assert cluster.http(0, "/health")[0] == 200


# ---- records


class Asker:
    """A ZeroMQ client that sends any bytes and tells what comes back."""

    def __init__(self, port: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def answers(self, frame: bytes | list[bytes], count: int, seconds: float = 5.0) -> list[wire.Record]:
        """The first `count` records that come back for one message."""
        self.socket.send_multipart(frame if isinstance(frame, list) else [frame])
        found: list[wire.Record] = []
        deadline = time.monotonic() + seconds
        while len(found) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(found)} of {count} answers"
            if self.socket.poll(int(left * 1000)):
                found += wire.decode(self.socket.recv())
        return found


def call(method: int, payload: bytes = b"", id: int = 7, kind: int = Kind.CALL) -> bytes:
    return wire.encode(method, kind, 0, id, payload)


PUT = pb.PutRequest(key=b"a", value=b"1").SerializeToString()
BAD_RECORDS: dict[str, tuple[bytes | list[bytes], int, int, str]] = {
    # what is sent: the id, code and text that come back
    "an unknown method": (call(99), 7, Code.UNIMPLEMENTED, "unknown method 99"),
    "method 0": (call(0), 7, Code.UNIMPLEMENTED, "unknown method 0"),
    "a method of ours": (call(Method.MEMBER_PUBLISH, PUT), 7, Code.UNIMPLEMENTED, "unknown method 64"),
    "a watch at the wrong port": (call(Method.WATCH), 7, Code.UNIMPLEMENTED, "unknown method 7"),
    "a reply": (call(Method.PUT, PUT, kind=Kind.REPLY), 7, Code.UNIMPLEMENTED, "a record of kind 1 is not a call"),
    "a stream": (call(Method.PUT, kind=Kind.STREAM_OPEN), 7, Code.UNIMPLEMENTED, "a record of kind 2 is not a call"),
    "kind 200": (call(Method.PUT, PUT, kind=200), 7, Code.UNIMPLEMENTED, "a record of kind 200 is not a call"),
    "half a header": (call(Method.PUT)[:9], 0, Code.INTERNAL, "breaks off inside a record's header"),
    "half a payload": (call(Method.PUT, PUT)[:-1], 0, Code.INTERNAL, "breaks off inside a record's payload"),
    "a length that lies": (b"\xff" * 4 + call(3)[4:], 0, Code.INTERNAL, "breaks off inside a record's payload"),
    "one byte too many": (call(Method.PUT, PUT) + b"\0", 0, Code.INTERNAL, "breaks off inside a record's header"),
    "two frames": ([call(Method.PUT, PUT), call(Method.PUT, PUT)], 0, Code.INTERNAL, "breaks off"),
    "many frames": ([b""] * 500, 0, Code.INTERNAL, "breaks off"),
    "Hello of version 0": (call(Method.HELLO), 7, Code.FAILED_PRECONDITION, "protocol version not supported: 0"),
    "Hello of version 9": (
        call(Method.HELLO, pb.HelloRequest(protocol=9).SerializeToString()),
        7, Code.FAILED_PRECONDITION, "protocol version not supported: 9, this server speaks 1",
    ),
    "Hello that is none": (call(Method.HELLO, b"\xff\xff"), 7, Code.INTERNAL, "grpc: error unmarshalling request"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_a_record_that_makes_no_sense_is_answered_with_the_reason(cluster: Cluster, what: str) -> None:
    """And the same connection may go on."""
    frame, id, code, text = BAD_RECORDS[what]
    with undisturbed(cluster), Asker(port(cluster, "native")) as asker:
        (said,) = asker.answers(frame, 1)
        assert (said.kind, said.id, said.status) == (Kind.REPLY, id, code)
        assert text in said.payload.decode()
        (said,) = asker.answers(call(Method.PUT, PUT, id=8), 1)
        assert (said.id, said.status) == (8, 0)


BAD_STREAMS: dict[str, tuple[bytes | list[bytes], int, int, str]] = {
    "another method": (call(Method.PUT, PUT), 7, Code.UNIMPLEMENTED, "unknown method 3"),
    "a call": (call(Method.WATCH), 7, Code.UNIMPLEMENTED, "a record of kind 0 is not of a stream"),
    "a message on no stream": (
        call(Method.WATCH, kind=Kind.STREAM_MESSAGE), 7, Code.NOT_FOUND, "stream 7 is not open",
    ),
    "a stream opened twice": (
        call(Method.WATCH, kind=Kind.STREAM_OPEN) * 2, 7, Code.ALREADY_EXISTS, "stream 7 is open",
    ),
    "a message that is none": (
        call(Method.WATCH, kind=Kind.STREAM_OPEN) + call(Method.WATCH, b"\xff\xff", kind=Kind.STREAM_MESSAGE),
        7, Code.INTERNAL, "grpc: error unmarshalling request",
    ),
    "half a record": (call(Method.WATCH)[:5], 0, Code.INTERNAL, "breaks off inside a record's header"),
    "two frames": ([b"a", b"b"], 0, Code.INTERNAL, "breaks off"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_STREAMS)
def test_a_record_that_makes_no_sense_ends_a_watch_stream_with_the_reason(cluster: Cluster, what: str) -> None:
    frame, id, code, text = BAD_STREAMS[what]
    watch = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a")).SerializeToString()
    with undisturbed(cluster), Asker(port(cluster, "watch")) as asker:
        (said,) = asker.answers(frame, 1)
        assert (said.kind, said.id, said.status) == (Kind.STREAM_CLOSE, id, code)
        assert text in said.payload.decode()
        opening = call(Method.WATCH, kind=Kind.STREAM_OPEN, id=8)
        (said,) = asker.answers(opening + call(Method.WATCH, watch, kind=Kind.STREAM_MESSAGE, id=8), 1)
        assert pb.WatchResponse.FromString(said.payload).created


def test_an_empty_batch_is_a_batch_of_nothing(cluster: Cluster) -> None:
    with Asker(port(cluster, "native")) as asker:
        asker.socket.send(b"")
        (said,) = asker.answers(call(Method.PUT, PUT), 1)
        assert said.status == 0


def test_each_record_of_a_batch_is_answered_for_itself(cluster: Cluster) -> None:
    """RELIABILITY T5: one bad request spoils no other, and no answer is shifted to a neighbour."""
    dice = random.Random(5)
    frame, wanted = [], {}
    for id in range(1, 401):
        key = b"each/%d" % id
        good = pb.PutRequest(key=key, value=b"%d" % id, prev_kv=True).SerializeToString()
        kind = dice.randrange(4)
        if kind == 0:
            frame.append(call(Method.PUT, dice.randbytes(30), id=id))
        elif kind == 1:
            frame.append(call(Method.PUT, pb.PutRequest(value=b"no key").SerializeToString(), id=id))
        elif kind == 2:
            frame.append(call(200, good, id=id))
        else:
            frame.append(call(Method.PUT, good, id=id) + call(Method.PUT, good, id=id + 1000))
            wanted[id + 1000] = b"%d" % id
    with undisturbed(cluster), Asker(port(cluster, "native")) as asker:
        said = asker.answers(b"".join(frame), len(frame) + len(wanted))
        assert len({record.id for record in said}) == len(said)
        for record in said:
            if record.id in wanted:
                answer = pb.PutResponse.FromString(record.payload)
                assert (record.status, answer.prev_kv.key) == (0, b"each/%d" % (record.id - 1000))
                assert answer.prev_kv.value == wanted[record.id]
            else:
                assert (record.status == 0) == (record.id + 1000 in wanted)


def test_junk_for_any_method_is_answered_every_time(cluster: Cluster) -> None:
    """RELIABILITY 3: no hang, no crash. Some junk is a message by chance, so any answer will do; silence won't."""
    dice = random.Random(6)
    with undisturbed(cluster), Asker(port(cluster, "native")) as asker:
        for round in range(20):
            frame = b""
            for id in range(100):
                method = dice.choice([*wire.METHODS, dice.randrange(256)])
                payload = dice.randbytes(dice.randrange(60))
                if dice.random() < 0.3:
                    payload = mutated(dice, PUT)
                if not deletes(method, payload):
                    frame += call(method, payload, id=id)
            count = len(wire.decode(frame))
            assert len(asker.answers(frame, count, 60.0)) == count, round


def deletes(method: int, payload: bytes) -> bool:
    """Junk that would delete what honest clients look for."""
    try:
        if method == Method.TXN:
            txn = pb.TxnRequest.FromString(payload)
            return bool(txn.success or txn.failure)
        return method == Method.COMPACT or (
            method == Method.DELETE_RANGE and bool(pb.DeleteRangeRequest.FromString(payload))
        )
    except DecodeError:
        return False


def mutated(dice: random.Random, message: bytes) -> bytes:
    changed = bytearray(message)
    for _ in range(dice.randrange(1, 4)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def test_a_transaction_nested_without_end_is_refused(cluster: Cluster) -> None:
    """RELIABILITY T14: a depth bomb. The recursion of a parser must not be the process's."""
    inner = b""
    for _ in range(2000):
        inner = nested(inner)
    with undisturbed(cluster), Asker(port(cluster, "native")) as asker:
        (said,) = asker.answers(call(Method.TXN, inner), 1)
        assert said.status == Code.INTERNAL
        shallow = b""
        for _ in range(30):  # the parser takes it, the limits may not
            shallow = nested(shallow)
        (said,) = asker.answers(call(Method.TXN, shallow), 1)
        assert said.status in (0, Code.INVALID_ARGUMENT, Code.INTERNAL)


def nested(inner: bytes) -> bytes:
    """A TxnRequest whose one operation is the TxnRequest `inner`, put together by hand: protobuf won't go so deep."""
    operation = b"\x22" + varint(len(inner)) + inner
    return b"\x12" + varint(len(operation)) + operation


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def test_who_subscribes_to_what_is_not_his_hears_nothing(cluster: Cluster) -> None:
    """Topics are told to those who watch; all others, every prefix of them but the empty one, are silence."""
    with undisturbed(cluster), zmq.Context() as context, context.socket(zmq.SUB) as stranger:
        stranger.connect(f"tcp://127.0.0.1:{port(cluster, 'broadcast')}")
        dice = random.Random(1)
        for size in (1, 8, 15, 16, 17, 200):
            for _ in range(20):
                stranger.setsockopt(zmq.SUBSCRIBE, dice.randbytes(size))
        with kvorum.client(cluster.endpoints[0], discover=False, timeout=30) as client:
            events, cancel = client.watch_prefix("topic/")
            for number in range(50):
                client.put(f"topic/{number}", "secret")
                assert next(events).key == b"topic/%d" % number
            cancel()
        heard = []
        while stranger.poll(200):
            heard.append(stranger.recv())
        # A single byte may by chance begin somebody's topic; what it takes to hear on purpose are sixteen.
        assert len(heard) < 50


@pytest.mark.parametrize("name", ["native", "watch"])
def test_a_frame_over_the_limit_costs_its_sender_the_connection(cluster: Cluster, name: str) -> None:
    """sockets.py: MAXMSGSIZE, judged by the announced length, before memory is taken for it."""
    with undisturbed(cluster):
        for size in (wire.BATCH_BYTES_MAX + 1, 1 << 40):
            with zmtp.connect(port(cluster, name)) as connection:
                zmtp.shake_hands(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(zmtp.frame(b"begun", length=size))
                assert zmtp.is_dropped(connection, 30.0), size
        with Asker(port(cluster, "native")) as asker:
            largest = pb.PutRequest(key=b"a", value=bytes(wire.BATCH_BYTES_MAX - 16 - 12)).SerializeToString()
            frame = call(Method.PUT, largest)
            assert len(frame) <= wire.BATCH_BYTES_MAX
            (said,) = asker.answers(frame, 1, 60.0)
            assert (said.status, said.payload) == (Code.INVALID_ARGUMENT, b"etcdserver: request is too large")


def test_as_many_records_as_fit_into_frames_delay_nobody(cluster: Cluster) -> None:
    """The most work that bytes can ask for: ten times 16384 empty records; and half a million in one frame, refused."""
    count = wire.BATCH_RECORDS_MAX
    with undisturbed(cluster), Asker(port(cluster, "native")) as asker:
        (said,) = asker.answers(call(99) * (wire.BATCH_BYTES_MAX // 16), 1, 60.0)
        assert (said.id, said.status) == (0, Code.INTERNAL)
        assert said.payload == b"kvorum: batch of over 16384 records"
        for _ in range(10):
            asker.socket.send(call(99) * count)
        heard = 0
        while heard < 10 * count:
            assert asker.socket.poll(20_000), f"{heard} answers"
            heard += len(wire.decode(asker.socket.recv()))


# ---- peers


def ids(cluster: Cluster) -> tuple[int, list[int]]:
    """The cluster's id and the members', by node."""
    headers = [cluster.request(node, Method.STATUS, pb.StatusRequest()).header for node in range(3)]  # type: ignore[attr-defined]
    return headers[0].cluster_id, [header.member_id for header in headers]


def peer_frame(cluster: int, sender: int, to: int, body: bytes, version: int = 1, what: int = 0) -> bytes:
    return struct.pack("<BBQQQ", version, what, cluster, sender, to) + body


def malformed(cluster: Cluster) -> float:
    return cluster.metric(0, "kvorum_raft_malformed_frames_total")


def test_frames_of_strangers_at_the_peer_port_never_reach_the_core(cluster: Cluster) -> None:
    """Wrong version, cluster, member, name, body; each is counted and changes nothing. DESIGN: not even a term."""
    cluster_id, members = ids(cluster)
    here, peer = members[0], members[1]
    term = int(cluster.metric(0, "kvorum_raft_term"))
    beat = raft.encode(raft.Message(raft.MessageType.HEARTBEAT, here, peer, term + 5))
    other = raft.encode(raft.Message(raft.MessageType.HEARTBEAT, here, members[2], term + 5))
    frames = [
        peer_frame(cluster_id ^ 1, peer, here, beat),
        peer_frame(cluster_id, 12345, here, beat),
        peer_frame(cluster_id, here, here, beat),
        peer_frame(cluster_id, peer, members[2], beat),
        peer_frame(cluster_id, peer, here, beat, version=9),
        peer_frame(cluster_id, peer, here, beat, what=7),
        peer_frame(cluster_id, peer, here, other),
        peer_frame(cluster_id, peer, here, beat[:-1]),
        peer_frame(cluster_id, peer, here, beat + b"\0"),
        peer_frame(cluster_id, peer, here, b""),
        peer_frame(cluster_id, peer, here, b"12345", what=1),
        beat,
        b"",
        b"\x01",
        *(random.Random(seed).randbytes(seed) for seed in range(1, 120)),
    ]
    before = malformed(cluster)
    with undisturbed(cluster), zmq.Context() as context:
        for name in (b"", b"stranger"):
            stranger = context.socket(zmq.DEALER)
            stranger.setsockopt(zmq.LINGER, 1000)
            if name:
                stranger.setsockopt(zmq.IDENTITY, name)
            stranger.connect(f"tcp://127.0.0.1:{port(cluster, 'peer')}")
            for frame in frames:
                stranger.send(frame)
            stranger.send_multipart([frames[0], frames[0]])
            stranger.close()
        count = 2 * (len(frames) + 1)
        eventually(lambda: malformed(cluster) >= before + count, 10.0, f"{count} frames dropped")
    assert int(cluster.metric(0, "kvorum_raft_term")) == term, "no frame was believed"


def test_a_stranger_takes_nobodys_place(cluster: Cluster) -> None:
    """Whatever name it has on the socket. With handover it cut a member off for good by having that member's.

    That somebody is believed who can reach the peer port and speaks perfectly is a matter of CURVE (DESIGN 12).
    """
    cluster_id, members = ids(cluster)
    here = members[0]
    with undisturbed(cluster), zmq.Context() as context:
        for name in (b"m" + member.to_bytes(8, "big") for member in members):
            forger = context.socket(zmq.DEALER)
            forger.setsockopt(zmq.LINGER, 1000)
            forger.setsockopt(zmq.IDENTITY, name)
            forger.connect(f"tcp://127.0.0.1:{port(cluster, 'peer')}")
            wanted = malformed(cluster) + 1
            forger.send(peer_frame(cluster_id, members[1], here, b"\xff" * 50))
            eventually(lambda wanted=wanted: malformed(cluster) >= wanted, 5.0, "a frame dropped")
            forger.close()
        for _ in range(2):  # nobody is cut off: either of the others can be followed
            leader = cluster.leader()
            target = members[(leader + 1) % 3]
            cluster.request(leader, Method.MOVE_LEADER, pb.MoveLeaderRequest(targetID=target))
            eventually(lambda leader=leader: cluster.leader() == (leader + 1) % 3, 5.0, "the next leader")


def test_an_oversized_frame_at_the_peer_port_is_not_read(cluster: Cluster) -> None:
    with undisturbed(cluster), zmtp.connect(port(cluster, "peer")) as connection:
        zmtp.shake_hands(connection, identity=b"stranger")
        with contextlib.suppress(OSError):
            connection.sendall(zmtp.frame(b"begun", length=sockets.PEER_BYTES_MAX + 1))
        assert zmtp.is_dropped(connection, 30.0)
