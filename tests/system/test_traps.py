"""The traps of this architecture, sprung on purpose in real processes: T1, T5, T6, T9, T14, T15 of RELIABILITY 5.

T2, T3 and T8 are in test_disk.py, T7 in test_watch.py; T4 is the log's own business (tests/native).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import kvorum
from cluster import internal, local
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from native import segments
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
from storage.rocks import RocksEngine
from tests.system.cluster import PROCESSES, ROOT, Cluster, alive, clean_environment, eventually
from tests.system.test_failpoints import Armed
from tests.system.test_kill import kill_cluster
from tests.system.verdict import insist

ELECTION_SECONDS = 0.5  # of Cluster


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Armed]:
    with Armed(tmp_path_factory.mktemp("traps"), nodes=3, shared=True) as cluster:
        yield cluster


def tied(cluster: Cluster, node: int, timeout: float = 10.0) -> kvorum.Client:
    return kvorum.client([cluster.endpoint(node)], discover=False, timeout=timeout)


# ---- T1: applied index and data in different atomic units


def test_a_store_that_was_killed_is_what_the_log_says_up_to_its_applied_index(tmp_path: Path) -> None:
    """T1. Values so large that the store flushes of its own accord all the time; whatever a kill leaves of it must be
    an exact prefix: the log, applied up to the index that the store itself names, gives the same bytes."""
    dice = random.Random(1)
    applied = []
    with Cluster(tmp_path, nodes=1) as cluster:
        for round in range(4):
            over = threading.Event()
            thread = threading.Thread(target=scribble, args=(cluster, round, over), daemon=True)
            thread.start()
            time.sleep(1.0 + dice.random() / 2)
            kill_cluster(cluster)
            over.set()
            thread.join()
            applied.append(compare_with_log(cluster.data_dir(0)))
            assert list((cluster.data_dir(0) / "store").glob("*.sst")), "it has flushed"
            cluster.start(0)
    assert applied == sorted(applied)
    assert applied[-1] > applied[0] > 0


def scribble(cluster: Cluster, round: int, over: threading.Event) -> None:
    """Puts, swaps and deletions over 30 keys until the node is gone. 13 MB in a round, so that the log's first segment
    isn't let go: what it holds is still needed to compare."""
    dice, left = random.Random(f"scribble/{round}"), 13 << 20
    with kvorum.client(cluster.endpoints, timeout=2.0) as client, contextlib.suppress(errors.KvorumError):
        while not over.is_set():
            key, other = (f"key{dice.randrange(30)}" for _ in range(2))
            if dice.random() < 0.2:
                client.delete(key)
            elif dice.random() < 0.3 and key != other:
                client.transaction(success=[client.transactions.put(key, other), client.transactions.delete(other)])
            else:
                size = min(100_000, max(left, 10))
                client.put(key, dice.randbytes(size))
                left -= size


def compare_with_log(data: Path) -> int:
    """The applied index of the store, which must hold what the log gives up to there."""
    entries: dict[int, tuple[int, bytes]] = {}
    for record in segments.dump(data / "wal"):
        if record.type == "entry":
            entries[record.fields["index"]] = (record.fields["term"], record.data)
    store = RocksEngine(data / "store")
    try:
        index, term = Keyspace(store).applied
        keyspace = Keyspace(MemoryEngine())
        for each in range(1, index + 1):
            turn = keyspace.begin()
            turn.apply(each, *entries[each])
            turn.commit()
        assert keyspace.applied == (index, term)
        assert list(store.scan(b"", b"\xff" * 9)) == list(keyspace.engine.scan(b"", b"\xff" * 9))
    finally:
        store.close()
    return index


# ---- T5: many requests in one entry


def test_a_batch_under_way_when_its_leader_dies_is_applied_once_or_not_at_all(trio: Armed) -> None:
    """T5: whoever took it proposes it again to the next leader. Each put has a key of its own, so a second application
    would show as version 2."""
    for round in range(3):
        leader = trio.leader()
        asked = (leader + 1) % 3
        keys = [f"once/{round}/{number}".encode() for number in range(500)]
        with zmq.Context() as context:
            asker = context.socket(zmq.DEALER)
            asker.setsockopt(zmq.LINGER, 0)
            asker.connect(f"tcp://{trio.endpoint(asked)}")
            for part in range(0, 500, 50):
                puts = [pb.PutRequest(key=key, value=key).SerializeToString() for key in keys[part : part + 50]]
                asker.send(
                    b"".join(wire.encode(Method.PUT, Kind.CALL, 0, part + at, put) for at, put in enumerate(puts))
                )
                if part == 200:
                    trio.kill(leader, "raft")
            told: dict[int, wire.Record] = {}
            while len(told) < 500:
                assert asker.poll(20_000), f"{len(told)} answers"
                told |= {record.id: record for record in wire.decode(asker.recv())}
            asker.close()
        with kvorum.client(trio.endpoints) as client:
            found = insist(lambda round=round: client.get_prefix_response(f"once/{round}/"))
        versions = {kv.key: kv.version for kv in found.kvs}
        assert set(versions.values()) <= {1}
        for id, record in told.items():
            if record.status == 0:
                answer = pb.PutResponse.FromString(record.payload)
                (kv,) = (kv for kv in found.kvs if kv.key == keys[id])
                assert kv.mod_revision == answer.header.revision, "and no answer is shifted to a neighbour's"
        assert sum(record.status == 0 for record in told.values()) > 200


# ---- T6: linearizable reads across processes


def test_a_leader_that_wakes_up_does_not_answer_from_its_dreams(trio: Armed) -> None:
    """T6 (etcd #20418, found by pausing): reads wait in its sockets when it wakes up, and it believes that it leads."""
    for round in range(3):
        old = trio.leader()
        other = (old + 1) % 3
        with tied(trio, old) as client, tied(trio, other) as elsewhere:
            client.put("dream", f"{round} before")
            trio.pause(old, "raft")
            try:
                insist(lambda round=round: elsewhere.put("dream", f"{round} after", timeout=3.0))
                seen: list[bytes | None] = []
                reader = threading.Thread(target=read_into, args=(client, seen), daemon=True)
                reader.start()
                time.sleep(0.2)
            finally:
                trio.resume()
            reader.join(15.0)
            assert seen == [f"{round} after".encode()]


def read_into(client: kvorum.Client, seen: list[bytes | None]) -> None:
    seen.append(client.get("dream")[0])


def test_a_fresh_apply_process_takes_nothing_back(trio: Armed) -> None:
    """DESIGN 10: what it opens is as old as its last flush. Neither a serializable read nor a watch from now on may
    begin there."""
    node = trio.leader()
    with tied(trio, node) as client:
        for number in range(50):
            client.put("shown", str(number))
        revision = client.get_response("shown", serializable=True).header.revision
        for _ in range(3):
            trio.kill(node, "apply")
            answer = insist(lambda: client.get_response("shown", serializable=True, timeout=5.0))
            assert answer.header.revision >= revision
            assert answer.kvs[0].value == b"49"
        trio.kill(node, "apply")
        responses, cancel = insist(lambda: client.watch_response("shown"))
        client.put("shown", "50")
        assert [event.value for event in next(responses).events] == [b"50"]
        cancel()


# ---- T9: half a node is dead


def test_a_leader_whose_apply_is_not_heard_hands_over(trio: Armed) -> None:
    """T9, DESIGN 10: it could replicate, but not answer. Within about two election timeouts another leads, and nobody
    is kept waiting meanwhile at the other nodes."""
    for _ in range(3):
        leader = trio.leader()
        other = (leader + 1) % 3
        with tied(trio, other) as client:
            since = time.monotonic()
            trio.pause(leader, "apply")
            try:
                slowest = 0.0
                while trio.metric(leader, "etcd_server_is_leader") == 1:
                    assert time.monotonic() - since < 2 * ELECTION_SECONDS + 1.0, "it leads on"
                    began = time.monotonic()
                    client.put("handed", "over")
                    slowest = max(slowest, time.monotonic() - began)
                assert slowest < ELECTION_SECONDS
                assert trio.leader() != leader
                client.put("handed", "over")
            finally:
                trio.resume()


def test_an_apply_process_that_wakes_up_after_its_successor_has_begun_is_fenced(tmp_path: Path) -> None:
    """T9: no second writer. Its store's lock would keep a successor out, so this one is given a store of its own; then
    only the epoch is left to tell the two apart. A write that waited in the old one's socket must never be done."""
    with Cluster(tmp_path / "node", nodes=1) as cluster:
        old = cluster.pid(0, "apply")
        with tied(cluster, 0) as client:
            client.put("a", "before")
        run_dir = json.loads((cluster.data_dir(0) / "pids.json").read_text())["run_dir"]
        node = json.loads((Path(run_dir) / "node.json").read_text())
        port = cluster.places[0].port + 10
        node |= {"data_dir": str(tmp_path / "other"), "listen_native": f"tcp://127.0.0.1:{port}"}
        (tmp_path / "other" / "store").mkdir(parents=True)
        (tmp_path / "node.json").write_text(json.dumps(node))
        sleeping = Sleeper(cluster)
        cluster.pause(0, "apply")
        sleeping.put("b", "from the dead")
        successor = subprocess.Popen(
            [sys.executable, "-m", "cluster.part", "cluster.applyd", str(tmp_path / "node.json"), "1000"],
            cwd=ROOT, env=clean_environment(), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with kvorum.client(f"127.0.0.1:{port}", discover=False) as client:
                revision = insist(lambda: client.put("a", "after", timeout=2.0)).header.revision
                cluster.resume()
                eventually(lambda: not alive(old), 5.0, "the end of the old one")
                assert f"was replaced by {1000}" in cluster.log(0)
                time.sleep(3 * ELECTION_SECONDS)  # time to propose it again, if it could
                assert client.get("b")[0] is None
                assert client.get_response("a").header.revision == revision
                assert client.get("a")[0] == b"after"
        finally:
            successor.kill()
            successor.wait()
            sleeping.close()
        cluster.kill(0, "raft")  # which remembers the epoch 1000
        with tied(cluster, 0) as client:
            assert insist(lambda: client.get("a", timeout=5.0))[0] == b"after"
            assert client.get("b")[0] is None


class Sleeper:
    """A client of a process that is about to sleep."""

    def __init__(self, cluster: Cluster) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{cluster.endpoint(0)}")
        self._socket.send(wire.encode(Method.STATUS, Kind.CALL, 0, 1, b""))
        assert self._socket.poll(5000), "connected"

    def put(self, key: str, value: str) -> None:
        request = pb.PutRequest(key=key.encode(), value=value.encode()).SerializeToString()
        self._socket.send(wire.encode(Method.PUT, Kind.CALL, 0, 2, request))

    def close(self) -> None:
        self._context.destroy(linger=0)


def test_whoever_speaks_to_raft_in_an_old_session_is_told_so_and_not_believed(trio: Armed) -> None:
    """T9: ZeroMQ delivers what a dead process had queued, or what one says that doesn't know that it is dead."""
    run_dir = json.loads((trio.data_dir(0) / "pids.json").read_text())["run_dir"]
    with tied(trio, 0) as client, zmq.Context() as context:
        revision = client.put("session", "1").header.revision
        ghost = context.socket(zmq.DEALER)
        ghost.setsockopt(zmq.LINGER, 0)
        ghost.connect(f"ipc://{run_dir}/raft")
        said = wire.encode(Method.PUT, Kind.CALL, 0, 1, pb.PutRequest(key=b"ghost", value=b"1").SerializeToString())
        for message in (
            internal.Attach(0, 0),
            internal.Propose(1, 1, said),
            internal.ReadIndex(1, 1),
            internal.Applied(1, 1 << 40, 1 << 40),
        ):
            ghost.send(internal.encode(message))
            assert ghost.poll(5000)
            assert isinstance(internal.decode(ghost.recv()), internal.Fenced)
        ghost.close()
        assert client.get_response("ghost").header.revision == revision


def test_a_process_that_keeps_dying_is_started_again_less_and_less_often(trio: Armed) -> None:
    """T9, keeper.py: 50 ms, doubled up to 5 s. The others go on, and once it can live it comes back by itself."""
    node = (trio.leader() + 1) % 3
    series = 'kvorum_supervisor_restarts_total{process="apply"}'
    before = trio.metric(node, series)
    trio.arm(node, "applyBeforeSweep:panic")  # which a process that starts comes by
    trio.kill(node, "apply")
    with tied(trio, trio.leader()) as client:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            client.put("meanwhile", "served")
            time.sleep(0.05)
    restarts = trio.metric(node, series) - before
    assert 2 <= restarts <= 7, "at 0.05, 0.15, 0.35, 0.75, 1.55 s and so on, and each takes a while to start and die"
    trio.disarm(node)
    with tied(trio, node) as client:
        assert insist(lambda: client.get("meanwhile", timeout=5.0))[0] == b"served"


# ---- T14: Python itself


def test_ranges_of_ten_megabytes_cost_no_leader_its_place(trio: Armed) -> None:
    """T14: a big range must not hold up heartbeats (they are raft's) nor small requests (it is cut into slices)."""
    leader = trio.leader()
    with tied(trio, leader) as client:
        for number in range(100):
            client.put(f"big/{number}", bytes(100_000))
        term, changes = trio.metric(leader, "kvorum_raft_term"), trio.metric(leader, CHANGES)
        over = threading.Event()
        read = [0, 0]
        threads = [threading.Thread(target=read_all, args=(trio, leader, over, read, at), daemon=True) for at in (0, 1)]
        for thread in threads:
            thread.start()
        slowest, until = 0.0, time.monotonic() + 3.0
        while time.monotonic() < until:
            began = time.monotonic()
            client.put("small", "one")
            slowest = max(slowest, time.monotonic() - began)
        over.set()
        for thread in threads:
            thread.join()
        assert min(read) >= 2
        assert (trio.metric(leader, "kvorum_raft_term"), trio.metric(leader, CHANGES)) == (term, changes)
        assert slowest < 2 * ELECTION_SECONDS
        client.delete_prefix("big/")


CHANGES = "etcd_server_leader_changes_seen_total"


def read_all(cluster: Cluster, node: int, over: threading.Event, read: list[int], at: int) -> None:
    with tied(cluster, node, 30.0) as client:
        while not over.is_set():
            found = client.get_prefix_response("big/", serializable=at == 0)
            assert found.count == 100
            read[at] += 1


@pytest.mark.parametrize(
    ("process", "point"), [("raft", "raftBeforeSave"), ("watch", "watchBeforeSend"), ("apply", "")]
)
def test_an_exception_that_nobody_expected_ends_the_process(trio: Armed, process: str, point: str) -> None:
    """T14: none may live on half dead. The supervisor starts it again, and everything goes on."""
    node = trio.leader()
    pid = trio.pid(node, process)
    said = trio.log(node).count("Traceback")
    with tied(trio, node, 0.5) as client:
        responses, _ = client.watch_response("exception", start_revision=1)  # without watchers watch has nothing to do
        if point:
            trio.arm(node, f"{point}:1*error(EPERM)")
        else:  # where errors of the system have a meaning, a message that makes no sense will do
            run_dir = json.loads((trio.data_dir(node) / "pids.json").read_text())["run_dir"]
            with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
                stranger.connect(f"ipc://{run_dir}/watch")
                stranger.send(b"\xff\xff")
        until = time.monotonic() + 10.0
        while alive(pid):
            assert time.monotonic() < until
            with contextlib.suppress(errors.KvorumError):
                client.put("exception", "try")
        if point:
            trio.disarm(node)
        insist(lambda: client.put("exception", process, timeout=3.0))
        while next(responses).events[-1].value != process.encode():
            pass
    assert trio.log(node).count("Traceback") > said


# ---- T15: what is left behind


def test_a_node_whose_supervisor_is_killed_leaves_nothing_and_can_start_again_at_once(tmp_path: Path) -> None:
    """T15, T9: orphans would keep ports, log and store. One of them stopped, so that it can't end by itself."""
    with Cluster(tmp_path, nodes=1) as cluster:
        for stopped in itertools.islice(itertools.cycle(PROCESSES[1:]), 4):
            pids = cluster.pids(0)
            with tied(cluster, 0) as client:
                client.put("a", stopped)
            cluster.pause(0, stopped)
            os.kill(pids["supervisor"], signal.SIGKILL)
            assert cluster.wait(0) == -signal.SIGKILL
            eventually(lambda pids=pids: not any(alive(pid) for pid in pids.values()), 3.0, "the end of the children")
            cluster.start(0)
            with tied(cluster, 0) as client:
                assert client.get("a")[0] == stopped.encode()


def test_processes_inherit_no_descriptor_but_their_own_lock(trio: Armed) -> None:
    """T15: an inherited one keeps a port or a lock alive after its owner. Here with everything that a real node has."""
    pids = trio.pids(0)
    ports = {trio.places[0].port + step: name for step, name in (
        (local.STEP_PEER, "raft"), (local.STEP_NATIVE, "apply"), (local.STEP_WATCH, "watch"),
        (local.STEP_METRICS, "supervisor"), (local.STEP_GATEWAY, "gateway"),
    )}  # fmt: skip
    listening = listeners()
    for name, pid in pids.items():
        files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        locks = {Path(file).name for file in files if "/LOCK" in file and "/store/" not in file}
        assert locks == ({"LOCK"} if name == "supervisor" else {f"LOCK.{name}"})
        inodes = {file[8:-1] for file in files if file.startswith("socket:[")}
        own = {ports[port] for port, inode in listening.items() if port in ports and inode in inodes}
        assert own == {name}


def listeners() -> dict[int, str]:
    """Ports that are listened on and the inodes of the sockets that do."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    return found
