"""Clients that ask and never read: what they cost a real node is bounded, and nobody else notices (RELIABILITY F19).

The bound is RSS_BYTES_MAX for every process, with 10 MB under the keys that are asked for: a handful of such answers
for each of a few such clients (cluster/outbox.py), where the answers asked for would take tens of gigabytes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
import zmq

import kvorum
from cluster import local
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from tests.system import zmtp
from tests.system.cluster import Cluster, eventually
from tests.system.undisturbed import RSS_BYTES_MAX, rss_bytes, undisturbed

SETTINGS = {"heartbeat-interval": "100", "election-timeout": "1000"}
PIECES, PIECE_BYTES = 100, 100_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("memory"), nodes=1, settings=SETTINGS, shared=True) as cluster:
        with kvorum.client(cluster.endpoints) as client:
            for number in range(PIECES):
                client.put(f"big/{number:03}", bytes([number]) * PIECE_BYTES)
        yield cluster


def ranges(first: int, last: int, *, keys: int = PIECES, serializable: bool = True) -> bytes:
    """A batch of calls `first` to `last` that each ask for `keys` of the pieces."""
    end = b"big/%03d" % keys if keys < PIECES else b"big0"
    request = pb.RangeRequest(key=b"big/", range_end=end, serializable=serializable).SerializeToString()
    return b"".join(wire.encode(Method.RANGE, Kind.CALL, 0, id, request) for id in range(first, last + 1))


@contextlib.contextmanager
def reluctant(port: int) -> Iterator[socket.socket]:
    """A connection that says what it likes and reads nothing."""
    with zmtp.connect(port) as connection:
        zmtp.shake_hands(connection)
        connection.settimeout(2.0)
        yield connection


@pytest.mark.parametrize("serializable", [True, False], ids=["serializable", "linearizable"])
def test_a_client_that_asks_for_everything_and_never_reads_costs_a_few_answers(
    cluster: Cluster, serializable: bool
) -> None:
    """Ten thousand times 10 MB, in a few batches of 300 KB."""
    with undisturbed(cluster), reluctant(cluster.places[0].port + local.STEP_NATIVE) as client:
        for batch in range(10):
            client.sendall(zmtp.frame(ranges(batch * 1000 + 1, batch * 1000 + 1000, serializable=serializable)))
        time.sleep(2.0)
    eventually(lambda: rss_bytes(cluster.pid(0, "apply")) < RSS_BYTES_MAX // 2, 15.0, "memory given back")


def test_ten_such_clients_cost_ten_times_as_much_of_what_is_smaller(cluster: Cluster) -> None:
    """1 MB an answer: one that isn't a scan of many slices."""
    with undisturbed(cluster), contextlib.ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(reluctant(cluster.places[0].port + local.STEP_NATIVE))
            client.sendall(zmtp.frame(ranges(1, 5000, keys=10)))
        time.sleep(2.0)


def test_a_client_that_writes_and_never_reads_costs_what_is_kept_for_it(cluster: Cluster) -> None:
    """Each answer holds the 100 KB that were there before."""
    put = pb.PutRequest(key=b"fat", value=b"x" * PIECE_BYTES, prev_kv=True).SerializeToString()
    batch = b"".join(wire.encode(Method.PUT, Kind.CALL, 0, id, put) for id in range(1, 11))
    dropped = cluster.metric(0, "kvorum_client_replies_dropped_total")
    with undisturbed(cluster), reluctant(cluster.places[0].port + local.STEP_NATIVE) as client:
        for _ in range(100):
            client.sendall(zmtp.frame(batch))
        eventually(lambda: cluster.metric(0, "kvorum_client_replies_dropped_total") > dropped, 20.0, "answers dropped")


def test_a_client_that_reads_late_gets_every_answer(cluster: Cluster) -> None:
    """Reads wait for their client; they aren't refused or lost. 320 MB of answers."""
    with undisturbed(cluster), zmq.Context() as context:
        asker = context.socket(zmq.DEALER)
        asker.setsockopt(zmq.LINGER, 0)
        asker.setsockopt(zmq.RCVHWM, 1)
        asker.connect(f"tcp://{cluster.endpoint(0)}")
        asker.send(ranges(1, 30) + ranges(31, 230, keys=1))
        time.sleep(1.0)
        sizes: dict[int, int] = {}
        while len(sizes) < 230:
            assert asker.poll(20_000), f"{len(sizes)} answers"
            batch, at = asker.recv(), 0
            while at < len(batch):  # wire.decode is for requests: an answer may be larger than a batch
                length, _, _, status, id = wire.HEADER.unpack_from(batch, at)
                at += wire.HEADER.size + length
                assert status == 0
                assert id not in sizes
                sizes[id] = len(pb.RangeResponse.FromString(batch[at - length : at]).kvs)
            time.sleep(0.01)
        asker.close()
    assert sizes == {id: PIECES if id <= 30 else 1 for id in range(1, 231)}


def test_a_watcher_that_never_reads_costs_a_queue_and_misses_nothing_when_it_does(cluster: Cluster) -> None:
    """F19, T7: 256 KiB values, 64 MiB of them, to one that doesn't read, beside one that does."""
    count, value = 256, b"w" * (256 << 10)
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"watched")).SerializeToString()
    port = cluster.places[0].port + local.STEP_WATCH
    with undisturbed(cluster) as meter, reluctant(port) as watcher:
        opening = wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, 1, b"")
        watcher.sendall(zmtp.frame(opening + wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, 1, create)))
        with kvorum.client(cluster.endpoints) as client:
            responses, cancel = client.watch_response("watched")
            for number in range(count):
                client.put("watched", b"%d." % number + value)
            read: list[int] = []
            while len(read) < count:
                read += [number_of(event.kv) for event in next(responses).events]
            cancel()
        assert read == list(range(count))
        watcher.settimeout(20.0)
        late: list[int] = []
        while len(late) < count:
            for record in wire.decode(message(watcher)):
                late += [number_of(event.kv) for event in pb.WatchResponse.FromString(record.payload).events]
        assert late == list(range(count))
    assert meter.biggest <= RSS_BYTES_MAX


def number_of(kv: pb.KeyValue) -> int:
    return int(kv.value[:8].split(b".")[0])


def message(connection: socket.socket) -> bytes:
    """The next message; pings are answered."""
    while True:
        flags = zmtp.receive(connection, 1)[0]
        size = int.from_bytes(zmtp.receive(connection, 8 if flags & zmtp.LONG else 1), "big")
        body = zmtp.receive(connection, size)
        if not flags & zmtp.COMMAND:
            return body
        if body.startswith(b"\x04PING"):
            connection.sendall(zmtp.frame(b"\x04PONG" + body[7:], zmtp.COMMAND))
